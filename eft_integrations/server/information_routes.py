"""What the server has and how it is: models, tokens, health and metrics."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from eft_integrations.chat.request import ChatRequest
from eft_integrations.server.callers import Caller
from eft_integrations.server.calls import Call, caller_of
from eft_integrations.server.compositions import Composition
from eft_integrations.server.protocol import TokenizeBody
from eft_integrations.server.routes import Routes
from eft_integrations.server.service import Service
from eft_integrations.wire.openai import to_messages, to_tools


def information_routes(service: Service) -> Routes:
    """The routes that generate nothing."""
    routes = Routes(tag="information", bounds=service.settings.bounds)

    @routes.router.get("/v1/models")
    def models(request: Request) -> dict[str, Any]:
        caller = caller_of(request)
        return {"object": "list", "data": [_model(own, caller) for own in service.served.of(caller)]}

    @routes.router.get("/v1/models/{model:path}")
    def model(model: str, request: Request) -> dict[str, Any]:
        caller = caller_of(request)
        return _model(service.served.choose(model, body=None, header=None, caller=caller).composition, caller)

    @routes.posts("/tokenize", TokenizeBody)
    async def tokenize(call: Call[TokenizeBody]) -> dict[str, Any]:
        composition = service.choose(call, call.body.model).composition
        return await asyncio.to_thread(_tokenized, call.body, composition)

    @routes.router.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @routes.router.get("/metrics", response_class=Response)
    def prometheus() -> Response:
        return Response(service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    return routes


def _tokenized(body: TokenizeBody, composition: Composition) -> dict[str, Any]:
    backend = composition.backend
    if body.prompt is not None:
        tokens = backend.token_ids(body.prompt)
        return {"count": len(tokens), "max_model_len": backend.context_len, "tokens": tokens}
    request = ChatRequest(
        messages=to_messages([message.model_dump(exclude_none=True) for message in body.messages or ()]),
        tools=to_tools(body.tools or ()),
        **body.asked_reasoning(),
        template_variables=body.chat_template_kwargs or {},
    )
    count = backend.count_prompt_tokens(composition.ask(request))
    return {"count": count, "max_model_len": backend.context_len, "tokens": None}


def _model(composition: Composition, caller: Caller) -> dict[str, Any]:
    return {
        "id": composition.name,
        "object": "model",
        "created": composition.created,
        "owned_by": "eft",
        "max_model_len": composition.backend.context_len,
        "eft": {
            "dialect": "eft",
            "pairs": dict(composition.weights),
            "allowed_weights": composition.allowed(caller),
        },
    }
