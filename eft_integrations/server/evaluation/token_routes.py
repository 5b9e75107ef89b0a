"""Texts to tokens and back: /tokenize, /detokenize and /tokenizer_info, as vLLM has them."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from eft_engine import PromptOptions
from eft_engine.preparing import prepared
from eft_integrations.backends.engine import EngineBackend
from eft_integrations.chat.request import ChatRequest
from eft_integrations.json_types import JsonObject
from eft_integrations.server.bodies.calls import Call, caller_of, unused_around
from eft_integrations.server.callers.callers import Caller
from eft_integrations.server.compositions import Composition
from eft_integrations.server.errors import INVALID, ApiError, Kind
from eft_integrations.server.openai.completions_protocol import DetokenizeBody, TokenizeBody
from eft_integrations.server.openai.echo import engine_of
from eft_integrations.server.routes import Routes
from eft_integrations.server.service import Service
from eft_integrations.wire.openai import to_messages, to_tools


def token_routes(service: Service) -> Routes:
    """The routes that read tokens."""
    routes = Routes(tag="tokens", bounds=service.settings.bounds)

    def named(model: str | None, caller: Caller) -> Composition:
        """The composition of a name; lm-evaluation-harness sends none, and means the only one."""
        if model is not None:
            return service.served.choose(model, body=None, header=None, caller=caller).composition
        mine = service.served.of(caller)
        if not mine:
            raise ApiError("there is no model for you", Kind(404, INVALID, "model_not_found", "model"))
        return mine[0]

    @routes.posts("/tokenize", TokenizeBody)
    async def tokenize(call: Call[TokenizeBody]) -> JsonObject:
        tokenized = await prepared(_tokenized, call.body, named(call.body.model, call.caller))
        return {**tokenized, **_ignored(call)}

    @routes.posts("/detokenize", DetokenizeBody)
    async def detokenize(call: Call[DetokenizeBody]) -> JsonObject:
        engine = engine_of(named(call.body.model, call.caller), "tokens")
        return {"prompt": await prepared(engine.decode, call.body.tokens), **_ignored(call)}

    @routes.router.get("/tokenizer_info")
    def tokenizer_info(request: Request, model: str | None = None) -> dict[str, Any]:
        composition = named(model, caller_of(request))
        info = engine_of(composition, "model").tokenizer_info()
        own = {} if composition.chat_template is None else {"chat_template": composition.chat_template}
        return {**info, **own}

    return routes


def _ignored(call: Call[Any]) -> JsonObject:
    ignored = unused_around(call)
    return {"eft": {"ignored": [*ignored]}} if ignored else {}


def _tokenized(body: TokenizeBody, composition: Composition) -> JsonObject:
    backend = composition.backend
    request = composition.ask(_asked(body))
    if isinstance(backend, EngineBackend):
        token_ids = backend.prompt_ids(request, must_fit=True) if body.prompt != "" else []
        form = _form(composition, token_ids)
        if body.return_token_strs:
            form["token_strs"] = [token.token for token in backend.text_tokens(token_ids)]
        return form
    if body.return_token_strs:
        engine_of(composition, "return_token_strs")
    if body.prompt is not None:
        return _form(composition, backend.token_ids(body.prompt))
    count = backend.count_prompt_tokens(request)
    return {"count": count, "max_model_len": backend.context_len, "tokens": None}


def _asked(body: TokenizeBody) -> ChatRequest:
    if body.prompt is not None:
        options = PromptOptions(add_special_tokens=body.add_special_tokens)
        return ChatRequest(prompt=body.prompt, prompt_options=options)
    return ChatRequest(
        messages=to_messages([message.plain() for message in body.messages or ()]),
        tools=to_tools(body.tools or ()),
        **body.asked_reasoning(),
        template_variables=body.chat_template_kwargs or {},
    )


def _form(composition: Composition, token_ids: list[int]) -> JsonObject:
    return {"count": len(token_ids), "max_model_len": composition.backend.context_len, "tokens": [*token_ids]}
