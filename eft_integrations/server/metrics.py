"""GET /metrics: what Prometheus reads. Engines are asked when it asks; times are noted when answers are whole."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eft_integrations.chat.request import ChatResult
from eft_integrations.server.compositions import Composition, Compositions
from eft_integrations.server.limits import Pace

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

GAUGES = {
    "num_running": ("eft_requests_running", "Requests that step together now: the batch."),
    "num_waiting": ("eft_requests_waiting", "Requests that wait for their turn."),
    "num_warm_prefixes": ("eft_warm_prefixes", "Conversations that are kept in the cache."),
    "kv_cache_bytes": ("eft_kv_cache_bytes", "Bytes of all key/value caches."),
    "acceptance_rate": ("eft_draft_acceptance_ratio", "Drafted tokens that were accepted, of all drafted so far."),
}
COUNTERS = {
    "num_finished": ("eft_requests_finished", "Requests that were answered."),
    "num_failed": ("eft_requests_failed", "Requests that failed while they ran."),
    "num_cancelled": ("eft_requests_cancelled", "Requests whose caller left."),
    "prompt_tokens": ("eft_prompt_tokens", "Prompt tokens of requests that are over."),
    "cached_prompt_tokens": ("eft_cached_prompt_tokens", "Prompt tokens that no member had to read."),
    "completion_tokens": ("eft_completion_tokens", "Generated tokens of requests that are over."),
    "num_drafted": ("eft_drafted_tokens", "Tokens that were drafted and verified."),
    "num_accepted": ("eft_accepted_tokens", "Drafted tokens that became part of a text."),
    "num_steps": ("eft_evaluations", "Evaluations of requests that are over."),
}


class _Engines(Collector):
    """State and totals of the engines; the label names the compositions that an engine serves."""

    def __init__(self, compositions: Compositions) -> None:
        self._compositions = compositions

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        served = {
            "+".join(own.name for own in self._compositions if own.backend is backend): backend.stats()
            for backend in self._compositions.backends
        }
        for field, (name, text) in GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=["engine"])
            for label, stats in served.items():
                gauge.add_metric([label], getattr(stats, field))
            yield gauge
        for field, (name, text) in COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=["engine"])
            for label, stats in served.items():
                counter.add_metric([label], getattr(stats, field))
            yield counter


class ServerMetrics:
    """All metrics of one server."""

    def __init__(self, compositions: Compositions, pace: Pace) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Engines(compositions))
        self._pace = pace
        self._http = Counter(
            "eft_http_requests", "Requests by path and status.", ["path", "status"], registry=self._registry
        )
        self._seconds = {
            name: Histogram(f"eft_{label}_seconds", text, ["model"], buckets=SECONDS, registry=self._registry)
            for name, label, text in (
                ("queue_s", "queue", "From submission until the first step."),
                ("ttft_s", "time_to_first_token", "From submission until the first token."),
                ("tpot_s", "time_per_output_token", "Per token after the first."),
                ("total_s", "request", "From submission to the last token."),
            )
        }

    def observe(self, composition: Composition, result: ChatResult) -> None:
        """An answer is whole."""
        for name, histogram in self._seconds.items():
            if (seconds := result.metadata.get(name)) is not None:
                histogram.labels(composition.name).observe(seconds)
        if (total_s := result.metadata.get("total_s")) is not None:
            self._pace.note(total_s)

    def count(self, path: str, status: int) -> None:
        """A request was answered, or left (499)."""
        self._http.labels(path, str(status)).inc()

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)


class Counted:
    """ASGI middleware that counts answers by the path of their route (`other`: there is no such route)."""

    def __init__(self, app: ASGIApp, *, metrics: ServerMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.count(getattr(scope.get("route"), "path", "other"), message["status"])
            await send(message)

        await self._app(scope, receive, counted)
