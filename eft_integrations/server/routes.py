"""How routes read their calls, and how the description of the API (OpenAPI) tells what they read."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from eft_integrations.server.bodies.bounds import BoundSettings
from eft_integrations.server.bodies.calls import Call, reads
from eft_integrations.weights import HEADER

REFERENCE = "#/components/schemas/{model}"
WEIGHTS_HEADER = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "0.5 for every pair, or pair=0.5,other=1; the body's field goes first",
}


class Routes:
    """Routes of one subject. `posts` adds one that reads a JSON body."""

    def __init__(self, *, tag: str, bounds: BoundSettings) -> None:
        self.router = APIRouter(tags=[tag])
        self.bodies: list[type[BaseModel]] = []
        self._bounds = bounds

    def posts(
        self,
        path: str,
        body: type[BaseModel],
        *,
        weighted: bool = False,
        status: int = 200,
        may_be_empty: bool = False,
    ) -> Callable[[Callable[[Call[Any]], Awaitable[Any]]], None]:
        """A decorator for a coroutine function of one call; see `calls.reads`."""
        self.bodies.append(body)
        extra: dict[str, Any] = {
            "requestBody": {
                "required": not may_be_empty,
                "content": {"application/json": {"schema": {"$ref": REFERENCE.format(model=body.__name__)}}},
            }
        }
        extra["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"{(\w+)}", path)
        ]
        if weighted:
            extra["parameters"].append(WEIGHTS_HEADER)

        def add(answer: Callable[[Call[Any]], Awaitable[Any]]) -> None:
            async def route(call: Any = Depends(reads(body, self._bounds, may_be_empty=may_be_empty))) -> Any:
                return await answer(call)

            route.__name__ = answer.__name__
            route.__doc__ = answer.__doc__
            self.router.post(path, response_model=None, openapi_extra=extra, status_code=status)(route)

        return add


def include(app: FastAPI, subjects: list[Routes]) -> None:
    """Add routes to an application, and their bodies to its description."""
    bodies: list[type[BaseModel]] = []
    for subject in subjects:
        app.include_router(subject.router)
        bodies += subject.bodies
    app.state.routes = [*app.routes, *(route for subject in subjects for route in subject.router.routes)]
    app.state.paths = {getattr(route, "path", "") for route in app.state.routes}
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            described = describe()
            _, found = models_json_schema([(body, "validation") for body in bodies], ref_template=REFERENCE)
            described.setdefault("components", {}).setdefault("schemas", {}).update(found.get("$defs", {}))
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
