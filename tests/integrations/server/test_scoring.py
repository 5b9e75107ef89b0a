"""Log-probabilities of given texts, judged by three models without an engine: echo of completions, /v1/score, and tokens."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import httpx
import pytest
import torch

from eft_integrations.backends.engine import EngineBackend
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.server.bodies.bounds import BoundSettings
from eft_integrations.server.settings import ServerSettings
from tests.integrations.server.serving import events_of, in_process
from tests.toy import END_ID, ToyTrio, make_trio

TEXT = "Größe: the cat sat on the mat, and then it slept for a very long while; nobody knew why"
WEIGHT = 0.7


@torch.inference_mode()
def judged(trio: ToyTrio, token_ids: Sequence[int], weight: float = WEIGHT) -> torch.Tensor:
    """Composed log-probabilities `[tokens - 1, vocabulary]` of every token behind the first."""
    base, tuned, reference = (
        model(torch.tensor([list(token_ids)])).logits[0, :-1].log_softmax(dim=-1)
        for model in (trio.base, trio.tuned, trio.reference)
    )
    return (base + weight * (tuned - reference)).log_softmax(dim=-1)


@pytest.fixture(scope="module")
def engine_and_judge() -> Iterator[tuple[EngineBackend, ToyTrio]]:
    """A backend of a toy trio, and the same trio for the judge, as engines keep their models to themselves."""
    with make_trio("llama").engine() as engine:
        yield EngineBackend.of(engine, model_name="toy"), make_trio("llama")


@pytest.fixture
async def client(engine_and_judge: tuple[EngineBackend, ToyTrio]) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server of the toy trio."""
    async with in_process({"toy": engine_and_judge[0]}) as own:
        yield own


async def post(client: httpx.AsyncClient, path: str, **body: Any) -> Any:
    """The reply to a body, which must be answered."""
    response = await client.post(path, json={"model": "toy", **body})
    assert response.status_code == 200, response.text
    return response.json()


async def test_echoed_prompts_have_the_log_probabilities_of_the_composition(
    client: httpx.AsyncClient, engine_and_judge: tuple[EngineBackend, ToyTrio]
) -> None:
    engine, trio = engine_and_judge
    ids = engine.token_ids(TEXT)
    reply = await post(
        client, "/v1/completions", prompt=[ids, ids[:3]], echo=True, logprobs=1, max_tokens=1, temperature=0,
        eft_reward_weights=WEIGHT,
    )  # fmt: skip
    choice, short = reply["choices"]
    logprobs = choice["logprobs"]
    assert (choice["text"][: len(TEXT)], len(logprobs["tokens"])) == (TEXT, len(ids) + 1)
    assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
    generated = int(judged(trio, [*ids, 0])[-1].argmax())
    want = judged(trio, [*ids, generated])
    for place, token_id in enumerate([*ids[1:], generated]):
        told = logprobs["token_logprobs"][place + 1]
        assert told == pytest.approx(float(want[place, token_id]), abs=2e-4)
        highest = max(logprobs["top_logprobs"][place + 1].values())
        assert highest == pytest.approx(float(want[place].max()), abs=2e-4)
        assert (told == highest) is (int(want[place].argmax()) == token_id)
    assert short["logprobs"]["token_logprobs"][1:3] == pytest.approx(logprobs["token_logprobs"][1:3], abs=2e-4)
    assert reply["usage"]["prompt_tokens"] == len(ids) + 3


async def test_a_prompt_is_scored_alone_and_offsets_are_characters(client: httpx.AsyncClient) -> None:
    reply = await post(client, "/v1/completions", prompt=TEXT, echo=True, logprobs=0, max_tokens=0, n=2)
    choice, other = reply["choices"]
    assert (choice["text"], choice["finish_reason"]) == (TEXT, "length")
    assert other["logprobs"] == choice["logprobs"]
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == len(TEXT.encode())
    assert logprobs["text_offset"][:6] == [0, 1, 2, 2, 3, 3]  # ö and ß are two tokens each
    assert logprobs["text_offset"][-1] == len(TEXT) - 1
    assert [len(top) for top in logprobs["top_logprobs"][1:]] == [1] * (len(logprobs["tokens"]) - 1)
    usage = reply["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(TEXT.encode()), 0)
    bare = await post(client, "/v1/completions", prompt=[1], echo=True, logprobs=1, max_tokens=0)
    assert bare["choices"][0]["logprobs"]["token_logprobs"] == [None]


async def test_streams_tell_the_same_as_whole_replies(client: httpx.AsyncClient) -> None:
    body = {"prompt": TEXT, "echo": True, "logprobs": 2, "max_tokens": 4, "temperature": 0}
    whole = (await post(client, "/v1/completions", **body))["choices"][0]
    streamed = await client.post("/v1/completions", json={"model": "toy", "stream": True, **body})
    choices = [json.loads(event)["choices"][0] for event in events_of(streamed.text)[:-1]]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    for name in ("tokens", "text_offset"):
        assert [item for own in choices if own["logprobs"] for item in own["logprobs"][name]] == whole["logprobs"][name]


async def test_token_ids_are_the_text_that_they_stand_for(
    client: httpx.AsyncClient, engine_and_judge: tuple[EngineBackend, ToyTrio]
) -> None:
    body = {"max_tokens": 8, "temperature": 0}
    of_text = await post(client, "/v1/completions", prompt=TEXT, **body)
    of_ids = await post(client, "/v1/completions", prompt=engine_and_judge[0].token_ids(TEXT), **body)
    assert of_ids["choices"][0]["text"] == of_text["choices"][0]["text"]


async def test_what_is_no_prompt_is_refused_by_name(client: httpx.AsyncClient) -> None:
    for body, code in (
        ({"prompt": []}, None),
        ({"prompt": [[]]}, None),
        ({"prompt": [1, "a"]}, None),
        ({"prompt": [1, -1]}, None),
        ({"prompt": [True]}, None),
        ({"prompt": [[1], "a"]}, None),
        ({"prompt": [5, 100_000]}, "unknown_token"),
        ({"prompt": "a", "max_tokens": 0}, "invalid_value"),
        ({"prompt": "a", "suffix": "b"}, None),
        ({"prompt": "a", "best_of": 2}, "invalid_value"),
        ({"prompt": "a " * 300, "echo": True, "logprobs": 1, "max_tokens": 0}, "context_length_exceeded"),
    ):
        response = await client.post("/v1/completions", json={"model": "toy", **body})
        assert response.status_code == 400, body
        assert code in (None, response.json()["error"]["code"]), response.text
    async with in_process({"toy": ScriptedBackend(["ok"])}) as other:
        for body in ({"prompt": [1]}, {"prompt": "a", "echo": True, "logprobs": 1}):
            response = await other.post("/v1/completions", json={"model": "toy", **body})
            assert "engine of this server" in response.json()["error"]["message"]


async def test_scores_are_those_of_the_judge_with_their_rewards(
    client: httpx.AsyncClient, engine_and_judge: tuple[EngineBackend, ToyTrio]
) -> None:
    engine, trio = engine_and_judge
    reply = await post(
        client, "/v1/score", prompt="Once there was ", continuations=["a cat", "é"], return_tokens=True, return_rewards=True,
        reward_weights={"chat": WEIGHT},
    )  # fmt: skip
    assert reply["eft"]["reward_weights"] == {"chat": WEIGHT}
    for own, text in zip(reply["data"], (" a cat", " é"), strict=True):  # the space belongs to what follows
        before, behind = engine.token_ids("Once there was"), engine.token_ids(text)
        ids = [*before, *behind]
        want = [float(row[token]) for row, token in zip(judged(trio, ids)[len(before) - 1 :], behind, strict=True)]
        assert own["logprob"] == pytest.approx(sum(want), abs=1e-3)
        assert [token["logprob"] for token in own["tokens"]] == pytest.approx(want, abs=2e-4)
        assert own["num_tokens"] == len(behind)
        at_one, at_zero = judged(trio, ids, 1.0), judged(trio, ids, 0.0)
        assert at_one.shape == at_zero.shape
        assert own["rewards"]["chat"] == pytest.approx(_reward(trio, ids, len(before)), abs=1e-3)


@torch.inference_mode()
def _reward(trio: ToyTrio, ids: Sequence[int], num_before: int) -> float:
    tuned, reference = (
        model(torch.tensor([list(ids)])).logits[0, :-1].log_softmax(dim=-1) for model in (trio.tuned, trio.reference)
    )
    return sum(float((tuned - reference)[place - 1, ids[place]]) for place in range(num_before, len(ids)))


async def test_what_greedy_decoding_writes_is_greedy(
    client: httpx.AsyncClient, engine_and_judge: tuple[EngineBackend, ToyTrio]
) -> None:
    engine, trio = engine_and_judge
    ids = engine.token_ids("It was")
    greedy = list(ids)
    for _ in range(4):
        greedy.append(int(judged(trio, [*greedy, 0])[-1].argmax()))
    other = [*greedy[:-1], (greedy[-1] + 1) % 256]
    items = [{"prompt": ids, "continuation": own[len(ids) :]} for own in (greedy, other)]
    reply = await post(client, "/v1/score", items=items, eft_reward_weights=WEIGHT)
    assert [own["is_greedy"] for own in reply["data"]] == [True, False]


async def test_an_empty_prompt_stands_for_the_token_between_texts(
    client: httpx.AsyncClient, engine_and_judge: tuple[EngineBackend, ToyTrio]
) -> None:
    engine, trio = engine_and_judge
    reply = await post(client, "/v1/score", items=[{"prompt": "", "continuation": "cat"}], eft_reward_weights=WEIGHT)
    ids = [END_ID, *engine.token_ids("cat")]
    want = sum(float(row[token]) for row, token in zip(judged(trio, ids), ids[1:], strict=True))
    assert reply["data"][0]["logprob"] == pytest.approx(want, abs=1e-3)
    assert math.isfinite(want)


async def test_scores_that_cannot_be_given_are_refused(client: httpx.AsyncClient) -> None:
    for body, text in (
        ({"text_1": "a", "text_2": "b"}, "cross-encoders"),
        ({"queries": "a", "documents": ["b"]}, "cross-encoders"),
        ({}, "items"),
        ({"items": []}, "items"),
        ({"prompt": "a"}, "continuations"),
        ({"items": [{"prompt": "a", "continuation": ""}]}, "empty"),
        ({"items": [{"prompt": "a", "continuation": [1]}]}, "both"),
        ({"items": [{"prompt": [1], "continuation": [100_000]}]}, "100000"),
        ({"items": [{"prompt": "a", "continuation": "b"}], "eft_reward_weights": -1}, "weight"),
    ):
        response = await client.post("/v1/score", json={"model": "toy", **body})
        assert response.status_code in (400, 403), (body, response.text)
        assert text in response.json()["error"]["message"], response.text
    told = await post(client, "/v1/score", items=[{"prompt": "a", "continuation": "b", "flavour": 1}])
    assert told["eft"]["ignored"] == ["items.0.flavour"]


async def test_scores_are_bounded_counted_and_say_which_item_is_wrong(
    engine_and_judge: tuple[EngineBackend, ToyTrio],
) -> None:
    settings = ServerSettings(bounds=BoundSettings(prompts=2))
    async with in_process({"toy": engine_and_judge[0]}, settings) as client:
        item = {"prompt": "a", "continuation": "b"}
        for body, param in (
            ({"items": [item] * 3}, "items"),
            ({"prompt": "a", "continuations": ["b"] * 3}, "continuations"),
        ):
            refused = await client.post("/v1/score", json={"model": "toy", **body})
            error = refused.json()["error"]
            assert (refused.status_code, error["code"], error["param"]) == (400, "too_many_prompts", param)
        long = {"prompt": "a" * 5000, "continuation": "b"}
        for body, param in (
            ({"items": [item, long]}, "items.1"),
            ({"items": [item, {"prompt": [1] * 300, "continuation": [1]}]}, "items.1"),
            ({"prompt": "a", "continuations": ["b", ""]}, "continuations.1"),
        ):
            refused = await client.post("/v1/score", json={"model": "toy", **body})
            error = refused.json()["error"]
            assert (refused.status_code, error["param"]) == (400, param)
            assert error["message"].startswith(f"{param}: ")
        ids = {"prompt": [1] * 9, "continuation": [2] * 3}
        await post(client, "/v1/score", items=[ids, ids])
        metrics = (await client.get("/metrics")).text
    for line in (
        'eft_caller_answers_total{caller="anybody",model="toy",outcome="finished"} 2.0',
        'eft_caller_prompt_tokens_total{caller="anybody",model="toy"} 24.0',
        'eft_http_requests_total{path="/v1/score",status="200"} 1.0',
    ):
        assert line in metrics


async def test_only_what_is_asked_for_is_run(engine_and_judge: tuple[EngineBackend, ToyTrio]) -> None:
    backend, trio = engine_and_judge

    def read() -> dict[tuple[str, ...], int]:
        return {own.members: own.num_tokens for own in backend.engine.stats().networks}

    async with in_process({"toy": backend}) as client:
        body: dict[str, Any] = {"items": [{"prompt": "never read ", "continuation": "before"}], "eft_reward_weights": 0}
        before = read()
        (plain,) = (await post(client, "/v1/score", **body))["data"]
        await post(
            client, "/v1/completions", prompt="never echoed", echo=True, logprobs=1, max_tokens=1, eft_reward_weights=0
        )
        assert {members for members, count in read().items() if count > before[members]} == {("base",)}
        (rewarded,) = (await post(client, "/v1/score", **body, return_rewards=True))["data"]
        assert all(count > before[members] for members, count in read().items())
    assert "rewards" not in plain
    assert rewarded["logprob"] == pytest.approx(plain["logprob"], abs=1e-4)
    ids = backend.token_ids("never read before")
    want = sum(float(row[token]) for row, token in zip(judged(trio, ids, 0.0), ids[1:], strict=True))
    whole = await _whole(backend, ids)
    assert whole == pytest.approx(want, abs=1e-3)


async def _whole(backend: EngineBackend, ids: Sequence[int]) -> float:
    async with in_process({"toy": backend}) as client:
        items = [{"prompt": [*ids[:1]], "continuation": [*ids[1:]]}]
        return float((await post(client, "/v1/score", items=items, eft_reward_weights=0))["data"][0]["logprob"])


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "a" * 5000}, "prompt"),
        ("/v1/completions", {"prompt": "a" * 5000, "stream": True}, "prompt"),
        ("/v1/completions", {"prompt": ""}, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 5000}]}, "messages"),
        ("/v1/responses", {"input": "a" * 5000}, "input"),
        ("/tokenize", {"prompt": "a" * 5000}, "prompt"),
        ("/detokenize", {"tokens": [100_000]}, "tokens"),
    ],
)
async def test_errors_name_the_field_that_holds_the_prompt(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], param: str
) -> None:
    reply = await client.post(path, json={"model": "toy", **body})
    told = reply.json() if reply.headers["content-type"] == "application/json" else json.loads(events_of(reply.text)[0])
    assert told["error"]["param"] == param


async def test_a_prompt_that_ends_at_once_still_has_its_last_token(
    client: httpx.AsyncClient, engine_and_judge: tuple[EngineBackend, ToyTrio]
) -> None:
    body = {"prompt": TEXT, "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    ended = await post(client, "/v1/completions", **body, logit_bias={str(END_ID): 100})
    (choice,) = ended["choices"]
    assert choice["finish_reason"] == "stop"
    assert (
        len(choice["logprobs"]["tokens"]) == len(engine_and_judge[0].token_ids(TEXT)) + 1
    )  # lm_eval leaves out the last
