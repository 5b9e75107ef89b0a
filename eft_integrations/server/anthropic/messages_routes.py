"""Anthropic's API: messages, and the tokens of one."""

from __future__ import annotations

from typing import Any

from fastapi import Response

from eft_integrations.server.anthropic.messages import (
    conversation_request,
    input_tokens,
    messages_answering,
    messages_events,
    messages_reply,
)
from eft_integrations.server.anthropic.messages_errors import error_form
from eft_integrations.server.anthropic.messages_protocol import CountTokensBody, MessagesBody
from eft_integrations.server.bodies.calls import Call, made_of, unused_around
from eft_integrations.server.routes import Routes
from eft_integrations.server.service import Service
from eft_integrations.server.streaming import StreamForm

FORM = StreamForm(ping=b'event: ping\ndata: {"type":"ping"}\n\n', failure=error_form)


def messages_routes(service: Service) -> Routes:
    """The routes that Anthropic's clients use."""
    routes = Routes(tag="messages", bounds=service.settings.bounds)

    @routes.posts("/v1/messages", MessagesBody, weighted=True)
    async def messages(call: Call[MessagesBody]) -> Response:
        answering = await made_of(messages_answering, call.body, service.asking(call))
        return await service.answer(
            call, reply=lambda: messages_reply(answering), events=lambda: messages_events(answering), form=FORM
        )

    @routes.posts("/v1/messages/count_tokens", CountTokensBody)
    async def count_tokens(call: Call[CountTokensBody]) -> dict[str, Any]:
        chosen = service.choose(call, call.body.model)
        ignored = unused_around(call)
        request = await made_of(conversation_request, call.body)
        counted: dict[str, Any] = {"input_tokens": await input_tokens(request, chosen)}
        return {**counted, "eft": {"ignored": ignored}} if ignored else counted

    return routes
