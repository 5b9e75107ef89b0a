"""The application: its routes, and what stands around them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from eft_integrations.server import errors
from eft_integrations.server.anthropic.messages_errors import MessagesErrors
from eft_integrations.server.anthropic.messages_routes import messages_routes
from eft_integrations.server.callers.reloading import Reloader
from eft_integrations.server.compositions import Composition
from eft_integrations.server.entrance.guard import OPEN_PATHS, Guard
from eft_integrations.server.entrance.hosts import Hosts
from eft_integrations.server.entrance.paths import Paths
from eft_integrations.server.evaluation.batch_routes import batch_routes, batches_of
from eft_integrations.server.evaluation.scoring_routes import scoring_routes
from eft_integrations.server.evaluation.token_routes import token_routes
from eft_integrations.server.information_routes import information_routes
from eft_integrations.server.openai.openai_routes import openai_routes
from eft_integrations.server.page_routes import PAGE_PATHS, page_routes
from eft_integrations.server.routes import include
from eft_integrations.server.seen.tracing import tracing_of
from eft_integrations.server.seen.watching import Watched
from eft_integrations.server.service import Service
from eft_integrations.server.settings import ServerSettings

ENDING_S = 5.0
"""How long requests may take to end that were cut when the server stopped."""
NO_TELEMETRY: Any = dict.fromkeys(("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False)
"""FastAPI's own (versions that have none do not mind): its records of what cannot be read would hold what users wrote."""


def create_app(compositions: Iterable[Composition], settings: ServerSettings | None = None) -> FastAPI:
    """An application that serves compositions whose backends are ready. It does not close them."""
    return app_of(Service.of(compositions, settings or ServerSettings()))


def app_of(service: Service, *, reloader: Reloader | None = None) -> FastAPI:
    """The application of a service; a reloader watches while it runs.

    Raises:
        InvalidOptionError: traces are asked for, and OpenTelemetry is not installed.
    """
    settings = service.settings
    tracing = tracing_of(settings)
    batches = batches_of(service)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with contextlib.AsyncExitStack() as running:
            if reloader is not None:
                await running.enter_async_context(reloader.watching())
            if batches is not None:
                await running.enter_async_context(batches.working())
            yield
        service.health.drain()
        with contextlib.suppress(TimeoutError):  # requests that were cut are told of before the process ends
            async with asyncio.timeout(ENDING_S):
                while service.metrics.num_in_flight:
                    await asyncio.sleep(0.01)
        if tracing is not None:
            await asyncio.to_thread(tracing.shutdown)

    app = FastAPI(
        title="EFT",
        description="Up-scaled language models behind OpenAI's API.",
        version="1",
        lifespan=lifespan,
        redirect_slashes=False,
        telemetry=NO_TELEMETRY,
    )
    app.state.pace = service.pace
    errors.install(app)
    open_paths = OPEN_PATHS | ({"/metrics"} if settings.metrics_without_key else set())
    subjects = [
        openai_routes(service),
        messages_routes(service),
        scoring_routes(service),
        token_routes(service),
        information_routes(service),
    ]
    if batches is not None:
        subjects.append(batch_routes(service, batches))
    if settings.page:
        subjects.append(page_routes(service))
        open_paths |= PAGE_PATHS
    include(app, subjects)
    app.add_middleware(Paths)
    app.add_middleware(
        Guard,
        ring=service.ring,
        max_body_bytes=settings.max_body_bytes,
        connections=settings.connections,
        open_paths=open_paths,
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(
        Hosts,
        ring=service.ring,
        allowed=settings.allowed_hosts,
        origins=settings.cors_origins,
        is_local_file=settings.uds is not None,
    )
    app.add_middleware(
        Watched,
        metrics=service.metrics,
        access_log=settings.access_log,
        tracing=tracing,
        is_ending=lambda: service.health.is_draining,
    )
    app.add_middleware(MessagesErrors)
    return app
