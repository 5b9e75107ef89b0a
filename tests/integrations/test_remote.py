"""A server that misbehaves: every failure is one of this package's errors. (Good answers: tests/vllm/test_server.py.)"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from eft_engine import errors
from eft_integrations.backends.vllm_server import RemoteBackend, remote_backend
from eft_integrations.chat.messages import Message
from eft_integrations.chat.request import ChatRequest
from eft_integrations.langchain import EFTChatModel

ASKED = ChatRequest((Message("user", "Hello"),))
MODELS = {"data": [{"id": "trio", "max_model_len": 100, "eft": {"pairs": {"chat": 1.0}}}]}


def event(**fields: Any) -> str:
    return f"data: {json.dumps(fields)}\n\n"


def piece(text: str, finish: str | None = None) -> str:
    return event(id="1", choices=[{"delta": {"content": text}, "token_ids": [1], "finish_reason": finish}])


USAGE = event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 2})
WHOLE = piece("Good ") + piece("day", "stop") + USAGE + "data: [DONE]\n\n"
Answer = Callable[[httpx.Request], httpx.Response]


def backend_of(answer: Answer, models: Any = MODELS) -> RemoteBackend:
    """A backend whose server answers questions with `answer`."""

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json=models)
        if request.url.path == "/tokenizer_info":
            return httpx.Response(404)
        if request.url.path == "/tokenize":
            return httpx.Response(200, json={"count": 120, "tokens": [1] * 120})
        return answer(request)

    backend = RemoteBackend("http://server/v1/")
    backend._client = httpx.Client(transport=httpx.MockTransport(handle))
    return backend


def test_whole_answer_is_read() -> None:
    asked: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        return httpx.Response(200, text=WHOLE)

    result = backend_of(answer).chat(
        ChatRequest((Message("user", "Hello"),), reward_weights=0.5, sampling={"seed": 2**63})
    )
    assert (result.content, result.finish_reason, result.usage.prompt_tokens) == ("Good day", "stop", 3)
    assert asked[0]["eft_reward_weights"] == {"chat": 0.5}
    assert asked[0]["seed"] == -(2**63)


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (httpx.Response(200, text=piece("Good ")), errors.RemoteServerError),
        (
            httpx.Response(200, text=piece("Good ") + piece("", "abort") + USAGE + "data: [DONE]\n\n"),
            errors.RemoteServerError,
        ),
        (httpx.Response(200, text=piece("Good ") + event(error={"message": "dead"})), errors.RemoteServerError),
        (httpx.Response(200, text=event(error={"message": "no", "code": 400})), errors.InvalidOptionError),
        (httpx.Response(500, text="Internal Server Error"), errors.RemoteServerError),
        (httpx.Response(503, json={"error": {"message": "later"}}), errors.RemoteServerError),
        (httpx.Response(401, json={"error": "Unauthorized"}), errors.RemoteServerError),
        (httpx.Response(400, json={"error": {"message": "no", "param": "top_p"}}), errors.InvalidOptionError),
        (
            httpx.Response(400, json={"error": {"message": "long", "param": "input_tokens"}}),
            errors.ContextOverflowError,
        ),
        (httpx.Response(404, json={"error": {"message": "none"}}), errors.ModelNotFoundError),
    ],
)
def test_failure_of_a_server_has_a_type(response: httpx.Response, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        backend_of(lambda request: response).chat(ASKED)


def test_connection_that_breaks_is_a_failure_of_the_server() -> None:
    class Broken(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield piece("Good ").encode()
            raise httpx.ReadError("gone")

    stream = backend_of(lambda request: httpx.Response(200, stream=Broken())).stream(ASKED)
    assert next(stream).text == "Good "
    with pytest.raises(errors.RemoteServerError, match="cannot be reached"):
        list(stream)


def test_server_without_pairs_is_refused() -> None:
    plain = {"data": [{"id": "llama", "max_model_len": 100}]}
    with pytest.raises(errors.RemoteServerError, match="eft serve --engine vllm"):
        _ = backend_of(lambda request: httpx.Response(500), models=plain).weights


def test_weights_are_checked_before_anything_is_sent() -> None:
    def never(request: httpx.Request) -> httpx.Response:
        raise AssertionError("nothing may be sent")

    with pytest.raises(errors.UnknownPairError):
        backend_of(never).chat(ChatRequest(ASKED.messages, reward_weights={"polite": 1.0}))
    with pytest.raises(errors.InvalidWeightError):
        backend_of(never).chat(ChatRequest(ASKED.messages, reward_weights={"chat": float("inf")}))


def test_adapter_is_made_without_asking_the_server() -> None:
    model = EFTChatModel(base_url="http://127.0.0.1:9/v1", served_name="trio", api_key="secret")
    assert model.model_name == "trio"
    assert "secret" not in repr(model)
    assert remote_backend("http://127.0.0.1:9/v1", served_name="trio", api_key="secret") is model._backend
    with pytest.raises(ValueError, match="give one of"):
        EFTChatModel(base_url="http://127.0.0.1:9/v1", preset="atlas")
    with pytest.raises(ValueError, match="belongs to base_url"):
        EFTChatModel(preset="atlas", served_name="trio")
