"""The page at / to try the server with a browser: files of the package, and nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import Response
from fastapi.responses import FileResponse

from eft_integrations.server.routes import Routes
from eft_integrations.server.service import Service

FOLDER = Path(__file__).parent / "page"
MEDIA_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""Of the files that are sent; whatever else lies in the folder is not."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""A browser loads and calls this server alone for the page, asks each time whether a file has changed, and shows it in no frame."""

FILES = {"/": "index.html"} | {
    f"/page/{path.name}": path.name
    for path in sorted(FOLDER.iterdir())
    if path.suffix in MEDIA_TYPES and path.name != "index.html"
}
"""By path. The page names them relative to itself, so that a proxy may put all of it under a prefix."""
PAGE_PATHS = frozenset(FILES)
"""They hold nothing secret and answer without a key; what they call does not."""


def page_routes(service: Service) -> Routes:
    """The page and its files."""
    routes = Routes(tag="page", bounds=service.settings.bounds)
    for path, name in FILES.items():
        routes.router.add_api_route(path, _sending(FOLDER / name), methods=["GET", "HEAD"], include_in_schema=False)
    return routes


def _sending(file: Path) -> Callable[[], Awaitable[Response]]:
    """An endpoint that sends one file."""

    async def send() -> Response:
        return FileResponse(file, media_type=MEDIA_TYPES[file.suffix], headers=HEADERS)

    return send
