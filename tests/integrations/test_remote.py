"""Servers as backends: in which dialect one wants to be asked, what it is sent, and that every failure has a type.

(Good answers: test_eft_serve_backend.py and tests/vllm/test_server.py.)
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

import eft_integrations.remote
from eft_engine import Lark, Regex, SamplingParams, errors
from eft_integrations.backends.remote import RemoteBackend, remote_backend
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import InvalidToolCall, Message, Tool
from eft_integrations.chat.request import ChatRequest, ToolChoice
from eft_integrations.langchain import EFTChatModel
from eft_integrations.vllm.middleware import Served
from eft_integrations.vllm.trio_options import TrioOptions
from tests.integrations.server.serving import in_process

ASKED = ChatRequest((Message("user", "Hello"),))
DIALECTS = pytest.mark.parametrize("dialect", ["eft", "vllm"])
Answer = Callable[[httpx.Request], httpx.Response]


def models(dialect: str) -> Any:
    """What a server lists."""
    eft = {"dialect": dialect, "pairs": {"chat": 1.0}}
    return {"data": [{"id": "trio", "max_model_len": 100, "eft": eft}]}


def event(**fields: Any) -> str:
    return f"data: {json.dumps(fields, ensure_ascii=False)}\n\n"


def piece(text: str, finish: str | None = None) -> str:
    choice = {"delta": {"content": text}, "token_ids": [1], "finish_reason": finish, "logprobs": None}
    return event(id="1", choices=[choice])


USAGE = event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 2})
REPORT = event(choices=[], eft={"reward_weights": {"chat": 1.0}, "choices": [{"request_id": "1"}]})
END = REPORT + USAGE + "data: [DONE]\n\n"
WHOLE = piece("Good ") + piece("day", "stop") + END


def backend_of(answer: Answer, dialect: str = "vllm", listed: Any = None, **options: Any) -> RemoteBackend:
    """A backend whose server answers questions with `answer`."""

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return listed if isinstance(listed, httpx.Response) else httpx.Response(200, json=listed or models(dialect))
        if request.url.path == "/tokenizer_info":
            return httpx.Response(404)
        if request.url.path == "/tokenize":
            return httpx.Response(200, json={"count": 120, "tokens": [1] * 120})
        return answer(request)

    backend = RemoteBackend("http://server/v1/", **options)
    backend._connection._client = httpx.Client(transport=httpx.MockTransport(handle))
    return backend


def never(request: httpx.Request) -> httpx.Response:
    raise AssertionError("nothing may be sent")


class Pieces(httpx.SyncByteStream):
    """A body that comes in pieces, and perhaps breaks off."""

    def __init__(self, *pieces: bytes, breaks: bool = False) -> None:
        self._pieces = pieces
        self._breaks = breaks

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces
        if self._breaks:
            raise httpx.ReadError("gone")


# ---- what is sent, and read ----------------------------------------------------------------------------------------------


def body_of(dialect: str, request: ChatRequest) -> Any:
    """What is sent for a request; the answer to it is read."""
    asked: list[Any] = []

    def answer(got: httpx.Request) -> httpx.Response:
        asked.append((got.url.path, json.loads(got.content)))
        return httpx.Response(200, text=WHOLE)

    result = backend_of(answer, dialect).chat(request)
    assert (result.content, result.finish_reason, result.usage.prompt_tokens) == ("Good day", "stop", 3)
    ((path, body),) = asked
    assert path == "/v1/chat/completions"
    return body


def test_vllm_is_sent_settled_weights_and_signed_seeds() -> None:
    body = body_of("vllm", ChatRequest(ASKED.messages, reward_weights=0.5, sampling={"seed": 2**63}))
    assert body["eft_reward_weights"] == {"chat": 0.5}
    assert body["seed"] == -(2**63)


@pytest.mark.parametrize(
    ("request_", "key"),
    [
        (ChatRequest(ASKED.messages, response_grammar=Regex(pattern="a/b|[0-9]+")), "regex"),
        (ChatRequest(ASKED.messages, response_grammar=Lark(grammar='start: "a"')), "grammar"),
        (ChatRequest(ASKED.messages, response_grammar=Lark(grammar='start[capture]: "a ::= b"')), "grammar"),
        (ChatRequest(ASKED.messages, response_schema={"type": "object"}), "grammar"),
        (ChatRequest(ASKED.messages, (Tool("look"),)), "grammar"),
    ],
)
def test_vllm_is_sent_one_constraint_that_its_guidance_backend_reads(request_: ChatRequest, key: Any) -> None:
    from llguidance import LLMatcher, grammar_from

    body = body_of("vllm", request_)
    ((sent, grammar),) = body["structured_outputs"].items()
    assert sent == key
    assert LLMatcher.validate_grammar(grammar_from(key, grammar)) == ""  # as vLLM's backend_guidance.py does
    assert "response_format" not in body
    assert "structured_outputs" not in body_of("vllm", ASKED)


def test_eft_serve_is_sent_every_field_that_the_engine_has_a_default_for() -> None:
    """The server's own defaults differ from the engine's."""
    fields = set(SamplingParams.model_fields) - {"seed", "grammar", "logprobs", "skip_special_tokens", "logit_bias"}
    body = body_of("eft", ASKED)
    assert {name: body[name] for name in fields} == {
        name: list(value) if isinstance(value := getattr(SamplingParams(), name), tuple) else value for name in fields
    }
    assert not {"tools", "response_format", "eft_reward_weights", "chat_template_kwargs"} & set(body)


def test_eft_serve_is_sent_openai_s_form() -> None:
    look = Tool("look", "Look.", {"type": "object"})
    choice = ToolChoice.parse("look", [look])
    request = ChatRequest(
        ASKED.messages, (look,), choice, {"type": "object"}, sampling={"seed": 2**64 - 1}, reward_weights=0.5
    )
    body = body_of("eft", request)
    assert body["tool_choice"] == {"type": "function", "function": {"name": "look"}}
    assert body["parallel_tool_calls"] is False
    assert body["tools"] == [look.as_openai()]
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert body["eft_reward_weights"] == 0.5
    assert body["seed"] == 2**64 - 1
    assert "structured_outputs" not in body
    assert "eft_lenient_tool_calls" not in body
    assert not any("reasoning" in name or "strict" in name for name in body)
    assert body_of("eft", ChatRequest(ASKED.messages, lenient_tool_calls=False))["eft_lenient_tool_calls"] is False


def test_rewards_of_tokens_are_asked_of_eft_serve_and_refused_for_vllm() -> None:
    request = ChatRequest(ASKED.messages, sampling={"logprobs": 0}, member_logprobs=True, progress=True)
    body = body_of("eft", request)
    assert (body["logprobs"], body["eft_progress"]) == (True, True)
    with pytest.raises(errors.InvalidOptionError, match="eft_token_rewards: vLLM tells"):
        backend_of(never).chat(request)


def test_eft_serve_is_sent_what_is_asked_of_thoughts_and_strictness() -> None:
    look = Tool("look", "Look.", {"type": "object"}, strict=True)
    request = ChatRequest(
        (*ASKED.messages, Message("assistant", "Hi.", reasoning="hm")),
        (look, Tool("smell")),
        response_schema={"type": "object"},
        strict_response=True,
        reasoning="high",
        reasoning_budget=0,
        reasoning_tags=("<a>", "</a>"),
        sampling={"close_within_budget": True},
    )
    body = body_of("eft", request)
    assert body["messages"][1] == {"role": "assistant", "content": "Hi.", "reasoning_content": "hm"}
    assert [tool["function"].get("strict") for tool in body["tools"]] == [True, None]
    assert body["response_format"]["json_schema"]["strict"] is True
    assert (body["reasoning_effort"], body["eft_reasoning_budget"]) == ("high", 0)
    assert (body["eft_reasoning_tags"], body["close_within_budget"]) == (["<a>", "</a>"], True)
    assert body_of("eft", ChatRequest(ASKED.messages, reasoning="off"))["reasoning_effort"] == "none"


@DIALECTS
def test_stream_may_be_cut_anywhere_and_hold_line_separators(dialect: str) -> None:
    text = "a\u2028b\u0085c\u2029é"
    data = (piece(text) + piece("", "stop") + END).encode()
    stream = Pieces(*(data[place : place + 1] for place in range(len(data))))
    assert backend_of(lambda request: httpx.Response(200, stream=stream), dialect).chat(ASKED).content == text


def test_call_that_is_none_is_known_by_its_id() -> None:
    """Its last piece, in the chunk that ends the answer, is for clients that mend calls; it is no part of what was written."""

    def call(index: int, finish: str | None = None, **fields: Any) -> str:
        delta = {"tool_calls": [{"index": index, **fields}]}
        return event(choices=[{"delta": delta, "finish_reason": finish, "logprobs": None}])

    broken = [{"text": "?", "reason": "no", "call_id": "1", "name": "f", "arguments": '{"a"'}]
    report = {"reward_weights": {}, "choices": [{"request_id": "1", "invalid_tool_calls": broken}]}
    text = (
        call(0, id="1", function={"name": "f", "arguments": '{"a"'})
        + call(1, id="2", function={"name": "g", "arguments": ""})
        + call(1, function={"arguments": '{"b": 1}'})
        + call(0, "tool_calls", function={"arguments": "]"})
        + event(choices=[], eft=report)
        + USAGE
        + "data: [DONE]\n\n"
    )
    *pieces, last = backend_of(lambda request: httpx.Response(200, text=text), "eft").stream(ASKED)
    assert [own.call.arguments for own in pieces if own.call is not None] == ['{"a"', "", '{"b": 1}']
    assert last.result is not None
    result = last.result
    assert [(own.call_id, own.name, own.arguments) for own in result.tool_calls] == [("2", "g", '{"b": 1}')]
    assert result.invalid_tool_calls == (InvalidToolCall("?", "no", "f", "1", '{"a"'),)
    assert "invalid_tool_calls" not in result.metadata


# ---- which dialect -------------------------------------------------------------------------------------------------------


async def test_both_servers_tell_their_dialect() -> None:
    async with in_process({"m": ScriptedBackend([])}) as client:
        (own,) = (await client.get("/v1/models")).json()["data"]
        assert own == (await client.get("/v1/models/m")).json()
    assert own["eft"] == {
        "dialect": "eft",
        "pairs": {"scripted": 1.0},
        "allowed_weights": {"scripted": [0.0, 2.0]},
        "prompt_pairs": [],
        "takes_prompt_pairs": True,
    }
    listed: dict[str, Any] = {"data": [{"id": "trio"}]}
    pair = {"tuned": "t", "reference": "r"}
    Served(TrioOptions.model_validate({"pairs": {"chat": pair}}), ["trio"]).describe(listed)
    assert listed["data"][0]["eft"] == {"dialect": "vllm", "pairs": {"chat": 1.0}}


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({"data": [{"id": "gpt-9", "owned_by": "openai"}]}, r"'gpt-9' \(owned by 'openai'\) .*eft serve"),
        (
            {"data": [{"id": "llama", "max_model_len": 100}]},
            "'llama' and says nothing of pairs.*eft serve --engine vllm",
        ),
        ({"data": []}, "not a list of models"),
        ({"models": []}, "not a list of models"),
        ({"data": [{"id": "m", "max_model_len": 1, "eft": {"pairs": {}}}]}, "dialect 'None'.*eft, vllm"),
        ({"data": [{"id": "m", "max_model_len": 1, "eft": {"dialect": "new", "pairs": {}}}]}, "dialect 'new'"),
        ({"data": [{"id": "m", "eft": {"dialect": "eft", "pairs": {}}}]}, "cannot be read.*max_model_len"),
        (httpx.Response(200, text="<html>Ollama</html>"), "200 and '<html>Ollama</html>'"),
        (httpx.Response(404, text="Not Found"), "404 and 'Not Found'.*with the version"),
        (httpx.Response(401, json={"error": {"message": "who?"}}), "who?.*api_key"),
    ],
)
def test_another_server_is_refused_with_what_it_said_and_what_to_do(listed: Any, message: str) -> None:
    with pytest.raises(errors.RemoteServerError, match=message):
        backend_of(never, listed=listed).chat(ASKED)


def test_name_that_the_server_does_not_have_is_refused_with_those_it_has() -> None:
    with pytest.raises(errors.ModelNotFoundError, match="'other' .* trio"):
        _ = backend_of(never, "eft", served_name="other").weights


def test_nothing_is_sent_before_something_is_asked() -> None:
    backend = backend_of(never, listed=httpx.Response(500), served_name="trio")
    assert backend.model_name == "trio"
    assert backend.identity == "http://server/v1 trio"
    assert not backend.is_loaded
    model = EFTChatModel(base_url="http://127.0.0.1:9/v1", served_name="trio", api_key="secret")
    assert model.model_name == "trio"
    assert "secret" not in repr(model)
    assert remote_backend("http://127.0.0.1:9/v1", served_name="trio", api_key="secret") is model._backend
    with pytest.raises(errors.InvalidOptionError, match="give one of"):
        EFTChatModel(base_url="http://127.0.0.1:9/v1", preset="atlas")
    with pytest.raises(errors.InvalidOptionError, match="belongs to base_url"):
        EFTChatModel(preset="atlas", served_name="trio")


@pytest.mark.parametrize("address", ["localhost:8000/v1", "", "http://", "http://host:x/v1", "/v1"])
def test_address_that_is_none_is_refused_at_once(address: str) -> None:
    with pytest.raises(errors.InvalidOptionError, match="base_url") as refused:
        RemoteBackend(address)
    assert refused.value.option == "base_url"


# ---- failures ------------------------------------------------------------------------------------------------------------


@DIALECTS
@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (httpx.Response(200, text=piece("Good ")), errors.RemoteServerError),
        (
            httpx.Response(200, text=piece("Good ", "stop") + END.removesuffix("data: [DONE]\n\n")),
            errors.RemoteServerError,
        ),
        (httpx.Response(200, text=piece("Good ") + piece("", "abort") + END), errors.RemoteServerError),
        (httpx.Response(200, text=piece("Good ") + event(error={"message": "dead"})), errors.RemoteServerError),
        (httpx.Response(200, text=event(error={"message": "no", "code": 400})), errors.InvalidOptionError),
        (httpx.Response(200, text="data: {\n\n"), errors.RemoteServerError),
        (httpx.Response(200, text='data: {"choices": [7]}\n\n'), errors.RemoteServerError),
        (httpx.Response(200, text="data: 7\n\n"), errors.RemoteServerError),
        (httpx.Response(200, text='data: {"error": "dead"}\n\n'), errors.RemoteServerError),
        (httpx.Response(200, text="<html>"), errors.RemoteServerError),
        (httpx.Response(500, text="Internal Server Error"), errors.RemoteServerError),
        (httpx.Response(503, json={"error": {"message": "later"}}), errors.RemoteServerError),
        (httpx.Response(401, json={"error": "Unauthorized"}), errors.RemoteServerError),
        (httpx.Response(400, json={"error": {"message": "no", "param": "top_p"}}), errors.InvalidOptionError),
        (httpx.Response(404, json={"error": {"message": "none"}}), errors.ModelNotFoundError),
    ],
)
def test_failure_of_a_server_has_a_type(response: httpx.Response, kind: type[Exception], dialect: str) -> None:
    with pytest.raises(errors.EFTError) as failed:
        backend_of(lambda request: response, dialect).chat(ASKED)
    assert type(failed.value) is kind


@pytest.mark.parametrize(
    ("dialect", "status", "error", "kind"),
    [
        ("vllm", 400, {"message": "long", "param": "input_tokens"}, errors.ContextOverflowError),
        ("eft", 400, {"message": "long", "code": "context_length_exceeded"}, errors.ContextOverflowError),
        ("eft", 400, {"message": "?", "code": "invalid_grammar"}, errors.InvalidGrammarError),
        ("eft", 400, {"message": "?", "code": "invalid_messages"}, errors.ChatTemplateError),
        ("eft", 400, {"message": "?", "code": "empty_prompt"}, errors.EmptyPromptError),
        ("eft", 400, {"message": "?", "code": "kv_cache_budget_exceeded"}, errors.GenerationError),
        ("eft", 429, {"message": "slow down", "code": "rate_limit_exceeded"}, errors.RemoteServerError),
        ("eft", 403, {"message": "from 0 to 2 here", "code": "weight_forbidden"}, errors.InvalidOptionError),
        ("eft", 400, {"message": "3 answers in one call", "code": "too_many_answers"}, errors.InvalidOptionError),
        ("eft", 500, {"message": "?", "code": "generation_failed"}, errors.GenerationError),
        ("eft", 503, {"message": "?", "code": "out_of_memory"}, errors.StepOutOfMemoryError),
        ("eft", 503, {"message": "?", "code": "shutting_down"}, errors.RemoteServerError),
        ("eft", 502, {"message": "?", "code": "upstream_failed"}, errors.RemoteServerError),
        ("eft", 504, {"message": "?", "code": "request_timeout"}, errors.RemoteServerError),
    ],
)
def test_code_of_a_server_is_the_engine_s_error(dialect: str, status: int, error: Any, kind: type[Exception]) -> None:
    for response in (
        httpx.Response(status, json={"error": error}),
        httpx.Response(200, text=piece("Good ") + event(error={**error, "code": error.get("code", status)})),
    ):
        with pytest.raises(errors.EFTError) as failed:
            backend_of(lambda request, answer=response: answer, dialect).chat(ASKED)  # type: ignore[misc]
        assert type(failed.value) is kind
        if isinstance(failed.value, errors.ContextOverflowError):
            assert failed.value.prompt_len >= failed.value.context_len == 100
        if isinstance(failed.value, errors.RemoteServerError) and response.status_code != 200:
            assert failed.value.status == status


@DIALECTS
def test_connection_that_breaks_is_a_failure_of_the_server(dialect: str) -> None:
    broken = Pieces(piece("Good ").encode(), breaks=True)
    stream = backend_of(lambda request: httpx.Response(200, stream=broken), dialect).stream(ASKED)
    assert next(stream).text == "Good "
    with pytest.raises(errors.RemoteServerError, match="cannot be reached"):
        list(stream)


def test_server_that_is_not_there_is_a_failure_of_the_server() -> None:
    with pytest.raises(errors.RemoteServerError, match="127.0.0.1:9"):
        RemoteBackend("http://127.0.0.1:9/v1").chat(ASKED)
    with pytest.raises(errors.RemoteServerError, match="127.0.0.1:9"):
        asyncio.run(RemoteBackend("http://127.0.0.1:9/v1").achat(ASKED))


def test_field_that_the_server_ignored_is_not_dropped_in_silence() -> None:
    report = {"reward_weights": {}, "choices": [{}], "ignored": ["documents"]}
    text = piece("x", "stop") + event(choices=[], eft=report) + USAGE + "data: [DONE]\n\n"
    with pytest.raises(errors.RemoteServerError, match="did not honour documents"):
        backend_of(lambda request: httpx.Response(200, text=text), "eft").chat(ASKED)


@DIALECTS
def test_weights_are_checked_before_anything_is_sent(dialect: str) -> None:
    with pytest.raises(errors.UnknownPairError):
        backend_of(never, dialect).chat(ChatRequest(ASKED.messages, reward_weights={"polite": 1.0}))
    with pytest.raises(errors.InvalidWeightError):
        backend_of(never, dialect).chat(ChatRequest(ASKED.messages, reward_weights={"chat": float("inf")}))


@pytest.mark.parametrize(
    "request_", [ChatRequest(ASKED.messages, chat_template="x"), ChatRequest(ASKED.messages, tool_notation="hermes")]
)
def test_what_eft_serve_takes_from_no_request_is_not_sent(request_: ChatRequest) -> None:
    with pytest.raises(errors.InvalidOptionError):
        backend_of(never, "eft").chat(request_)


def test_vllm_is_not_asked_to_close_json_inside_a_budget() -> None:
    request = ChatRequest(ASKED.messages, response_schema={"type": "object"}, sampling={"close_within_budget": True})
    with pytest.raises(errors.InvalidOptionError, match="vLLM does not close JSON") as refused:
        backend_of(never, "vllm").chat(request)
    assert refused.value.option == "close_within_budget"


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_thought_that_vllm_takes_out_of_the_text_is_not_lost_in_silence(name: str) -> None:
    choice = {"delta": {name: "Hm"}, "token_ids": [1], "finish_reason": None, "logprobs": None}
    text = event(id="1", choices=[choice]) + WHOLE
    with pytest.raises(errors.RemoteServerError, match="--reasoning-parser"):
        backend_of(lambda request: httpx.Response(200, text=text), "vllm").chat(ASKED)


def test_metrics_without_the_model_are_no_statistics() -> None:
    with pytest.raises(errors.RemoteServerError, match="nothing of 'trio'"):
        backend_of(lambda request: httpx.Response(200, text='eft_prompt_tokens_total{engine="x"} 1'), "eft").stats()


def test_old_import_path_warns() -> None:
    with pytest.warns(DeprecationWarning, match="backends.remote.RemoteBackend now"):
        assert eft_integrations.remote.RemoteBackend is RemoteBackend
