"""OpenAI's API: chat completions, completions and responses."""

from __future__ import annotations

from typing import Any

from fastapi import Response

from eft_integrations.server.calls import Call
from eft_integrations.server.chat import chat_answering, chat_events, chat_reply
from eft_integrations.server.completions import completion_answering, completion_events, completion_reply
from eft_integrations.server.protocol import ChatBody, CompletionBody, SamplingBody
from eft_integrations.server.responses import responses_answering, responses_events, responses_reply
from eft_integrations.server.responses_protocol import ResponsesBody
from eft_integrations.server.routes import Routes
from eft_integrations.server.service import Service


def openai_routes(service: Service) -> Routes:
    """The routes that generate text."""
    routes = Routes(tag="generation", bounds=service.settings.bounds)
    settings = service.settings

    def include_usage(body: SamplingBody) -> bool:
        asked = body.stream_options is not None and bool(body.stream_options.include_usage)
        return asked or settings.force_usage

    @routes.posts("/v1/chat/completions", ChatBody, weighted=True)
    async def chat_completions(call: Call[ChatBody]) -> Response:
        answering = chat_answering(call.body, service.asking(call), default_max_tokens=settings.default_max_tokens)
        return await service.answer(
            call,
            reply=lambda: chat_reply(answering),
            events=lambda: chat_events(answering, include_usage=include_usage(call.body)),
        )

    @routes.posts("/v1/completions", CompletionBody, weighted=True)
    async def completions(call: Call[CompletionBody]) -> Response:
        answering = completion_answering(call.body, service.asking(call))
        how: dict[str, Any] = {"n": call.body.n, "echo": bool(call.body.echo)}
        return await service.answer(
            call,
            reply=lambda: completion_reply(answering, **how),
            events=lambda: completion_events(answering, **how, include_usage=include_usage(call.body)),
        )

    @routes.posts("/v1/responses", ResponsesBody, weighted=True)
    async def responses(call: Call[ResponsesBody]) -> Response:
        answering = responses_answering(call.body, service.asking(call), default_max_tokens=settings.default_max_tokens)
        return await service.answer(
            call,
            reply=lambda: responses_reply(answering, call.body),
            events=lambda: responses_events(answering, call.body),
        )

    return routes
