"""What /metrics tells of engines: each is asked when Prometheus asks. The label `engine` names the compositions that it serves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from eft_engine import EngineStats, errors
from eft_integrations.backends.engine import EngineBackend
from eft_integrations.backends.protocol import ChatBackend
from eft_integrations.server.callers.admission import Turns
from eft_integrations.server.seen.health import Health

GAUGES = {
    "num_running": ("eft_requests_running", "Requests that step together now: the batch."),
    "num_waiting": ("eft_requests_waiting", "Requests that wait for their turn in the engine."),
    "num_warm_prefixes": ("eft_warm_prefixes", "Conversations that are kept in the cache."),
    "kv_cache_bytes": ("eft_kv_cache_bytes", "Bytes of all key/value caches."),
    "kv_cache_use": (
        "eft_kv_cache_use_ratio",
        "Share of max_kv_cache_bytes that is held; without that bound, filled positions of those of a full batch of full contexts.",
    ),
    "acceptance_rate": ("eft_draft_acceptance_ratio", "Drafted tokens that were accepted, of all drafted so far."),
}
COUNTERS = {
    "num_finished": ("eft_requests_finished", "Requests that were answered."),
    "num_failed": ("eft_requests_failed", "Requests that failed while they ran."),
    "num_cancelled": ("eft_requests_cancelled", "Requests whose caller left."),
    "prompt_tokens": ("eft_prompt_tokens", "Prompt tokens of requests that are over."),
    "cached_prompt_tokens": ("eft_cached_prompt_tokens", "Prompt tokens that no member had to read."),
    "completion_tokens": (
        "eft_completion_tokens",
        "Generated tokens of requests that are over, those of left ones too.",
    ),
    "num_drafted": ("eft_drafted_tokens", "Tokens that were drafted and verified."),
    "num_accepted": ("eft_accepted_tokens", "Drafted tokens that became part of a text."),
    "num_steps": ("eft_evaluations", "Evaluations of requests that are over."),
}


class EngineCollector(Collector):
    """State and totals of the engines of one server. An engine that cannot be asked has only the row that says so."""

    def __init__(self, health: Health, turns: Mapping[int, Turns]) -> None:
        self._health = health
        self._turns = turns

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        stats = {name: found for name, own in self._health.engines if (found := _stats(own)) is not None}
        for field, (name, text) in GAUGES.items():
            yield _gauge(name, text, {engine: float(getattr(own, field)) for engine, own in stats.items()})
        for field, (name, text) in COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=["engine"])
            for engine, own in stats.items():
                counter.add_metric([engine], getattr(own, field))
            yield counter
        yield from self._states()
        yield from self._rooms()

    def _states(self) -> Iterator[Metric]:
        dead = {finding.engine for finding in self._health.deaths()}
        engines = self._health.engines
        yield _gauge(
            "eft_engine_alive",
            "1: the engine takes requests and works; 0: it was closed, its thread has ended or its device is lost.",
            {name: float(name not in dead) for name, own in engines if isinstance(own, EngineBackend)},
        )
        stalls = {name: self._health.stall_s(own) for name, own in engines if name not in dead}
        yield _gauge(
            "eft_engine_seconds_since_progress",
            "Seconds since a pass of a network ended, while there is work; 0 while there is none.",
            {name: seconds for name, seconds in stalls.items() if seconds is not None},
        )
        ready = GaugeMetricFamily(
            "eft_ready", "1: /ready says yes, as far as that is known without asking other servers."
        )
        ready.add_metric([], float(not self._health.known_obstacles()))
        yield ready

    def _rooms(self) -> Iterator[Metric]:
        turns = [(name, self._turns[id(own)]) for name, own in self._health.engines]
        yield _gauge(
            "eft_answers_waiting_for_place",
            "Answers that wait for one of the places at the engine.",
            {name: float(own.num_waiting) for name, own in turns},
        )
        in_hand = GaugeMetricFamily(
            "eft_caller_answers_in_hand", "Answers that run or wait, by who asked.", labels=["engine", "caller"]
        )
        for name, own in turns:
            for caller, number in sorted(own.in_hand.items()):
                in_hand.add_metric([name, caller], number)
        yield in_hand
        yield _gauge(
            "eft_answers_capacity",
            "Answers that may run and wait; missing: any number.",
            {name: float(own.capacity) for name, own in turns if own.capacity is not None},
        )


def _stats(backend: ChatBackend) -> EngineStats | None:
    if isinstance(backend, EngineBackend) and not backend.is_loaded:
        return None
    try:
        return backend.stats()
    except errors.EFTError:  # closed, or another server that does not answer: /ready tells why
        return None


def _gauge(name: str, text: str, values: Mapping[str, float]) -> Metric:
    gauge = GaugeMetricFamily(name, text, labels=["engine"])
    for engine, value in values.items():
        gauge.add_metric([engine], value)
    return gauge
