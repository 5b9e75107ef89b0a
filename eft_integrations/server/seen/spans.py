"""Requests as OpenTelemetry's spans and measurements, in its conventions for generative models. Imports the optional packages.

https://github.com/open-telemetry/semantic-conventions-genai: a span of the server for each request, named by operation and model,
and the histograms `gen_ai.server.*`. What they have no word for begins with `eft.`. Never a text: no prompt, answer or stop string.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextvars import Token
from dataclasses import dataclass

from opentelemetry import context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue
from starlette.datastructures import Headers

from eft_engine import __version__, errors
from eft_engine.weights import peak
from eft_integrations.server.seen.outcomes import Outcome
from eft_integrations.server.seen.records import Record, told_weights

NAME = "eft_integrations.server"
PROVIDER = "eft"
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
}
"""Names of operations, by path. Whatever else answers is a chat."""
SAMPLING = {
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
}
DURATIONS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKENS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
TOKEN_TIMES = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = tuple(float(4**power) for power in range(14))
"""The buckets that the conventions ask for."""
RATES = tuple(tenth / 10 for tenth in range(1, 11))
WEIGHTS = (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0)

DURATION, FIRST_TOKEN = "gen_ai.server.request.duration", "gen_ai.server.time_to_first_token"
PER_TOKEN, USAGE = "gen_ai.server.time_per_output_token", "gen_ai.client.token.usage"
ACCEPTANCE, WEIGHT = "eft.acceptance_rate", "eft.reward_weight"
HISTOGRAMS: Mapping[str, tuple[str, str, Sequence[float]]] = {
    DURATION: ("s", "From a request to the last of its answer.", DURATIONS),
    FIRST_TOKEN: ("s", "From a request to the first piece of its answer.", FIRST_TOKENS),
    PER_TOKEN: ("s", "Per token after the first.", TOKEN_TIMES),
    USAGE: ("{token}", "Tokens of prompts and answers.", TOKENS),
    ACCEPTANCE: ("1", "Drafted tokens that were accepted, by answer.", RATES),
    WEIGHT: ("1", "Weights in effect, by answer and pair.", WEIGHTS),
}
"""Unit, description and buckets of what is measured."""

Attributes = dict[str, AttributeValue]


@dataclass
class Begun:
    """A request that is traced."""

    span: Span
    token: Token[Context]


class Spans:
    """See `tracing.Tracing`.

    Args:
        address, port: of the server, as it was configured.
    """

    def __init__(self, tracers: TracerProvider, meters: MeterProvider, *, address: str, port: int) -> None:
        self._tracers = tracers
        self._meters = meters
        self._place: Attributes = {"server.address": address, "server.port": port}
        self._tracer = tracers.get_tracer(NAME, __version__)
        meter = meters.get_meter(NAME, __version__)
        self._histograms = {
            name: meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=buckets)
            for name, (unit, description, buckets) in HISTOGRAMS.items()
        }

    def begin(self, record: Record, headers: Headers) -> Begun:
        """See `Tracing`; a trace that the caller has begun goes on."""
        parent = propagate.extract(headers)
        attributes: Attributes = {"http.request.method": record.method, **self._place}
        span = self._tracer.start_span(record.method, parent, SpanKind.SERVER, attributes)
        if (known := span.get_span_context()).is_valid:
            record.trace_id = trace.format_trace_id(known.trace_id)
        return Begun(span, context.attach(trace.set_span_in_context(span, parent)))

    def end(self, begun: object, record: Record, outcome: Outcome) -> None:
        """See `Tracing`."""
        assert isinstance(begun, Begun), "what begin gave"
        context.detach(begun.token)
        span = begun.span
        operation = _operation(record)
        span.update_name(_name(record, operation))
        span.set_attributes(
            {
                "http.route": record.route,
                "http.response.status_code": outcome.status,
                "eft.request_id": record.request_id,
                **({} if record.caller is None else {"eft.caller": record.caller}),
                **_error_type(outcome),
                **(_of_model(record, operation) if operation else {}),
                **_of_request(record),
                **_of_answers(record),
            }
        )
        if outcome.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end()
        if operation:
            self._measure(record, operation, outcome)

    def _measure(self, record: Record, operation: str, outcome: Outcome) -> None:
        common = {**_of_model(record, operation), **self._place}
        self._histograms[DURATION].record(record.elapsed_s, {**common, **_error_type(outcome)})
        if record.first_s is not None:
            self._histograms[FIRST_TOKEN].record(record.first_s, common)
        for result in record.results:
            self._histograms[USAGE].record(result.usage.prompt_tokens, {**common, "gen_ai.token.type": "input"})
            self._histograms[USAGE].record(result.usage.completion_tokens, {**common, "gen_ai.token.type": "output"})
            if result.usage.completion_tokens > 1 and (seconds := result.metadata.get("tpot_s")) is not None:
                self._histograms[PER_TOKEN].record(seconds, common)
            if (rate := result.metadata.get("acceptance_rate")) is not None:
                self._histograms[ACCEPTANCE].record(rate, common)
            for pair, weight in record.reward_weights.items():
                self._histograms[WEIGHT].record(peak(weight), {**common, "eft.pair": pair})

    def shutdown(self) -> None:
        """See `Tracing`."""
        self._tracers.shutdown()
        self._meters.shutdown()


def _operation(record: Record) -> str | None:
    """The name of what was asked; None: nothing that a model answers."""
    return OPERATIONS.get(record.route, "chat" if record.num_answers else None)


def _name(record: Record, operation: str | None) -> str:
    if operation is None:
        return f"{record.method} {record.route}"
    return operation if record.model is None else f"{operation} {record.model}"


def _error_type(outcome: Outcome) -> Attributes:
    return {} if outcome.status < 400 else {"error.type": outcome.code or outcome.type or str(outcome.status)}


def _of_model(record: Record, operation: str) -> Attributes:
    known: Attributes = {"gen_ai.operation.name": operation, "gen_ai.provider.name": PROVIDER}
    if record.model is not None:
        known |= {"gen_ai.request.model": record.model, "gen_ai.response.model": record.model}
    return known


def _of_request(record: Record) -> Attributes:
    asked: Attributes = {f"eft.reward_weights.{pair}": weight for pair, weight in told_weights(record).items()}
    asked |= {name: record.sampling[field] for field, name in SAMPLING.items() if field in record.sampling}
    if record.num_answers:
        asked["gen_ai.request.stream"] = record.is_stream
    if record.num_answers > 1:
        asked["gen_ai.request.choice.count"] = record.num_answers
    return asked


def _of_answers(record: Record) -> Attributes:
    results = record.results
    told: Attributes = {} if record.first_s is None else {"gen_ai.response.time_to_first_chunk": record.first_s}
    if not results:
        return told
    rates = [rate for result in results if (rate := result.metadata.get("acceptance_rate")) is not None]
    if rates:
        told["eft.acceptance_rate"] = sum(rates) / len(rates)
    return {
        **told,
        "gen_ai.response.finish_reasons": [result.finish_reason for result in results],
        "gen_ai.usage.input_tokens": sum(result.usage.prompt_tokens for result in results),
        "gen_ai.usage.output_tokens": sum(result.usage.completion_tokens for result in results),
        "gen_ai.usage.cache_read.input_tokens": sum(result.usage.cached_prompt_tokens for result in results),
        "gen_ai.usage.reasoning.output_tokens": sum(result.usage.reasoning_tokens for result in results),
    }


# ---- where they go -------------------------------------------------------------------------------------------------------


def from_environment(*, address: str, port: int) -> Spans:
    """Spans that go where the environment says.

    Raises:
        InvalidOptionError: it names an exporter or a protocol that is not there.
    """
    resource = _resource()
    tracers, readers = TracerProvider(resource=resource), []
    span_exporter, metric_exporter = _span_exporter(), _metric_exporter()
    if span_exporter is not None:
        tracers.add_span_processor(BatchSpanProcessor(span_exporter))
    if metric_exporter is not None:
        readers.append(PeriodicExportingMetricReader(metric_exporter))
    return Spans(tracers, MeterProvider(readers, resource), address=address, port=port)


def _resource() -> Resource:
    """What the environment says of this service, and its name and version where it says nothing."""
    known = Resource.create()
    own = {"service.version": __version__, "service.name": "eft-serve"}
    if not str(known.attributes.get("service.name", "unknown_service")).startswith("unknown_service"):
        del own["service.name"]
    return Resource(own).merge(known) if "service.name" not in own else known.merge(Resource(own))


def _span_exporter() -> SpanExporter | None:
    match _exporter("TRACES"):
        case "otlp":
            return OTLPSpanExporter()
        case "console":
            return ConsoleSpanExporter()
    return None


def _metric_exporter() -> MetricExporter | None:
    match _exporter("METRICS"):
        case "otlp":
            return OTLPMetricExporter()
        case "console":
            return ConsoleMetricExporter()
    return None


def _exporter(kind: str) -> str:
    """The exporter of one kind: otlp, console or none."""
    option = f"OTEL_{kind}_EXPORTER"
    name = os.environ.get(option) or "otlp"
    if name not in ("otlp", "console", "none"):
        raise errors.InvalidOptionError(
            f"{option} may be otlp, console or none, got {name!r}", option=option, value=name
        )
    for option in (f"OTEL_EXPORTER_OTLP_{kind}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = os.environ.get(option)
        if name == "otlp" and protocol not in (None, "", "http/protobuf"):
            raise errors.InvalidOptionError(
                f"{option} may be http/protobuf, got {protocol!r}; collectors take it at port 4318",
                option=option,
                value=protocol,
            )
    return name
