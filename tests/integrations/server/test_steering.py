"""Schedules, prompt pairs, plausibility and weights of calls over HTTP: as the engine has them, and nothing around a policy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from eft_engine import CompositionOptions, Engine, LoadedPair, PromptPair, SamplingParams, Term, errors
from eft_engine.weights import FirstTokens, Gate, InJsonStrings, LinearRamp, Proportional
from eft_integrations.backends.pool import backend_of
from eft_integrations.backends.remote import RemoteBackend
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import Message
from eft_integrations.chat.request import ChatRequest
from eft_integrations.server.answers import most_tokens
from eft_integrations.server.bodies.bounds import BoundSettings
from eft_integrations.server.callers.weight_policy import DEFAULT, WeightPolicy
from eft_integrations.server.composition_settings import CompositionSettings
from eft_integrations.server.compositions import Composition
from eft_integrations.server.settings import ServerSettings
from tests.integrations.server.serving import events_of, in_process, running
from tests.toy import make_model, make_tokenizer

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 8, "temperature": 0}
RAW: dict[str, Any] = {"model": "m", "prompt": "abc", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
GATE: dict[str, Any] = {"kind": "gate", "by": "base_entropy", "above": 3.0}
SIDE: dict[str, dict[str, Any]] = {"brief": {"negative": "other words", "weight": 1.5}}
SAMPLING = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """A base with a pair."""
    pairs = {"chat": LoadedPair(make_model("llama", seed=2), make_model("llama", seed=3))}
    base = make_model("llama", hidden_size=64, seed=1)
    with Engine.from_models(base, tokenizer=make_tokenizer(), pairs=pairs) as engine:
        yield engine


def composition(policy: Any = None, **fields: Any) -> Composition:
    """A script with two pairs."""
    backend = ScriptedBackend(weights={"chat": 1.0, "json": 0.5})
    return Composition("m", backend, backend.weights, weight_policy=WeightPolicy.of(policy, DEFAULT), **fields)


async def code_of(served: Composition, settings: ServerSettings | None = None, **fields: Any) -> tuple[int, str, str]:
    """Status, code and param of an answer."""
    async with in_process([served], settings) as client:
        reply = await client.post(CHAT, json={"model": "m", **ASKED, **fields})
    error = reply.json().get("error", {})
    return reply.status_code, error.get("code") or "ok", error.get("param") or ""


# ---- what is answered ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"eft_reward_weights": GATE}, {"reward_weights": Gate(**GATE)}),
        (
            {"eft_reward_weights": {"chat": {"kind": "linear_ramp", "num_tokens": 4}}},
            {"reward_weights": {"chat": LinearRamp(num_tokens=4)}},
        ),
        (
            {"eft_prompt_pairs": SIDE},
            {"composition": CompositionOptions(prompt_pairs={"brief": PromptPair(**SIDE["brief"])})},
        ),
        (
            {"eft_prompt_pairs": SIDE, "eft_reward_weights": {"brief": 0.25, "chat": 0}},
            {
                "composition": CompositionOptions(prompt_pairs={"brief": PromptPair(**SIDE["brief"])}),
                "reward_weights": {"brief": 0.25, "chat": 0},
            },
        ),
        ({"eft_min_plausibility": 0.5}, {"composition": CompositionOptions(min_plausibility=0.5)}),
        (
            {"eft_reward_weights": 2, "eft_tuned_plausibility": 0.5},
            {"composition": CompositionOptions(tuned_plausibility=0.5), "reward_weights": 2.0},
        ),
    ],
)
async def test_answers_are_those_of_the_engine(engine: Engine, fields: dict[str, Any], asked: dict[str, Any]) -> None:
    async with in_process({"m": backend_of(engine)}) as client:
        reply = (await client.post("/v1/completions", json={**RAW, **fields})).json()
    alone = engine.generate("abc", sampling=SAMPLING, **asked)
    assert reply["choices"][0]["text"] == alone.text
    told = {
        name: own if isinstance(own, float) else own.model_dump(exclude_none=True)
        for name, own in alone.reward_weights.items()
    }
    assert reply["eft"]["reward_weights"] == told
    assert reply["eft"]["choices"][0]["intervention_rate"] == pytest.approx(alone.intervention_rate)


async def test_composition_holds_schedules_pairs_and_plausibility_as_defaults(engine: Engine) -> None:
    pair = PromptPair(negative="other words", weight=0.5)
    served = Composition(
        "m",
        backend_of(engine),
        {"chat": FirstTokens(num_tokens=3), "brief": 0.5},
        prompt_pairs={"brief": pair},
        options=CompositionOptions(min_plausibility=0.01, amplification=1.5),
    )
    async with in_process([served]) as client:
        reply = (await client.post("/v1/completions", json=RAW)).json()
        other = (await client.post("/v1/completions", json={**RAW, "eft_reward_weights": {"brief": 0}})).json()
        one = (await client.post("/v1/completions", json={**RAW, "eft_reward_weights": 0.75})).json()
        listed = (await client.get("/v1/models")).json()["data"][0]["eft"]
    options = CompositionOptions(prompt_pairs={"brief": pair}, min_plausibility=0.01, amplification=1.5)
    weights: dict[str, Any] = {"chat": FirstTokens(num_tokens=3), "brief": 0.5}
    alone = engine.generate("abc", sampling=SAMPLING, composition=options, reward_weights=weights)
    assert reply["choices"][0]["text"] == alone.text
    assert other["eft"]["reward_weights"]["brief"] == 0.0
    assert one["eft"]["reward_weights"] == {"chat": 0.75, "brief": 0.5}
    assert listed["pairs"]["chat"] == {"kind": "first_tokens", "num_tokens": 3, "weight": 1.0, "then": 0.0}
    assert (listed["prompt_pairs"], listed["takes_prompt_pairs"], listed["min_plausibility"]) == (["brief"], True, 0.01)


async def test_score_and_rewards_tell_of_prompt_pairs_and_terms() -> None:
    base = make_model("llama", hidden_size=64, seed=1)
    pairs = {"reward": LoadedPair(make_model("llama", seed=2), None)}
    with Engine.from_models(base, tokenizer=make_tokenizer(), pairs=pairs) as engine:
        served = Composition.of("m", backend_of(engine))
        assert served.terms == {"reward"}
        body = {
            "model": "m",
            "prompt": "abc",
            "continuations": [" def"],
            "return_rewards": True,
            "eft_prompt_pairs": SIDE,
        }
        chat = {"model": "m", **ASKED, "eft_token_rewards": True, "max_tokens": 2}
        async with in_process([served]) as client:
            scored = (await client.post("/v1/score", json=body)).json()
            told = (await client.post(CHAT, json=chat)).json()
        options = CompositionOptions(prompt_pairs={"brief": PromptPair(**SIDE["brief"])})
        alone = engine.score("abc", " def", composition=options)
    assert scored["data"][0]["logprob"] == pytest.approx(alone.composed, abs=1e-4)
    assert scored["data"][0]["rewards"] == pytest.approx(
        {name: alone.reward(name) for name in ("reward", "brief")}, abs=1e-4
    )
    assert all(token["rewards"]["reward"] < 0 for token in told["eft"]["choices"][0]["tokens"])


@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/messages"])
async def test_weights_of_parts_reach_the_backend_on_every_route(path: str) -> None:
    served = composition(call_weight=0.0, call_lookahead=32)
    body: dict[str, Any] = {"model": "m", "max_tokens": 8, "eft_reasoning_weight": {"json": 0.25}}
    if path == "/v1/responses":
        body = {"model": "m", "input": "abc", "eft_reasoning_weight": {"json": 0.25}}
    else:
        body["messages"] = ASKED["messages"]
    async with in_process([served]) as client:
        assert (await client.post(path, json=body)).status_code == 200
        assert (
            await client.post(path, json={**body, "eft_call_weight": 2, "eft_call_lookahead": 8})
        ).status_code == 200
    assert isinstance(served.backend, ScriptedBackend)
    own, asked = (record.request for record in served.backend.records)
    assert (own.call_weight, own.call_lookahead, own.reasoning_weight) == (
        {"chat": 0.0, "json": 0.0},
        32,
        {"json": 0.25},
    )
    assert (asked.call_weight, asked.call_lookahead) == ({"chat": 2.0, "json": 2.0}, 8)


async def test_stream_tells_schedules_too() -> None:
    async with in_process([composition()]) as client:
        stream = await client.post(CHAT, json={"model": "m", **ASKED, "eft_reward_weights": GATE, "stream": True})
    last = json.loads(events_of(stream.text)[-2])
    assert last["eft"]["reward_weights"]["chat"]["kind"] == "gate"


# ---- what is refused -----------------------------------------------------------------------------------------------------

FORBIDDEN, OK = (403, "weight_forbidden", "eft_reward_weights"), (200, "ok", "")


@pytest.mark.parametrize(
    ("policy", "weights", "expected"),
    [
        (None, GATE, OK),
        (None, {**GATE, "weight": 2.5}, FORBIDDEN),
        (None, {**GATE, "otherwise": -0.1}, FORBIDDEN),
        (None, {"chat": {"kind": "linear_ramp", "start": 0, "end": 3}}, FORBIDDEN),
        (None, {"kind": "proportional", "to": "kl", "factor": 9, "most": 2}, OK),
        (None, {"kind": "proportional", "to": "kl", "factor": -9, "most": 1}, FORBIDDEN),
        (None, {"kind": "first_tokens", "num_tokens": 1, "then": {"kind": "in_json_strings", "outside": 5}}, FORBIDDEN),
        ("fixed", GATE, FORBIDDEN),
        ("free", {**GATE, "weight": -9}, OK),
        ([0.5, 1], {**GATE, "otherwise": 0.5}, OK),
        ([0.5, 1], GATE, FORBIDDEN),
        (None, {"kind": "gaet"}, (400, "invalid_weight", "eft_reward_weights")),
        (None, {"kind": "gate", "by": "kl"}, (400, "invalid_weight", "eft_reward_weights")),
        (None, {**GATE, "weight": True}, (400, "invalid_value", "eft_reward_weights")),
        (None, {**GATE, "above": "3"}, (400, "invalid_value", "eft_reward_weights")),
    ],
)
async def test_every_number_of_a_schedule_is_bound(policy: Any, weights: Any, expected: tuple[int, str, str]) -> None:
    assert await code_of(composition(policy), eft_reward_weights=weights) == expected


@pytest.mark.parametrize("field", ["eft_call_weight", "eft_reasoning_weight"])
@pytest.mark.parametrize(
    ("policy", "weight", "status"),
    [
        (None, 2, 200),
        (None, 2.1, 403),
        ([0.5, 2], 0, 403),
        ("fixed", 0, 403),
        ("fixed", {"chat": 1.0}, 200),
        (None, {"x": 1}, 400),
    ],
)
async def test_weights_of_parts_are_bound_too(field: str, policy: Any, weight: Any, status: int) -> None:
    found = await code_of(composition(policy), **{field: weight})
    assert found[0] == status
    assert status != 403 or found[1:] == ("weight_forbidden", field)


async def test_operators_own_weight_of_calls_is_always_allowed() -> None:
    served = composition("fixed", call_weight=0.0)
    assert await code_of(served, eft_call_weight=0) == OK
    assert await code_of(served, eft_call_weight=0.5) == (403, "weight_forbidden", "eft_call_weight")


NOBODY = (403, "prompt_pairs_forbidden", "eft_prompt_pairs")
SYSTEM: dict[str, dict[str, Any]] = {"brief": {"negative": {"system": "be long"}}}


@pytest.mark.parametrize(
    ("policy", "fields", "pairs", "expected"),
    [
        (None, {}, SYSTEM, OK),
        (None, {"takes_prompt_pairs": False}, SYSTEM, NOBODY),
        ("fixed", {}, SYSTEM, NOBODY),
        ({"chat": [0.5, 1]}, {}, SYSTEM, NOBODY),
        ({"chat": [0.5, 1]}, {"takes_prompt_pairs": True}, SYSTEM, OK),
        ("fixed", {"takes_prompt_pairs": True}, SYSTEM, OK),
        ("fixed", {"takes_prompt_pairs": True}, {"brief": {**SYSTEM["brief"], "weight": 3}}, FORBIDDEN),
        (None, {}, {"brief": {**SYSTEM["brief"], "weight": -1}}, FORBIDDEN),
        (None, {}, {"brief": {**SYSTEM["brief"], "weight": {**GATE, "weight": 4}}}, FORBIDDEN),
        (None, {}, {"brief": {**SYSTEM["brief"], "model": "chat"}}, (403, "weight_forbidden", "eft_prompt_pairs")),
        ({"chat": "free"}, {}, {"brief": {**SYSTEM["brief"], "model": "chat.reference"}}, OK),
        ("free", {}, {"brief": {**SYSTEM["brief"], "model": "other"}}, (400, "invalid_value", "eft_prompt_pairs")),
        (None, {}, {"chat": SYSTEM["brief"]}, (400, "invalid_value", "eft_prompt_pairs")),
        (None, {}, {"a.b": SYSTEM["brief"]}, (400, "invalid_value", "eft_prompt_pairs")),
        (None, {}, {"brief": {}}, (400, "invalid_value", "eft_prompt_pairs.brief")),
        (None, {}, {f"p{n}": SYSTEM["brief"] for n in range(5)}, (400, "too_many_prompt_pairs", "eft_prompt_pairs")),
    ],
)
async def test_who_may_bring_prompt_pairs(policy: Any, fields: Any, pairs: Any, expected: tuple[int, str, str]) -> None:
    assert await code_of(composition(policy, **fields), eft_prompt_pairs=pairs) == expected


async def test_texts_of_prompt_pairs_are_counted() -> None:
    settings = ServerSettings(bounds=BoundSettings(messages=2, documents=2))
    many = [{"role": "user", "content": "a"}] * 3
    for side, code in (({"texts": ["a", "b", "c"]}, "too_many_documents"), (many, "too_many_messages")):
        found = await code_of(composition(), settings, eft_prompt_pairs={"p": {"negative": side}})
        assert found == (400, code, "eft_prompt_pairs.p.negative")


@pytest.mark.parametrize(
    ("policy", "own", "asked", "status"),
    [(None, 0.0, 0.5, 200), (None, 0.1, 0.05, 403), (None, 0.1, 0.1, 200), ("fixed", 0.1, 0.1, 200), ("fixed", 0.1, 0.5, 403),
     ({"chat": [0.5, 1]}, 0.0, 1.0, 403), (None, 0.0, 1.5, 400)],
)  # fmt: skip
async def test_plausibility_is_no_way_around_weights(policy: Any, own: float, asked: float, status: int) -> None:
    served = composition(policy, options=CompositionOptions(min_plausibility=own))
    found = await code_of(served, eft_min_plausibility=asked)
    assert found[0] == status
    assert status != 403 or found[1:] == ("min_plausibility_forbidden", "eft_min_plausibility")


@pytest.mark.parametrize(
    ("policy", "own", "asked", "status"),
    [(None, 0.0, 0.5, 200), (None, 0.1, 0.05, 403), (None, 0.1, 0.1, 200), ("fixed", 0.1, 0.1, 200), ("fixed", 0.1, 0.5, 403),
     ({"chat": [0.5, 1]}, 0.0, 1.0, 200), ({"chat": [1.5, 2]}, 0.0, 1.0, 403), (None, 0.0, 1.5, 400)],
)  # fmt: skip
async def test_a_bound_on_lifted_tokens_is_no_way_around_weights(
    policy: Any, own: float, asked: float, status: int
) -> None:
    served = composition(policy, options=CompositionOptions(tuned_plausibility=own))
    found = await code_of(served, eft_tuned_plausibility=asked)
    assert found[0] == status
    assert status != 403 or found[1:] == ("tuned_plausibility_forbidden", "eft_tuned_plausibility")


async def test_one_share_of_a_request_leaves_the_others_of_the_composition(engine: Engine) -> None:
    served = Composition(
        "m",
        backend_of(engine),
        {"chat": 2.0},
        options=CompositionOptions(min_plausibility=0.01, tuned_plausibility=0.2),
    )
    async with in_process([served]) as client:
        listed = (await client.get("/v1/models")).json()["data"][0]["eft"]
        reply = (await client.post("/v1/completions", json={**RAW, "eft_min_plausibility": 0.1})).json()
    options = CompositionOptions(min_plausibility=0.1, tuned_plausibility=0.2)
    alone = engine.generate("abc", sampling=SAMPLING, composition=options, reward_weights=2.0)
    assert reply["choices"][0]["text"] == alone.text
    assert (listed["min_plausibility"], listed["tuned_plausibility"]) == (0.01, 0.2)


def test_tokens_of_prompt_pairs_count_where_limits_are_by_tokens() -> None:
    served = composition()
    request = ChatRequest(messages=(Message("user", "one two"),), sampling={"max_tokens": 4})
    pair = PromptPair(positive={"system": "three four five"}, negative=[{"role": "user", "content": "six"}])
    plain, paired = (
        most_tokens(served, [own])
        for own in (
            request,
            ChatRequest(messages=request.messages, sampling=request.sampling, prompt_pairs={"p": pair}),
        )
    )
    backend = served.backend
    own = backend.count_prompt_tokens(request)
    assert paired - plain == own + len(backend.token_ids("three four five")) + len(backend.token_ids("six"))


# ---- metrics, logs, clients ----------------------------------------------------------------------------------------------


async def test_names_and_texts_of_callers_are_in_no_metric_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    marker = {"kind": "from_marker", "marker": "SECRET"}
    body = {
        "model": "m",
        **ASKED,
        "eft_reward_weights": {"chat": marker},
        "eft_prompt_pairs": {"SECRET": SYSTEM["brief"]},
    }
    async with in_process([composition()]) as client:
        with caplog.at_level("INFO"):
            assert (await client.post(CHAT, json=body)).status_code == 200
        metrics = (await client.get("/metrics")).text
    assert 'eft_reward_weight_count{model="m",pair="chat"} 1.0' in metrics
    assert "SECRET" not in metrics
    told = [getattr(record, "reward_weights", None) for record in caplog.records]
    assert {"chat": "from_marker", "json": 0.5} in told
    assert "SECRET" not in repr([record.__dict__ for record in caplog.records])


def test_client_sends_all_of_it_on(engine: Engine) -> None:
    request = ChatRequest(
        prompt="abc",
        sampling={"max_tokens": 8, "temperature": 0.0, "ignore_eos": True},
        reward_weights={"chat": Gate(by="base_entropy", above=3.0), "brief": 0.5},
        prompt_pairs={"brief": PromptPair(**SIDE["brief"])},
        composition=CompositionOptions(min_plausibility=0.01, tuned_plausibility=0.2),
    )
    local = backend_of(engine)
    with running({"m": local}) as url:
        remote = RemoteBackend(f"{url}/v1")
        try:
            there, here = remote.chat(request), local.chat(request)
            with pytest.raises(errors.InvalidOptionError, match="composition.amplification"):
                remote.chat(ChatRequest(prompt="abc", composition=CompositionOptions(amplification=2.0)))
            with pytest.raises(errors.UnknownPairError):
                remote.chat(ChatRequest(prompt="abc", reward_weights={"brief": 1.0}))
        finally:
            remote.close()
    assert there.content == here.content
    assert there.metadata["reward_weights"] == here.metadata["reward_weights"]


def test_client_sends_parts_of_a_chat_on() -> None:
    backend = ScriptedBackend(weights={"chat": 1.0})
    pair = PromptPair(positive={"system": None}, negative=[{"role": "user", "content": "x"}], weight=InJsonStrings())
    request = ChatRequest(
        messages=(Message("system", "be"), Message("user", "abc")),
        call_weight={"chat": 0.0},
        reasoning_weight=Proportional(most=0.5),
        call_lookahead=16,
        prompt_pairs={"p": pair},
    )
    with running({"m": backend}) as url:
        remote = RemoteBackend(f"{url}/v1")
        try:
            remote.chat(request)
        finally:
            remote.close()
    (record,) = backend.records
    assert record.request.prompt_pairs == {"p": pair}
    assert record.request.call_weight == {"chat": 0.0}
    assert record.request.reasoning_weight == {"chat": Proportional(most=0.5)}
    assert record.request.call_lookahead == 16


# ---- files ---------------------------------------------------------------------------------------------------------------


def test_settings_of_a_composition() -> None:
    read = CompositionSettings.model_validate(
        {
            "name": "faithful",
            "base": "org/base",
            "pairs": {"chat": {"tuned": "t", "reference": "r"}, "reward": {"model": "m", "weight": 0.5}},
            "weights": {"chat": GATE, "faithful": 0.75},
            "prompt_pairs": {"faithful": {"negative": {"system": "answer from memory"}}},
            "composition": {"min_plausibility": 0.1, "tuned_plausibility": 0.2},
            "call_weight": 0,
            "reasoning_weight": {"chat": 0.5},
        }
    )
    assert isinstance(read.tuned_pairs()["reward"], Term)
    assert read.known_pairs() == ["chat", "reward", "faithful"]
    assert read.composition.options() == CompositionOptions(min_plausibility=0.1, tuned_plausibility=0.2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": {"other": 1.0}}, "which is none of its pairs"),
        ({"weights": {"chat": {"kind": "gate"}}}, "schedule|by"),
        ({"prompt_pairs": {"chat": {"negative": "x"}}}, "is a pair and a prompt pair"),
        ({"prompt_pairs": {"p": {}}}, "needs a side"),
        ({"composition": {"call_decision": None}}, "call_decision"),
        ({"call_weight": {"kind": "gate"}}, "call_weight"),
    ],
)
def test_wrong_settings_of_a_composition_are_named(fields: dict[str, Any], message: str) -> None:
    plain = {"name": "m", "base": "org/base", "pairs": {"chat": {"tuned": "t", "reference": "r"}}}
    with pytest.raises((ValueError, errors.InvalidOptionError), match=message):
        CompositionSettings.model_validate({**plain, **fields})


def test_what_belongs_to_another_server_stays_there() -> None:
    with pytest.raises(ValueError, match="belongs to the server that holds the trio"):
        CompositionSettings.model_validate({"name": "m", "url": "http://x/v1", "composition": {"amplification": 2}})


def test_weight_of_calls_of_a_pair_that_is_not_there_is_refused() -> None:
    with pytest.raises(errors.UnknownPairError):
        composition(call_weight={"other": 0.0})
