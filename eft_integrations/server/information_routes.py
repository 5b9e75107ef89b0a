"""What the server has and how it is: models, tokens, health and metrics."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from eft_engine.weights import weights_as_json
from eft_integrations.server.bodies.calls import caller_of
from eft_integrations.server.callers.callers import Caller
from eft_integrations.server.compositions import Composition
from eft_integrations.server.routes import Routes
from eft_integrations.server.seen.health import Finding
from eft_integrations.server.service import Service


def information_routes(service: Service) -> Routes:
    """The routes that generate nothing."""
    routes = Routes(tag="information", bounds=service.settings.bounds)

    @routes.router.get("/v1/models")
    def models(request: Request) -> dict[str, Any]:
        caller = caller_of(request)
        data = [_model(own, caller) for own in service.served.of(caller)]
        ids = [own["id"] for own in data] or [None]
        return {"object": "list", "data": data, "has_more": False, "first_id": ids[0], "last_id": ids[-1]}

    @routes.router.get("/v1/models/{model:path}")
    def model(model: str, request: Request) -> dict[str, Any]:
        caller = caller_of(request)
        return _model(service.served.choose(model, body=None, header=None, caller=caller).composition, caller)

    @routes.router.head("/health", include_in_schema=False)
    @routes.router.get("/health")
    async def health() -> Response:
        return _judged("ok", service.health.deaths())

    @routes.router.head("/ready", include_in_schema=False)
    @routes.router.get("/ready")
    async def ready() -> Response:
        return _judged("ready", await service.health.obstacles())

    @routes.router.get("/metrics", response_class=Response)
    def prometheus() -> Response:
        return Response(service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    return routes


def _judged(status: str, findings: list[Finding]) -> JSONResponse:
    """200 where nothing was found, else 503 with what was."""
    if not findings:
        return JSONResponse({"status": status})
    return JSONResponse({"status": f"not {status}", "findings": [finding.form for finding in findings]}, 503)


def _model(composition: Composition, caller: Caller) -> dict[str, Any]:
    return {
        "id": composition.name,
        "object": "model",
        "created": composition.created,
        "owned_by": "eft",
        "type": "model",
        "display_name": composition.name,
        "created_at": datetime.fromtimestamp(composition.created, UTC).isoformat().replace("+00:00", "Z"),
        "max_model_len": composition.backend.context_len,
        "eft": {
            "dialect": "eft",
            "pairs": weights_as_json(composition.weights),
            "allowed_weights": composition.allowed(caller),
            **composition.steering_told(caller),
        },
    }
