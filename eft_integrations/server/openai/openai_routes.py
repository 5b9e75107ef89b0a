"""OpenAI's API: chat completions, completions and responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query, Request, Response

from eft_integrations.server.bodies.calls import Call, caller_of, made_of
from eft_integrations.server.bodies.protocol import ChatBody, SamplingBody
from eft_integrations.server.openai.chat import chat_answering, chat_events, chat_reply
from eft_integrations.server.openai.completions import completion_answering, completion_events, completion_reply
from eft_integrations.server.openai.completions_protocol import CompletionBody
from eft_integrations.server.openai.responses import FORM, responses_events, responses_exchange, responses_reply
from eft_integrations.server.openai.responses_protocol import ResponsesBody
from eft_integrations.server.openai.stored_responses import MOST_LISTED, page_of
from eft_integrations.server.routes import Routes
from eft_integrations.server.service import Service
from eft_integrations.wire.openai import wrong


def openai_routes(service: Service) -> Routes:
    """The routes that generate text."""
    routes = Routes(tag="generation", bounds=service.settings.bounds)
    settings = service.settings

    def include_usage(body: SamplingBody) -> bool:
        asked = body.stream_options is not None and bool(body.stream_options.include_usage)
        return asked or settings.force_usage

    @routes.posts("/v1/chat/completions", ChatBody, weighted=True)
    async def chat_completions(call: Call[ChatBody]) -> Response:
        answering = await made_of(
            chat_answering, call.body, service.asking(call), default_max_tokens=settings.default_max_tokens
        )
        return await service.answer(
            call,
            reply=lambda: chat_reply(answering),
            events=lambda: chat_events(answering, include_usage=include_usage(call.body)),
        )

    @routes.posts("/v1/completions", CompletionBody, weighted=True)
    async def completions(call: Call[CompletionBody]) -> Response:
        answering, echo = await made_of(completion_answering, call.body, service.asking(call))
        return await service.answer(
            call,
            reply=lambda: completion_reply(answering, echo, n=call.body.n),
            events=lambda: completion_events(answering, echo, n=call.body.n, include_usage=include_usage(call.body)),
        )

    @routes.posts("/v1/responses", ResponsesBody, weighted=True)
    async def responses(call: Call[ResponsesBody]) -> Response:
        exchange = await responses_exchange(
            call.body, service.asking(call), service.responses, default_max_tokens=settings.default_max_tokens
        )
        return await service.answer(
            call,
            reply=lambda: responses_reply(exchange),
            events=lambda: responses_events(exchange),
            form=FORM,
        )

    @routes.router.get("/v1/responses/{response_id}")
    def stored_response(response_id: str, request: Request, stream: bool = False) -> dict[str, Any]:
        if stream:
            raise wrong("stream", "an answer that is kept is whole; read it without stream", stream)
        return dict(service.responses.find(caller_of(request), response_id).response)

    @routes.router.delete("/v1/responses/{response_id}")
    def forget_response(response_id: str, request: Request) -> dict[str, Any]:
        service.responses.remove(caller_of(request), response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    @routes.router.get("/v1/responses/{response_id}/input_items")
    def input_items(
        response_id: str,
        request: Request,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 20,
    ) -> dict[str, Any]:
        inputs = service.responses.find(caller_of(request), response_id).inputs
        return page_of(inputs if order == "asc" else inputs[::-1], after=after, limit=limit)

    return routes
