"""The application: its routes, and what stands around them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterable

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from eft_integrations.server import errors
from eft_integrations.server.compositions import Composition
from eft_integrations.server.information_routes import information_routes
from eft_integrations.server.limits import Guard
from eft_integrations.server.metrics import Counted
from eft_integrations.server.openai_routes import openai_routes
from eft_integrations.server.reloading import Reloader
from eft_integrations.server.request_ids import RequestIds
from eft_integrations.server.routes import include
from eft_integrations.server.service import Service
from eft_integrations.server.settings import ServerSettings


def create_app(compositions: Iterable[Composition], settings: ServerSettings | None = None) -> FastAPI:
    """An application that serves compositions whose backends are ready. It does not close them."""
    return app_of(Service.of(compositions, settings or ServerSettings()))


def app_of(service: Service, *, reloader: Reloader | None = None) -> FastAPI:
    """The application of a service; a reloader watches while it runs."""
    settings = service.settings

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with contextlib.AsyncExitStack() as running:
            if reloader is not None:
                await running.enter_async_context(reloader.watching())
            yield

    app = FastAPI(
        title="EFT", description="Up-scaled language models behind OpenAI's API.", version="1", lifespan=lifespan
    )
    app.state.pace = service.pace
    errors.install(app)
    include(app, [openai_routes(service), information_routes(service)])
    app.add_middleware(Guard, ring=service.ring, max_body_bytes=settings.max_body_bytes)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(Counted, metrics=service.metrics)
    app.add_middleware(RequestIds)
    return app
