"""Spans and measurements of OpenTelemetry: what is in them, that no text is, and that a collector can read them."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import httpx
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from eft_engine import Engine, errors
from eft_integrations.backends.pool import backend_of
from eft_integrations.backends.protocol import ChatBackend
from eft_integrations.backends.scripted import Broken, ScriptedBackend
from eft_integrations.server import app as app_module
from eft_integrations.server.seen.spans import Spans
from eft_integrations.server.seen.tracing import tracing_of
from eft_integrations.server.settings import ServerSettings
from tests.integrations.server.logged import logging_to
from tests.integrations.server.serving import in_process, running
from tests.toy import make_trio

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def _no_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment of these tests, or another file's conftest, says about OpenTelemetry is no matter of theirs."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


class Traced:
    """A server whose spans and measurements stay in memory."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._spans, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.tracing = Spans(tracers, MeterProvider([self._reader]), address="127.0.0.1", port=8000)
        patch.setattr(app_module, "tracing_of", lambda settings: self.tracing)

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        """Those that have ended."""
        return self._spans.get_finished_spans()

    @property
    def points(self) -> list[tuple[str, dict[str, Any], float, int]]:
        """Of every histogram its name, attributes, sum and count."""
        data = self._reader.get_metrics_data()
        assert data is not None
        return [
            (metric.name, dict(point.attributes or {}), point.sum, point.count)  # type: ignore[union-attr]
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
        ]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Traced:
    """What the server of this test is traced by."""
    return Traced(monkeypatch)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """A small engine."""
    with make_trio("llama").engine() as engine:
        yield engine


@pytest.mark.parametrize("stream", [False, True])
async def test_span_of_an_answer_has_the_conventions_names(traced: Traced, engine: Engine, stream: bool) -> None:
    asked = {
        "model": "m", "prompt": "abc", "max_tokens": 4, "temperature": 0.5, "top_p": 0.9, "seed": 7, "ignore_eos": True,
        "eft_reward_weights": 0.5, "stream": stream, "stop": ["a secret stop"],
    }  # fmt: skip
    with logging_to() as lines:
        async with in_process({"m": backend_of(engine)}) as client:
            response = await client.post(TEXT, json=asked, headers={"traceparent": PARENT, "X-Request-Id": "run-1"})
    assert response.status_code == 200
    (span,) = traced.spans
    assert (span.name, span.kind, span.status.status_code) == ("text_completion m", SpanKind.SERVER, StatusCode.UNSET)
    assert span.context is not None
    assert span.context.trace_id == int(PARENT.split("-")[1], 16), "the caller's trace goes on"
    assert span.parent is not None
    assert span.parent.span_id == int(PARENT.split("-")[2], 16)
    found = dict(span.attributes or {})
    assert found.pop("gen_ai.response.time_to_first_chunk") > 0  # type: ignore[operator]
    assert found.pop("gen_ai.usage.cache_read.input_tokens") is not None
    assert 0 <= found.pop("eft.acceptance_rate") <= 1  # type: ignore[operator]
    assert found == {
        "http.request.method": "POST",
        "http.route": TEXT,
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
        "server.port": 8000,
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "eft",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "m",
        "gen_ai.request.stream": stream,
        "gen_ai.request.max_tokens": 4,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.seed": 7,
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.usage.reasoning.output_tokens": 0,
        "eft.caller": "anybody",
        "eft.request_id": "run-1",
        "eft.reward_weights.chat": 0.5,
    }
    assert lines.of(".server.access")[0]["trace_id"] == PARENT.split("-")[1]


async def test_measurements_have_the_conventions_names(traced: Traced, engine: Engine) -> None:
    async with in_process({"m": backend_of(engine)}) as client:
        await client.post(TEXT, json={"model": "m", "prompt": "abc", "max_tokens": 4, "ignore_eos": True, "n": 2})
    common = {
        "gen_ai.operation.name": "text_completion", "gen_ai.provider.name": "eft", "gen_ai.request.model": "m",
        "gen_ai.response.model": "m", "server.address": "127.0.0.1", "server.port": 8000,
    }  # fmt: skip
    counts = {(name, *sorted(set(own.items()) - set(common.items()))): count for name, own, _, count in traced.points}
    assert counts == {
        ("gen_ai.server.request.duration",): 1,
        ("gen_ai.server.time_to_first_token",): 1,
        ("gen_ai.server.time_per_output_token",): 2,
        ("gen_ai.client.token.usage", ("gen_ai.token.type", "input")): 2,
        ("gen_ai.client.token.usage", ("gen_ai.token.type", "output")): 2,
        ("eft.acceptance_rate",): 2,
        ("eft.reward_weight", ("eft.pair", "chat")): 2,
    }
    (span,) = traced.spans
    assert (span.attributes or {})["gen_ai.request.choice.count"] == 2


async def test_failures_are_told_by_code_and_only_the_servers_own_are_errors(traced: Traced) -> None:
    replies = [
        errors.StepOutOfMemoryError("a secret"),
        Broken("one two", IndexError("a secret"), after=1),
        errors.ContextOverflowError("a secret", prompt_len=1, context_len=1),
    ]
    asked = {"model": "m", "messages": [{"role": "user", "content": "a secret"}]}
    async with in_process({"m": ScriptedBackend(replies)}) as client:
        for number in range(3):
            await client.post(CHAT, json={**asked, "stream": number == 1})
        await client.post(CHAT, json={**asked, "model": "a secret"})
        await client.get("/v1/models")
        await client.get("/health")
    told = [
        (span.name, (span.attributes or {}).get("error.type"), (span.attributes or {})["http.response.status_code"],
         span.status.status_code)
        for span in traced.spans
    ]  # fmt: skip
    assert told == [
        ("chat m", "out_of_memory", 503, StatusCode.ERROR),
        ("chat m", "unforeseen", 500, StatusCode.ERROR),
        ("chat m", "context_length_exceeded", 400, StatusCode.UNSET),
        ("chat", "model_not_found", 404, StatusCode.UNSET),
        ("GET /v1/models", None, 200, StatusCode.UNSET),
    ]


async def test_no_text_of_a_user_is_in_a_span_or_a_measurement(traced: Traced, engine: Engine) -> None:
    secret = "xyzzy"
    backends: dict[str, ChatBackend] = {"m": backend_of(engine), "broken": ScriptedBackend([IndexError(secret)] * 4)}
    async with in_process(backends) as client:
        for model in ("m", "broken", secret, f"m@{secret}=1"):
            await client.post(
                CHAT,
                json={
                    "model": model,
                    "messages": [{"role": "user", "content": secret}],
                    "stop": [secret],
                    "user": secret,
                },
                headers={"X-Secret": secret, "baggage": f"a={secret}", "Host": "localhost"},
            )
        await client.get(f"/{secret}?{secret}")
    assert len(traced.spans) == 5
    assert secret not in "".join(span.to_json() for span in traced.spans) + str(traced.points)


# ---- where they go -------------------------------------------------------------------------------------------------------


class Collector(BaseHTTPRequestHandler):
    """Reads what OTLP sends over HTTP."""

    traces: ClassVar[list[ExportTraceServiceRequest]] = []
    metrics: ClassVar[list[ExportMetricsServiceRequest]] = []

    def do_POST(self) -> None:
        """Take one message."""
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            data = gzip.decompress(data)
        if self.path == "/v1/traces":
            self.traces.append(ExportTraceServiceRequest.FromString(data))
        elif self.path == "/v1/metrics":
            self.metrics.append(ExportMetricsServiceRequest.FromString(data))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def collector() -> Iterator[str]:
    """The address of a collector."""
    Collector.traces.clear()
    Collector.metrics.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join(10)


def test_collector_gets_both_when_the_environment_names_it(
    collector: str, monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    with running({"m": backend_of(engine)}) as url:
        response = httpx.post(f"{url}{TEXT}", json={"model": "m", "prompt": "abc", "max_tokens": 2}, timeout=60)
    assert response.status_code == 200
    spans = [
        (resource.resource, span)
        for request in Collector.traces
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    ((resource, span),) = spans
    known = {attribute.key: attribute.value.string_value for attribute in resource.attributes}
    assert known["service.name"] == "eft-serve"
    assert known["deployment.environment.name"] == "test"
    assert span.name == "text_completion m"
    names = {
        metric.name
        for request in Collector.metrics
        for resource_metrics in request.resource_metrics
        for scope_metrics in resource_metrics.scope_metrics
        for metric in scope_metrics.metrics
    }
    assert {"gen_ai.server.request.duration", "gen_ai.server.time_to_first_token", "gen_ai.client.token.usage"} <= names


def test_name_that_the_environment_gives_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from eft_integrations.server.seen import spans

    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    assert spans._resource().attributes["service.name"] == "mine"


@pytest.mark.parametrize(
    ("environment", "otel", "is_on"),
    [
        ({}, None, False),
        ({}, False, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, None, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9"}, None, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, False, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"}, True, False),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}, True, True),
    ],
)
def test_who_turns_it_on(
    environment: dict[str, str], otel: bool | None, is_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"OTEL_METRICS_EXPORTER": "none", **environment}.items():
        monkeypatch.setenv(name, value)
    tracing = tracing_of(ServerSettings(otel=otel))
    assert (tracing is not None) == is_on
    if tracing is not None:
        tracing.shutdown()


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_TRACES_EXPORTER", "jaeger"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]
)
def test_what_is_not_there_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(errors.InvalidOptionError, match=f"{name} may be .*{value}"):
        tracing_of(ServerSettings(otel=True))


def test_missing_package_is_an_error_that_names_the_extra_or_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "eft_integrations.server.seen.spans", raising=False)
    monkeypatch.delattr("eft_integrations.server.seen.spans", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(errors.InvalidOptionError, match=r"pip install 'eft-engine\[otel\]'"):
        tracing_of(ServerSettings(otel=True))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert tracing_of(ServerSettings()) is None
    assert "eft-engine[otel]" in caplog.text


def test_nothing_is_imported_while_it_is_off() -> None:
    code = (
        "import sys\nfrom tests.integrations.server.serving import make_app\n"
        "from eft_integrations.backends.scripted import ScriptedBackend\nmake_app({'m': ScriptedBackend([])})\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
