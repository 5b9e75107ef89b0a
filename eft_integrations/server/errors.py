"""Errors as OpenAI writes them: `{"error": {"message", "type", "param", "code"}}`, one table from types to statuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from eft_engine import errors
from eft_integrations.server.entrance.paths import methods_of
from eft_integrations.server.seen.records import PROMPT_FIELD, current
from eft_integrations.server.seen.wording import told

INVALID, PERMISSION, RATE, SERVER = "invalid_request_error", "permission_error", "rate_limit_error", "server_error"


@dataclass(frozen=True)
class Kind:
    """How a type of error is answered."""

    status: int
    type: str
    code: str | None = None
    param: str | None = None


KINDS: dict[type[Exception], Kind] = {
    errors.ContextOverflowError: Kind(400, INVALID, "context_length_exceeded", "messages"),
    errors.UnknownPairError: Kind(400, INVALID, "unknown_pair", "eft_reward_weights"),
    errors.InvalidWeightError: Kind(400, INVALID, "invalid_weight", "eft_reward_weights"),
    errors.InvalidGrammarError: Kind(400, INVALID, "invalid_grammar", "response_format"),
    errors.ChatTemplateError: Kind(400, INVALID, "invalid_messages", "messages"),
    errors.UnknownTokenError: Kind(400, INVALID, "unknown_token", "messages"),
    errors.EmptyPromptError: Kind(400, INVALID, "empty_prompt", "messages"),
    errors.RequestError: Kind(400, INVALID),
    errors.InvalidOptionError: Kind(400, INVALID, "invalid_value"),
    errors.VocabularyMismatchError: Kind(500, SERVER, "load_failed"),
    errors.ConfigurationError: Kind(400, INVALID),
    errors.KVCacheBudgetError: Kind(400, INVALID, "kv_cache_budget_exceeded", "max_tokens"),
    errors.QueueFullError: Kind(429, RATE, "rate_limit_exceeded"),
    errors.StepOutOfMemoryError: Kind(503, SERVER, "out_of_memory"),
    errors.EngineClosedError: Kind(503, SERVER, "shutting_down"),
    errors.RemoteServerError: Kind(502, SERVER, "upstream_failed"),
    errors.GenerationError: Kind(500, SERVER, "generation_failed"),
    errors.TensorParallelError: Kind(503, SERVER, "engine_lost"),
    errors.LoadError: Kind(500, SERVER, "load_failed"),
    errors.EFTError: Kind(500, SERVER),
}
"""The nearest type decides."""


CODES = {400: "invalid_json", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
"""Codes of what the web framework refuses: bodies that it cannot parse, and paths."""


class ApiError(Exception):
    """An error of the server itself."""

    def __init__(self, message: str, kind: Kind, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.headers = dict(headers or {})


class ClientGoneError(Exception):
    """The client closed its connection; whatever is answered, nobody reads it."""


class RequestTimeoutError(ApiError):
    """The answer took longer than the server allows; it was cancelled. Clients should not try it again as it is."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            f"no whole answer within {timeout_s:g} s; the request was cancelled",
            Kind(504, "timeout_error", "request_timeout"),
            headers={"x-should-retry": "false"},
        )


OVERFLOW = "maximum context length"
"""Many clients know an overflow by these words of OpenAI's, not by its code. Another server has said them already."""
MOST_MESSAGE = 1500
"""Characters of a message: whatever an error quotes of a body, its answer stays small."""


def shortened(text: str, most: int = 100) -> str:
    """A caller's text as an error may repeat it."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def kind_of(error: Exception) -> Kind:
    """How an error is answered."""
    if isinstance(error, ApiError):
        return error.kind
    found = next((KINDS[base] for base in type(error).__mro__ if base in KINDS), Kind(500, SERVER))
    param = getattr(error, "option", None) or found.param
    return dataclasses.replace(found, param=current().prompt_field if param == PROMPT_FIELD else param)


def error_fields(error: Exception) -> dict[str, str | None]:
    """What is said of an error: the words of the server's own, and of others what `wording` leaves of them."""
    text = str(error) if isinstance(error, ApiError) else told(error)
    if isinstance(error, errors.ContextOverflowError) and OVERFLOW not in text:
        text = f"{text} (this model's {OVERFLOW} is {error.context_len} tokens)"
    return make_fields(text, kind_of(error))


def make_fields(message: str, kind: Kind) -> dict[str, str | None]:
    """What is said in a message."""
    return {"message": shortened(message, MOST_MESSAGE), "type": kind.type, "param": kind.param, "code": kind.code}


def error_response(message: str, kind: Kind, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response of a message."""
    current().refusal = kind.code
    return JSONResponse({"error": make_fields(message, kind)}, kind.status, headers=dict(headers or {}))


def install(app: FastAPI) -> None:
    """Answer every error of an app in this form."""

    @app.exception_handler(errors.EFTError)
    @app.exception_handler(ApiError)
    async def _failed(request: Request, error: Exception) -> Response:
        current().fail(error)
        headers = dict(getattr(error, "headers", {}))
        if isinstance(error, errors.QueueFullError):
            headers["Retry-After"] = str(request.app.state.pace.retry_after_s(error.num_queued))
        return JSONResponse({"error": error_fields(error)}, kind_of(error).status, headers=headers)

    @app.exception_handler(ClientDisconnect)
    @app.exception_handler(ClientGoneError)
    async def _gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        finding = error.errors()[0]
        path = [str(part) for part in finding["loc"][1:]]
        if finding["type"] == "json_invalid":
            return error_response(
                f"the body is not JSON: {finding['ctx']['error']}", Kind(400, INVALID, "invalid_json")
            )
        param = ".".join(path) or None
        message = finding["msg"].removeprefix("Value error, ")
        return error_response(f"{param}: {message}" if param else message, Kind(400, INVALID, "invalid_value", param))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        kind = Kind(error.status_code, INVALID if error.status_code < 500 else SERVER, CODES.get(error.status_code))
        if error.status_code == 405:
            allowed = methods_of(request)
            detail = f"{request.url.path} takes {allowed}, not {shortened(request.method)}"
            return error_response(detail, kind, {**(error.headers or {}), "Allow": allowed})
        return error_response(str(error.detail), kind, error.headers)
