"""The lines of a batch's file, each a request."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from eft_integrations.json_types import JsonObject
from eft_integrations.server.errors import shortened

KEYS = ("custom_id", "method", "url", "body")
MAX_FINDINGS = 20
"""So many bad lines are told of."""


class BadLinesError(Exception):
    """The file is no batch. `findings` are in OpenAI's form."""

    def __init__(self, findings: list[JsonObject]) -> None:
        super().__init__(f"{len(findings)} bad lines")
        self.findings = findings


class _BadLineError(Exception):
    """Why a line is no request; `code` and `param` as in a finding."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


@dataclass(frozen=True)
class Line:
    """One request."""

    custom_id: str
    body: bytes


def read_lines(path: Path, endpoint: str, *, max_lines: int) -> list[Line]:
    """All requests of a file; empty lines are skipped.

    Raises:
        BadLinesError: there are none or too many, or a line is no request to the endpoint.
    """
    lines: list[Line] = []
    known: set[str] = set()
    findings: list[JsonObject] = []
    with path.open("rb") as stream:
        for number, text in enumerate(stream, start=1):
            if not text.strip():
                continue
            if len(lines) == max_lines:
                findings.append(
                    _finding(None, "too_many_lines", f"a batch may have {max_lines} requests; split the file")
                )
                break
            try:
                line = _line(text, endpoint, known)
            except _BadLineError as error:
                findings.append(_finding(number, error.code, str(error), error.param))
                if len(findings) == MAX_FINDINGS:
                    break
                continue
            known.add(line.custom_id)
            lines.append(line)
    if findings or not lines:
        raise BadLinesError(findings or [_finding(None, "empty_file", "the file has no lines")])
    return lines


def _line(text: bytes, endpoint: str, known: set[str]) -> Line:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise _BadLineError("invalid_json_line", "the line is not JSON") from None
    if not isinstance(value, dict):
        raise _BadLineError("invalid_json_line", "the line is no JSON object")
    if further := [str(name)[:80] for name in value if name not in KEYS]:
        raise _BadLineError(
            "unknown_parameter",
            f"there is no {further[0]} beside the request; a line has {', '.join(KEYS)}, and fields stand in its body",
            further[0],
        )
    custom_id, body = value.get("custom_id"), value.get("body")
    if not isinstance(custom_id, str) or not custom_id or len(custom_id) > 512:
        raise _BadLineError("invalid_custom_id", "custom_id must be a text of 1 to 512 characters", "custom_id")
    if custom_id in known:
        raise _BadLineError("duplicate_custom_id", f"custom_id {custom_id[:80]!r} is there twice", "custom_id")
    if value.get("method") != "POST":
        raise _BadLineError("invalid_method", f'method must be "POST", got {_shown(value.get("method"))}', "method")
    if value.get("url") != endpoint:
        raise _BadLineError(
            "invalid_url",
            f"url must be {json.dumps(endpoint)}, the endpoint of the batch, got {_shown(value.get('url'))}",
            "url",
        )
    if not isinstance(body, dict):
        raise _BadLineError("invalid_body", f"body must be a JSON object, got {_shown(body)}", "body")
    if body.get("stream"):
        raise _BadLineError("invalid_body", "a batch has no streams; leave stream out", "body.stream")
    return Line(custom_id, json.dumps(body).encode())


def _shown(value: object) -> str:
    return "nothing" if value is None else shortened(json.dumps(value))


def _finding(number: int | None, code: str, message: str, param: str | None = None) -> JsonObject:
    return {"code": code, "line": number, "message": message, "param": param}
