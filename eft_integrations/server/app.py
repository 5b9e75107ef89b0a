"""The application: routes, and what stands around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any

from fastapi import FastAPI, Header, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.middleware.cors import CORSMiddleware

from eft_integrations.chat.request import ChatRequest
from eft_integrations.server import errors
from eft_integrations.server.chat import chat_answering, chat_events, chat_reply
from eft_integrations.server.completions import completion_answering, completion_events, completion_reply
from eft_integrations.server.compositions import Composition, Compositions
from eft_integrations.server.limits import Guard, Pace
from eft_integrations.server.metrics import Counted, ServerMetrics
from eft_integrations.server.protocol import ChatBody, CompletionBody, SamplingBody, TokenizeBody
from eft_integrations.server.responses import responses_answering, responses_events, responses_reply
from eft_integrations.server.responses_protocol import ResponsesBody
from eft_integrations.server.settings import ServerSettings
from eft_integrations.server.streaming import TimeLimit, stream_response, while_connected
from eft_integrations.weights import HEADER
from eft_integrations.wire.openai import to_messages, to_tools

Weights = Annotated[
    str | None,
    Header(alias=HEADER, description="0.5 for every pair, or pair=0.5,other=1; the body's field goes first"),
]


def create_app(compositions: Iterable[Composition], settings: ServerSettings | None = None) -> FastAPI:
    """An application that serves compositions whose backends are ready. It does not close them."""
    settings = settings or ServerSettings()
    served = Compositions(compositions)
    app = FastAPI(title="EFT", description="Up-scaled language models behind OpenAI's API.", version="1")
    app.state.pace = Pace(max_num_seqs=settings.engine.max_num_seqs)
    metrics = ServerMetrics(served, app.state.pace)
    errors.install(app)
    _add_generation(app, served, settings, metrics)
    _add_information(app, served, metrics)
    paths = frozenset(route.path for route in app.routes if hasattr(route, "path"))
    app.add_middleware(Guard, api_keys=settings.keys, max_body_bytes=settings.max_body_bytes)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(Counted, metrics=metrics, paths=paths)
    return app


def _add_generation(app: FastAPI, served: Compositions, settings: ServerSettings, metrics: ServerMetrics) -> None:
    async def answer(
        request: Request, stream: bool | None, reply: Callable[[], Any], events: Callable[[], Any]
    ) -> Response:
        limit = TimeLimit(settings.request_timeout_s)
        if stream:
            return await stream_response(events(), request, limit)
        return JSONResponse(await while_connected(reply(), request.receive, limit))

    def include_usage(body: SamplingBody) -> bool:
        asked = body.stream_options is not None and bool(body.stream_options.include_usage)
        return asked or settings.force_usage

    @app.post("/v1/chat/completions", tags=["generation"], response_model=None)
    async def chat_completions(body: ChatBody, request: Request, weights: Weights = None) -> Response:
        chosen = served.choose(body.model, body=body.eft_reward_weights, header=weights)
        answering = chat_answering(body, chosen, metrics, default_max_tokens=settings.default_max_tokens)
        return await answer(
            request,
            body.stream,
            lambda: chat_reply(answering),
            lambda: chat_events(answering, include_usage=include_usage(body)),
        )

    @app.post("/v1/completions", tags=["generation"], response_model=None)
    async def completions(body: CompletionBody, request: Request, weights: Weights = None) -> Response:
        chosen = served.choose(body.model, body=body.eft_reward_weights, header=weights)
        answering = completion_answering(body, chosen, metrics)
        how: dict[str, Any] = {"n": body.n, "echo": bool(body.echo)}
        return await answer(
            request,
            body.stream,
            lambda: completion_reply(answering, **how),
            lambda: completion_events(answering, **how, include_usage=include_usage(body)),
        )

    @app.post("/v1/responses", tags=["generation"], response_model=None)
    async def responses(body: ResponsesBody, request: Request, weights: Weights = None) -> Response:
        chosen = served.choose(body.model, body=body.eft_reward_weights, header=weights)
        answering = responses_answering(body, chosen, metrics, default_max_tokens=settings.default_max_tokens)
        return await answer(
            request,
            body.stream,
            lambda: responses_reply(answering, body),
            lambda: responses_events(answering, body),
        )


def _add_information(app: FastAPI, served: Compositions, metrics: ServerMetrics) -> None:
    @app.get("/v1/models", tags=["information"])
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(composition) for composition in served]}

    @app.get("/v1/models/{model:path}", tags=["information"])
    def model(model: str) -> dict[str, Any]:
        return _model(served.choose(model, body=None, header=None).composition)

    @app.post("/tokenize", tags=["information"])
    def tokenize(body: TokenizeBody) -> dict[str, Any]:
        composition = served.choose(body.model, body=None, header=None).composition
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

    @app.get("/health", tags=["information"])
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", tags=["information"], response_class=Response)
    def prometheus() -> Response:
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


def _model(composition: Composition) -> dict[str, Any]:
    return {
        "id": composition.name,
        "object": "model",
        "created": composition.created,
        "owned_by": "eft",
        "max_model_len": composition.backend.context_len,
        "eft": {"dialect": "eft", "pairs": dict(composition.weights)},
    }
