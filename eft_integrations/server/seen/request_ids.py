"""The id of a request: the client's own where it sends one, in the logs, in the engine and in the answer."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers

HEADER = "x-request-id"
ALLOWED = re.compile(r"[A-Za-z0-9._:-]{1,128}")
"""What a client's own id may be: nothing that could end a line of a log, or mean anything in a path or a query."""


def request_id_of(headers: Headers) -> str:
    """The id that a client sends, or else a new one.

    >>> request_id_of(Headers({"X-Request-Id": "run-7"})), len(request_id_of(Headers({"X-Request-Id": "a b"})))
    ('run-7', 32)
    """
    given = headers.get(HEADER, "")
    return given if ALLOWED.fullmatch(given) else uuid.uuid4().hex


def answer_id(request_id: str, index: int, num_answers: int) -> str:
    """The id of one of the answers to a request.

    >>> answer_id("run-7", 0, 1), answer_id("run-7", 1, 2)
    ('run-7', 'run-7-1')
    """
    return request_id if num_answers == 1 else f"{request_id}-{index}"
