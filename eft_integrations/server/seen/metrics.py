"""GET /metrics: what Prometheus reads. Engines are asked when it asks (`engine_metrics`); requests are counted when they end.

Labels have few values: names of compositions, pairs and callers, which the operator gave, paths of routes, statuses, and codes and
types of errors that are known here. What is none of these is `other`, `none` or `unforeseen`.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from eft_engine import __version__
from eft_engine.weights import peak
from eft_integrations.chat.request import ChatResult
from eft_integrations.server.callers.callers import ANYBODY, Caller
from eft_integrations.server.callers.pace import Pace
from eft_integrations.server.compositions import Composition
from eft_integrations.server.seen.engine_metrics import EngineCollector
from eft_integrations.server.seen.outcomes import CLIENT_LEFT, PROBES, Outcome
from eft_integrations.server.seen.records import Record

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKENS = tuple(float(2**power) for power in range(0, 21, 2))
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0)
"""Negative weights are in the first: with a bucket below 0 there would be no sum."""
OF_ANSWERS = {
    "queue_s": ("eft_queue_seconds", "From the answer's turn in the queue until the first step.", SECONDS),
    "ttft_s": (
        "eft_time_to_first_token_seconds",
        "From the answer's turn in the queue until the first token.",
        SECONDS,
    ),
    "tpot_s": ("eft_time_per_output_token_seconds", "Per token after the first.", SECONDS),
    "total_s": ("eft_request_seconds", "From the answer's turn in the queue to the last token.", SECONDS),
    "acceptance_rate": ("eft_answer_acceptance_ratio", "Drafted tokens that were accepted, by answer.", SHARES),
    "intervention_rate": (
        "eft_answer_intervention_ratio",
        "Tokens that were drawn with some weight other than 0, by answer.",
        SHARES,
    ),
}
"""Histograms of what the report of an answer says."""


class ServerMetrics:
    """All metrics of one server. `num_in_flight`: requests that have not ended."""

    def __init__(self, engines: EngineCollector, pace: Pace) -> None:
        self._registry = registry = CollectorRegistry()
        self._pace = pace
        self.num_in_flight = 0
        registry.register(engines)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        Gauge("eft_build_info", "The version of the server.", ["version"], registry=registry).labels(__version__).set(1)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=registry)

        self._http = counter(
            "eft_http_requests", "Requests that have ended; streams by how they ended in truth.", "path", "status"
        )
        self._http_seconds = histogram(
            "eft_http_request_seconds", "From a request to the end of its response.", SECONDS, "path"
        )
        self._in_flight = Gauge("eft_http_requests_in_flight", "Requests that have not ended.", registry=registry)
        self._refused = counter("eft_refused", "Requests that were refused (4xx).", "status", "code")
        self._errors = counter("eft_errors", "Requests that failed (5xx), those inside of streams too.", "type", "code")
        self._broken = counter("eft_stream_failures", "Streams that failed after they had begun.", "path", "type")
        self._answers = {name: histogram(*what, "model") for name, what in OF_ANSWERS.items()}
        self._prompt = histogram("eft_request_prompt_tokens", "Tokens of the prompt of an answer.", TOKENS, "model")
        self._completion = histogram("eft_request_completion_tokens", "Tokens of an answer.", TOKENS, "model")
        self._weight = histogram(
            "eft_reward_weight", "Weights in effect, by answer; of a schedule the largest.", WEIGHTS, "model", "pair"
        )
        self._outcomes = counter("eft_caller_answers", "Answers by how they ended.", "caller", "model", "outcome")
        self._prompts_of = counter("eft_caller_prompt_tokens", "Prompt tokens of whole answers.", "caller", "model")
        self._completions_of = counter("eft_caller_completion_tokens", "Tokens of whole answers.", "caller", "model")

    def observe(self, composition: Composition, caller: Caller, result: ChatResult) -> None:
        """An answer is whole."""
        model, usage = composition.name, result.usage
        for name, histogram in self._answers.items():
            if (value := result.metadata.get(name)) is not None:
                histogram.labels(model).observe(value)
        self._prompt.labels(model).observe(usage.prompt_tokens)
        self._completion.labels(model).observe(usage.completion_tokens)
        self._prompts_of.labels(caller.name, model).inc(usage.prompt_tokens)
        self._completions_of.labels(caller.name, model).inc(usage.completion_tokens)
        if (total_s := result.metadata.get("total_s")) is not None:
            self._pace.note(total_s)

    def begin(self) -> None:
        """A request has come."""
        self.num_in_flight += 1
        self._in_flight.inc()

    def end(self, record: Record, outcome: Outcome) -> None:
        """A request has ended."""
        self.num_in_flight -= 1
        self._in_flight.dec()
        self._http.labels(record.route, str(outcome.status)).inc()
        self._http_seconds.labels(record.route).observe(record.elapsed_s)
        code = outcome.code or "none"
        if outcome.status >= 500 and record.route not in PROBES:
            self._errors.labels(outcome.type or "none", code).inc()
        elif 400 <= outcome.status < CLIENT_LEFT:
            self._refused.labels(str(outcome.status), code).inc()
        if outcome.has_broken_off:
            self._broken.labels(record.route, outcome.type or "none").inc()
        if record.model is not None and record.num_answers:
            self._count_answers(record, record.model, outcome)

    def _count_answers(self, record: Record, model: str, outcome: Outcome) -> None:
        caller = record.caller or ANYBODY.name
        num_whole = len(record.results)
        num_others = record.num_answers - num_whole
        if num_whole:
            self._outcomes.labels(caller, model, "finished").inc(num_whole)
        if num_others > 0:
            self._outcomes.labels(caller, model, _other_outcome(outcome)).inc(num_others)
        for pair, weight in record.reward_weights.items():
            for _ in range(num_whole):
                self._weight.labels(model, pair).observe(peak(weight))

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)


def _other_outcome(outcome: Outcome) -> str:
    if outcome.status == CLIENT_LEFT:
        return "left"
    return "failed" if outcome.status >= 500 else "refused"
