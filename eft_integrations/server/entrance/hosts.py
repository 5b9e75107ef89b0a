"""Which names the server answers to, and which web pages may call it.

A web page on the internet can make a browser call any address, also one of the machine that it runs on. Where a key is asked for,
a page that does not know it gets nothing. A server without keys asks under which name it was called (a page whose own name was made
to mean 127.0.0.1 calls it by that name), and where the page came from (a text that is JSON can be posted from anywhere).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from eft_integrations.server.callers.callers import KeyRing
from eft_integrations.server.errors import PERMISSION, Kind, error_response, shortened


class Hosts:
    """ASGI middleware that refuses requests under foreign names (421) and of foreign web pages (403).

    Args:
        ring: the keys. Without any, the names of this machine and `allowed` are answered, and pages are asked for; with keys, names
            are looked at only where `allowed` says something, and pages never.
        allowed: names or addresses, or `*.example.org` for all names of a domain; `*`: any.
        origins: pages of other servers that may call this one; `*`: any.
        is_local_file: the server listens on a unix socket, which no browser reaches; names are not looked at.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        ring: KeyRing,
        allowed: Sequence[str] = (),
        origins: Sequence[str] = (),
        is_local_file: bool = False,
    ) -> None:
        self._app = app
        self._ring = ring
        self._allowed = [name.lower() for name in allowed]
        self._origins = frozenset(origins)
        self._is_local_file = is_local_file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host = headers.get("host")
        if host is not None and not self._answers_to(host):
            refusal = error_response(
                f"this server does not answer to the name {shortened(host)!r}; call it by the name or address of this machine, or "
                "let its operator add the name to allowed_hosts",
                Kind(421, PERMISSION, "host_not_allowed"),
            )
        elif not len(self._ring) and not self._may_call(scope["method"], host, headers):
            refusal = error_response(
                "web pages of other servers may not call this one; its operator may add the page's origin "
                f"({shortened(headers.get('origin', 'which it does not tell'))}) to cors_origins",
                Kind(403, PERMISSION, "origin_not_allowed"),
            )
        else:
            await self._app(scope, receive, send)
            return
        await refusal(scope, receive, send)

    def _answers_to(self, host: str) -> bool:
        if self._is_local_file or (len(self._ring) and not self._allowed):
            return True
        name = host_name(host)
        if name is None:
            return False
        return is_this_machine(name) or any(_fits(name, allowed) for allowed in self._allowed)

    def _may_call(self, method: str, host: str | None, headers: Headers) -> bool:
        if "*" in self._origins:
            return True
        origin = headers.get("origin")
        if origin is not None:
            own = None if host is None else host.lower()
            return origin in self._origins or ("://" in origin and origin.partition("://")[2].lower() == own)
        followed = method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
        return headers.get("sec-fetch-site") != "cross-site" or followed  # a link may lead here


def host_name(host: str) -> str | None:
    """The name or address of a `Host` header, without its port; None: it is none.

    >>> host_name("LocalHost:8000"), host_name("[::1]:8000"), host_name("a b"), host_name("")
    ('localhost', '::1', None, None)
    """
    try:
        parts = urlsplit(f"//{host}")
        name, _ = parts.hostname, parts.port  # a port that is no number is an error
    except ValueError:
        return None
    if not name or parts.path or parts.username is not None or any(sign.isspace() for sign in host):
        return None
    return name.rstrip(".")


def is_this_machine(name: str) -> bool:
    """Whether a name means this machine wherever it is asked.

    >>> [is_this_machine(name) for name in ("localhost", "eft.localhost", "127.0.0.9", "::1", "localhost.example.org")]
    [True, True, True, True, False]
    """
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def _fits(name: str, allowed: str) -> bool:
    return allowed in ("*", name) or (allowed.startswith("*.") and name.endswith(allowed[1:]))
