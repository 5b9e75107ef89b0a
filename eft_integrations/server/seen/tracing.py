"""Traces and metrics of OpenTelemetry, if they are wanted: who reads this file has not imported it.

Where they go and how is said by the standard variables of the environment (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`,
`OTEL_TRACES_SAMPLER`, ...); `spans` does the work.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Protocol

from starlette.datastructures import Headers

from eft_engine import errors
from eft_integrations.server.seen.outcomes import Outcome
from eft_integrations.server.seen.records import Record

if TYPE_CHECKING:
    from eft_integrations.server.settings import ServerSettings

ENDPOINTS = tuple(f"OTEL_EXPORTER_OTLP_{kind}ENDPOINT" for kind in ("", "TRACES_", "METRICS_"))
INSTALL = "pip install 'eft-engine[otel]'"

logger = logging.getLogger(__name__)


class Tracing(Protocol):
    """What is told of every request, when it comes and when it has ended."""

    def begin(self, record: Record, headers: Headers) -> object:
        """A request has come. Gives what `end` wants to have back."""

    def end(self, begun: object, record: Record, outcome: Outcome) -> None:
        """It has ended."""

    def shutdown(self) -> None:
        """Send what is left; blocks."""


def tracing_of(settings: ServerSettings) -> Tracing | None:
    """What the settings and the environment ask for; None: nothing.

    Raises:
        InvalidOptionError: it is asked for and not installed, or the environment asks for what is not there.
    """
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    has_endpoint = any(os.environ.get(name) for name in ENDPOINTS)
    if is_disabled or not (has_endpoint if settings.otel is None else settings.otel):
        return None
    try:
        from eft_integrations.server.seen import spans
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        reason = f"OpenTelemetry is not installed here ({error.name}): {INSTALL}"
        if settings.otel is None:
            logger.warning("OTEL_EXPORTER_OTLP_ENDPOINT is set, and nothing is sent there: %s", reason)
            return None
        raise errors.InvalidOptionError(f"otel: {reason}", option="otel", value=True) from None
    return spans.from_environment(address=settings.host, port=settings.port)
