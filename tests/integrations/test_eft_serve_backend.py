"""Plain `eft serve` as a backend: every answer is the one that the engine gives in process, and nothing is dropped on the way."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from pydantic import SecretStr

from eft_engine import Engine, EngineStats, TokenLogprobs, errors
from eft_integrations.backends.pool import backend_of
from eft_integrations.backends.remote import RemoteBackend
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import Message, Tool, ToolCall
from eft_integrations.chat.request import ChatDelta, ChatRequest, ChatResult, ToolChoice
from eft_integrations.server.composition_settings import CompositionSettings
from eft_integrations.server.compositions import Composition
from eft_integrations.server.loading import load_compositions
from eft_integrations.server.settings import ServerSettings
from tests.choice import thorough_but
from tests.engine.test_backpressure import Gate
from tests.integrations.cuts import ANSWERS, cuts
from tests.integrations.server.serving import running
from tests.integrations.trained_trio import WEATHER, get_weather, trained_engine
from tests.toy import ToyTrio, wait_until_idle

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 40}
LONG = {"max_tokens": 300}
HELLO = (Message("user", "Hello"),)
ASK_WEATHER = (Message("user", WEATHER),)
LOOK = Tool("get_weather", "Get the weather at a location.", get_weather.args_schema.model_json_schema())  # type: ignore[union-attr]
SMELL = Tool("smell", "Smell.", {"type": "object", "properties": {"what": {"enum": ["roses", "rain"]}}})
SCHEMA = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
UNENFORCED = {"type": "array", "items": {"type": "string", "maxLength": 2}, "maxItems": 2, "uniqueItems": True}
CALL = ToolCall("1", "get_weather", '{"location": "San Francisco, CA"}')


def asked(messages: tuple[Message, ...] = HELLO, /, **fields: Any) -> ChatRequest:
    """A request; `sampling` adds to greedy decoding."""
    return ChatRequest(messages, **{**fields, "sampling": {**GREEDY, **fields.get("sampling", {})}})


def tools(choice: Any, *own: Tool, parallel: bool = True, **fields: Any) -> ChatRequest:
    """A request with tools."""
    return asked(ASK_WEATHER, **fields, tools=own, tool_choice=ToolChoice.parse(choice, own, parallel=parallel))


REQUESTS = {
    "plain": asked(),
    "default sampling": ChatRequest(HELLO, sampling={"seed": 1, "ignore_eos": True}, reward_weights=0.0),
    "conversation": asked((Message("system", "Be kind."), *HELLO, Message("assistant", "Yes?"), Message("user", "So?"))),
    "sampled": asked(
        sampling={
            "temperature": 1.3, "seed": 2**63 + 5, "top_k": 50, "top_p": 0.9, "min_p": 0.001, "repetition_penalty": 1.2,
            "presence_penalty": 0.5, "frequency_penalty": 0.3, "max_tokens": 12, "ignore_eos": True,
        },
        reward_weights=0.3,
    ),
    "stop": asked(sampling={"stop": ["can"]}),
    "bias": asked(sampling={"logit_bias": {40: 100.0, 41: -100.0}}),
    "length": asked(sampling={"max_tokens": 3}),
    "logprobs": asked(sampling={"logprobs": 3}),
    "logprobs alone": asked(sampling={"logprobs": 0}),
    "weight": asked(reward_weights=0.0),
    "weights": asked(reward_weights={"chat": 1.7}),
    "template variables": asked(template_variables={"preface": "Be kind. "}),
    "documents": asked(documents=({"title": "Sea", "text": "The sea is blue."},)),
    "schema": asked(response_schema=SCHEMA, reward_weights=0.0),
    "tools": tools("auto", LOOK),
    "tools with logprobs": tools("auto", LOOK, sampling={"logprobs": 1}),
    "no tools": tools("none", LOOK),
    "any tool": tools("required", LOOK, SMELL, reward_weights=0.0, sampling=LONG),
    "one tool": tools("smell", LOOK, SMELL, reward_weights=0.0, sampling=LONG),
    "one call": tools("required", SMELL, parallel=False, reward_weights=0.0, sampling=LONG),
    "call that is cut": tools("required", SMELL, reward_weights=0.0, sampling={"max_tokens": 12}),
    "schema that is cut": asked(response_schema={"type": "string"}, reward_weights=0.0),
    "schema that is closed": asked(
        response_schema={"type": "string"}, reward_weights=0.0, sampling={"close_within_budget": True}
    ),
    "no thought": asked(reasoning="off"),
    "unenforced": asked(response_schema=UNENFORCED, reward_weights=0.0),
    "tools or schema": tools("auto", SMELL, response_schema=SCHEMA, reward_weights=0.0),
    "strict notation": tools("auto", LOOK, lenient_tool_calls=False),
    "call that broke off": tools("auto", LOOK, sampling={"stop": ["Francisco"]}),
    "result": asked(
        (*ASK_WEATHER, Message("assistant", "", (CALL,)), Message("tool", "It's sunny.", (), "1", "get_weather")),
        tools=(LOOK,),
    ),
    "raw text": ChatRequest(prompt="<|user|>Hello<|end|><|assistant|>", sampling=GREEDY),
    "raw text with schema": ChatRequest(prompt="Mood:", sampling=GREEDY, response_schema=SCHEMA, reward_weights=0.0),
}  # fmt: skip
EVERY_REQUEST = pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS.keys())


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of the engine that is asked in process too."""
    with running({"trio": backend_of(trained_engine())}) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def remote(url: str) -> RemoteBackend:
    """The server as a backend."""
    return RemoteBackend(url)


def said_by(pieces: Sequence[ChatDelta]) -> list[ChatDelta]:
    """Pieces as another answer to the same request has them: what is drawn or measured anew is taken out, as are the ids of
    tokens, which do not travel.
    """
    known: dict[str | None, str] = {}

    def plain(piece: ChatDelta) -> ChatDelta:
        call, result = piece.call, piece.result
        if call is not None and call.call_id is not None:
            assert call.call_id.startswith("call_")
            known[call.call_id] = f"call {len(known)}"
            call = dataclasses.replace(call, call_id=known[call.call_id])
        if result is not None:
            named = [dataclasses.replace(own, call_id=known[own.call_id]) for own in result.tool_calls]
            broken = [dataclasses.replace(own, call_id=known.get(own.call_id)) for own in result.invalid_tool_calls]
            result = dataclasses.replace(
                result,
                tool_calls=tuple(named),
                invalid_tool_calls=tuple(broken),
                usage=dataclasses.replace(result.usage, cached_prompt_tokens=0),
                logprobs=None if result.logprobs is None else tuple(map(without_ids, result.logprobs)),
                metadata={**dict.fromkeys(result.metadata), "reward_weights": result.metadata["reward_weights"]},
            )
        logprobs = tuple(map(without_ids, piece.logprobs))
        return dataclasses.replace(piece, call=call, logprobs=logprobs, result=result, progress=None)

    return [plain(piece) for piece in pieces]


def without_ids(token: TokenLogprobs) -> TokenLogprobs:
    """Log-probabilities as they travel."""
    return dataclasses.replace(
        token, token_id=-1, top=tuple(dataclasses.replace(own, token_id=-1) for own in token.top)
    )


def expected(request: ChatRequest) -> list[ChatDelta]:
    """What the engine says in process; log-probabilities may differ in their last digits, as they do by batch."""

    def near(token: TokenLogprobs) -> TokenLogprobs:
        top = tuple(dataclasses.replace(own, logprob=pytest.approx(own.logprob, abs=1e-4)) for own in token.top)
        members = pytest.approx(dict(token.members), abs=1e-4)
        return dataclasses.replace(token, logprob=pytest.approx(token.logprob, abs=1e-4), top=top, members=members)

    pieces = said_by(list(backend_of(trained_engine()).stream(request)))
    result = result_of(pieces)
    logprobs = None if result.logprobs is None else tuple(map(near, result.logprobs))
    *rest, _ = [dataclasses.replace(piece, logprobs=tuple(map(near, piece.logprobs))) for piece in pieces]
    return [*rest, ChatDelta(result=dataclasses.replace(result, logprobs=logprobs))]


async def collect(backend: Any, request: ChatRequest) -> list[ChatDelta]:
    """All pieces of an async stream."""
    return [piece async for piece in backend.astream(request)]


# ---- answers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_", thorough_but([pytest.param(own, id=name) for name, own in REQUESTS.items()], often=3)
)
def test_pieces_and_result_are_those_of_the_engine(request_: ChatRequest, remote: RemoteBackend) -> None:
    if "seed" in request_.sampling and request_.sampling.get("temperature") == 1.3:
        other = {**request_.sampling, "seed": 4}
        assert remote.chat(dataclasses.replace(request_, sampling=other)).content != remote.chat(request_).content
    here = expected(request_)
    assert said_by(list(remote.stream(request_))) == here
    assert said_by(asyncio.run(collect(remote, request_))) == here
    for whole in (remote.chat(request_), asyncio.run(remote.achat(request_))):
        assert [call.arguments for call in whole.tool_calls] == [call.arguments for call in result_of(here).tool_calls]
        assert whole.content == result_of(here).content


@EVERY_REQUEST
def test_prompt_tokens_are_counted_as_they_are_used(request_: ChatRequest, remote: RemoteBackend) -> None:
    assert remote.count_prompt_tokens(request_) == backend_of(trained_engine()).count_prompt_tokens(request_)
    assert remote.count_prompt_tokens(request_) == remote.chat(request_).usage.prompt_tokens


def result_of(pieces: Sequence[ChatDelta]) -> ChatResult:
    """The last piece's."""
    assert pieces[-1].result is not None
    return pieces[-1].result


def test_requests_of_these_tests_differ_in_what_they_set() -> None:
    """Else an answer would be the same with a field dropped."""
    here = backend_of(trained_engine())
    answers = {name: result_of(list(here.stream(own))) for name, own in REQUESTS.items()}
    plain = answers["plain"]
    assert answers["call that broke off"].invalid_tool_calls
    assert not answers["call that broke off"].tool_calls
    assert answers["tools"].tool_calls
    assert answers["tools"].finish_reason == "tool_calls"
    assert not answers["no tools"].tool_calls
    assert answers["any tool"].tool_calls
    assert answers["one tool"].tool_calls[0].name == "smell"
    assert len(answers["one call"].tool_calls) == 1
    assert json.loads(answers["schema"].content)["mood"] in ("good", "bad")
    assert answers["length"].finish_reason == "length"
    assert answers["call that is cut"].invalid_tool_calls
    assert not answers["call that is cut"].tool_calls
    assert answers["schema that is cut"].metadata["format_error"]
    assert answers["schema that is closed"].metadata["closed_within_budget"]
    assert answers["unenforced"].metadata["unenforced"]
    assert answers["default sampling"].usage.completion_tokens == 256
    for name in ("stop", "bias", "length", "weight"):
        assert answers[name].content != plain.content
    for name in ("template variables", "documents"):
        assert answers[name].usage.prompt_tokens != plain.usage.prompt_tokens


def test_forbidden_token_and_stop_token_are_carried(remote: RemoteBackend) -> None:
    first, *_, last = remote.token_ids(remote.chat(asked()).content)
    for sampling in ({"logit_bias": {first: float("-inf")}}, {"stop_token_ids": [last]}):
        request = asked(sampling=sampling)
        assert said_by(list(remote.stream(request))) == expected(request) != expected(asked())


def test_log_probabilities_of_a_raw_text_are_those_of_the_tokens(remote: RemoteBackend) -> None:
    request = ChatRequest(prompt="Mood:", sampling={**GREEDY, "logprobs": 2})
    there, here = remote.chat(request), backend_of(trained_engine()).chat(request)
    assert there.logprobs is not None
    assert here.logprobs is not None
    assert [own.token for own in there.logprobs] == [own.token for own in here.logprobs] != []
    for found, own in zip(there.logprobs, here.logprobs, strict=True):
        assert found.logprob == pytest.approx(own.logprob, abs=1e-4)
        assert {top.token for top in found.top} == {top.token for top in own.top}


def test_cached_prompt_tokens_are_told(remote: RemoteBackend) -> None:
    request = REQUESTS["conversation"]
    remote.chat(request)
    again = remote.chat(request).usage
    assert again.cached_prompt_tokens == backend_of(trained_engine()).chat(request).usage.cached_prompt_tokens > 0


def test_server_is_known_as_the_engine_is(remote: RemoteBackend) -> None:
    here = backend_of(trained_engine())
    assert (remote.model_name, remote.weights, remote.context_len) == ("trio", here.weights, here.context_len)
    assert remote.token_ids("Grüße, 灯台") == here.token_ids("Grüße, 灯台") != []


def test_statistics_are_the_engine_s(remote: RemoteBackend) -> None:
    remote.chat(asked())
    wait_until_idle(trained_engine())
    here = backend_of(trained_engine()).stats()
    assert dataclasses.replace(here, networks=()) == remote.stats()
    assert here.num_finished > 0
    assert here.completion_tokens > 0


# ---- errors --------------------------------------------------------------------------------------------------------------

WRONG = {
    "unknown pair": asked(reward_weights={"polite": 1.0}),
    "weight": asked(reward_weights=float("nan")),
    "range": asked(sampling={"temperature": -1.0}),
    "unknown field": asked(sampling={"temprature": 1.0}),
    "grammar": asked(sampling={"grammar": {"kind": "regex", "pattern": "a"}}, tools=()),
    "empty text": ChatRequest(prompt=""),
    "no messages": ChatRequest(),
    "schema": asked(response_schema={"type": "array", "uniqueItems": True}, strict_response=True),
    "too long": asked((Message("user", "word " * 5000),)),
    "too long text": ChatRequest(prompt="word " * 5000),
}


@pytest.mark.parametrize("request_", WRONG.values(), ids=WRONG.keys())
def test_error_is_the_engine_s(request_: ChatRequest, remote: RemoteBackend) -> None:
    fields = ("option", "prompt_len", "context_len", "name", "known")
    with pytest.raises(Exception) as here:
        backend_of(trained_engine()).chat(request_)
    with pytest.raises(errors.EFTError) as there:
        remote.chat(request_)
    if isinstance(here.value, errors.EFTError):
        assert type(there.value) is type(here.value)
        assert [getattr(there.value, own, None) for own in fields] == [getattr(here.value, own, None) for own in fields]
    with pytest.raises(errors.EFTError) as later:
        asyncio.run(collect(remote, request_))
    assert type(later.value) is type(there.value)


def test_prompt_that_is_too_long_can_be_counted(remote: RemoteBackend) -> None:
    for request in (WRONG["too long"], WRONG["too long text"]):
        assert remote.count_prompt_tokens(request) == backend_of(trained_engine()).count_prompt_tokens(request) > 4096


@pytest.mark.parametrize(
    ("request_", "option"),
    [
        (asked(chat_template="{{ messages }}"), "chat_template"),
        (asked(tool_notation="hermes"), "tool_notation"),
        (asked(template_variables={"now": object()}), None),
        (asked(sampling={"skip_special_tokens": False}), "skip_special_tokens"),
        (asked(sampling={"logprobs": 50}), "top_logprobs"),
    ],
    ids=["template", "notation", "no JSON", "special tokens", "logprobs"],
)
def test_what_cannot_be_carried_is_refused(request_: ChatRequest, option: str | None, remote: RemoteBackend) -> None:
    with pytest.raises(errors.InvalidOptionError) as refused:
        remote.chat(request_)
    assert refused.value.option == option


def test_full_queue_and_budget_are_told_with_their_numbers(monkeypatch: pytest.MonkeyPatch, toy_trio: ToyTrio) -> None:
    text = ChatRequest(prompt="abc", sampling={"max_tokens": 4})
    with (
        toy_trio.engine(max_num_seqs=1, max_queued_requests=1) as engine,
        running({"m": backend_of(engine)}) as address,
    ):
        gate = Gate(monkeypatch, engine._trio.networks[0])
        streams = [engine.stream("abc")]
        assert gate.reached.wait(60)
        streams.append(engine.stream("abc"))
        with pytest.raises(errors.QueueFullError) as full:
            RemoteBackend(f"{address}/v1").chat(text)
        assert (full.value.num_queued, full.value.limit) == (1, 1)
        gate.open()
        assert all(list(stream) for stream in streams)
    with toy_trio.engine(max_kv_cache_bytes=100_000) as engine, running({"m": backend_of(engine)}) as address:
        with pytest.raises(errors.KVCacheBudgetError) as here:
            backend_of(engine).chat(ChatRequest(prompt="abc" * 60))
        with pytest.raises(errors.KVCacheBudgetError) as there:
            RemoteBackend(f"{address}/v1").chat(ChatRequest(prompt="abc" * 60))
        assert there.value.needed_bytes == here.value.needed_bytes
        assert there.value.max_bytes == 100_000


# ---- leaving -------------------------------------------------------------------------------------------------------------

ENDLESS = asked(sampling={"max_tokens": 3000, "ignore_eos": True})


def settled(engine: Engine, before: EngineStats) -> None:
    """Wait until the request that was begun is cancelled."""
    end = time.monotonic() + 60
    while engine.stats().num_cancelled == before.num_cancelled:
        assert time.monotonic() < end, "the request runs on"
        time.sleep(0.01)
    assert engine.stats().num_running == 0


@pytest.mark.parametrize("num_read", [0, 1])
def test_closing_a_stream_cancels_the_request(num_read: int, remote: RemoteBackend) -> None:
    before = trained_engine().stats()
    stream = remote.stream(ENDLESS)
    for _ in range(num_read):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    settled(trained_engine(), before)


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_leaving_an_async_stream_cancels_the_request(how: str, remote: RemoteBackend) -> None:
    before = trained_engine().stats()
    if how == "close":
        stream = remote.astream(ENDLESS)
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
    else:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(remote.achat(ENDLESS), 0.5)
    await asyncio.to_thread(settled, trained_engine(), before)


# ---- servers of several kinds --------------------------------------------------------------------------------------------


def test_composition_is_chosen_by_its_name_and_its_weights_are_its_own() -> None:
    backend = backend_of(trained_engine())
    with running(
        [Composition("full", backend, {"chat": 1.0}), Composition("plain", backend, {"chat": 0.0})]
    ) as address:
        remote = RemoteBackend(f"{address}/v1", served_name="plain")
        result = remote.chat(asked())
        assert remote.weights == result.metadata["reward_weights"] == {"chat": 0.0}
        assert result.content == backend.chat(asked(reward_weights=0.0)).content
        assert remote.stats().num_finished == backend.stats().num_finished


def test_server_in_front_of_a_server_answers_as_the_engine(url: str) -> None:
    settings = [CompositionSettings(name="front", url=url, served_name="trio", weights={"chat": 0.5})]
    with running(load_compositions(settings, ServerSettings().engine)) as address:
        front = RemoteBackend(f"{address}/v1")
        for name in ("plain", "tools", "call that broke off"):
            there = list(front.stream(dataclasses.replace(REQUESTS[name], reward_weights={"chat": 1.0})))
            assert said_by(there) == expected(REQUESTS[name])
        assert front.weights == {"chat": 0.5}


@pytest.mark.parametrize("form", ANSWERS)
def test_thoughts_and_cut_answers_arrive_as_they_were(form: str) -> None:
    answers: list[Message | ChatResult] = [ANSWERS[form], *cuts(ANSWERS[form])]
    script = ScriptedBackend(answers)
    with running({"script": ScriptedBackend(answers)}) as address:
        remote = RemoteBackend(f"{address}/v1")
        for _ in answers:
            assert list(remote.stream(ChatRequest(HELLO))) == list(script.stream(ChatRequest(HELLO)))


def test_request_arrives_as_it_was() -> None:
    script = ScriptedBackend(["ok"])
    request = asked(
        (*HELLO, Message("assistant", "", (CALL,), reasoning="hm"), Message("tool", "sunny", tool_call_id="1")),
        tools=(dataclasses.replace(LOOK, strict=True), SMELL),
        response_schema=SCHEMA,
        strict_response=True,
        reasoning="off",
        reasoning_budget=3,
        reasoning_tags=("<a>", "</a>"),
        sampling={"close_within_budget": True},
        reward_weights={"scripted": 0.5},
        request_id="run-1",
    )
    with running({"script": script}) as address:
        remote = RemoteBackend(f"{address}/v1")
        remote.chat(request)
        assert remote.count_prompt_tokens(request) == script.count_prompt_tokens(request)
    (got,) = script.requests
    assert dataclasses.replace(got, sampling={}) == dataclasses.replace(request, sampling={})
    assert got.sampling.items() >= request.sampling.items()


def test_key_is_sent_with_everything() -> None:
    settings = ServerSettings(api_key=SecretStr("secret"))
    with running({"script": ScriptedBackend(["one two"] * 2)}, settings) as address:
        remote = RemoteBackend(f"{address}/v1", api_key="secret")
        assert remote.chat(ChatRequest(HELLO)).content == "one two"
        assert remote.token_ids("a b") == [0, 1]
        assert remote.stats().num_finished == 1
        with pytest.raises(errors.RemoteServerError, match="api_key") as refused:
            _ = RemoteBackend(f"{address}/v1", api_key="wrong").weights
        assert refused.value.status == 401
