"""`eft serve --engine vllm` as a process of its own: many clients, weights, wrong requests, adapters, our server in front."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from eft_engine import Engine, EngineConfig, TunedPair, errors
from eft_integrations.backends.pool import backend_of
from eft_integrations.backends.remote import RemoteBackend
from eft_integrations.chat.messages import Message, Tool
from eft_integrations.chat.request import ChatRequest, ToolChoice
from tests.integrations.server.serving import running
from tests.vllm.trios import Asked, Judge, TrioFolders, mixed_requests, save_trio

PAIRS = ("chat", "json")
QUESTION = (Message("user", "Who goes there?"),)


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> TrioFolders:
    return save_trio("llama", tmp_path_factory.mktemp("llama"), pairs=PAIRS)


@pytest.fixture(scope="module")
def judge(trio: TrioFolders) -> Judge:
    return Judge(trio)


@pytest.fixture(scope="module")
def url(trio: TrioFolders, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that was started by the command line out of a file."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pairs = {
        name: {"tuned": str(tuned), "reference": str(reference)} for name, (tuned, reference) in trio.pairs.items()
    }
    settings = {
        "port": port,
        "engine": {"dtype": "float32", "max_num_seqs": 8},
        "compositions": [
            {"name": "both", "base": str(trio.base), "pairs": pairs},
            {"name": "friendly", "base": str(trio.base), "pairs": {"chat": pairs["chat"]}, "weights": {"chat": 0.5}},
        ],
        "vllm_args": ["--enforce-eager", "--max-num-batched-tokens", "128"],
    }
    config = folder / "trio.json"
    config.write_text(json.dumps(settings))
    command = [str(Path(sys.executable).parent / "eft"), "serve", "--engine", "vllm", "--config", str(config)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ.copy())
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, folder / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path, limit_s: float = 600.0) -> None:
    """Until the server answers; its log if it does not."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            if httpx.get(address, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-4000:])


def complete(url: str, asked: Asked, *, model: str = "both", headers: dict[str, str] | None = None, **body: Any) -> Any:
    """The response to a greedy completion."""
    fields = {"model": model, "prompt": asked.prompt_ids, "max_tokens": asked.max_tokens, "temperature": 0}
    content = json.dumps({**fields, "return_token_ids": True, **body})
    headers = {"content-type": "application/json", **(headers or {})}
    return httpx.post(f"{url}/v1/completions", content=content, headers=headers, timeout=600)


def ids_of(response: httpx.Response) -> list[int]:
    """The token ids of an answer."""
    assert response.status_code == 200, response.text
    ids: list[int] = response.json()["choices"][0]["token_ids"]
    return ids


def test_eight_clients_get_exact_answers(url: str, judge: Judge) -> None:
    requests = mixed_requests(20, num_pairs=2)

    def ask(own: Asked) -> list[int]:
        return ids_of(complete(url, own, vllm_xargs={"eft_weights": own.weights}))

    with ThreadPoolExecutor(8) as clients:
        found = list(clients.map(ask, requests))
    assert found == [judge.greedy(own) for own in requests]


@pytest.mark.parametrize(
    ("how", "weights"),
    [
        ({}, [1.0, 1.0]),
        ({"model": "friendly"}, [0.5, 0.0]),
        ({"model": "friendly", "eft_reward_weights": 2.0}, [2.0, 0.0]),
        ({"model": "friendly@chat=1.37"}, [1.37, 0.0]),
        ({"model": "both@chat=2,json=-0.7"}, [2.0, -0.7]),
        ({"model": "both@chat=2", "headers": {"X-EFT-Reward-Weights": "json=0.5"}}, [1.0, 0.5]),
        ({"headers": {"X-EFT-Reward-Weights": "0"}, "eft_reward_weights": {"json": -0.7}}, [1.0, -0.7]),
        ({"vllm_xargs": {"eft_weights": "json=0.5"}}, [1.0, 0.5]),
        ({"vllm_xargs": {"eft_weights": 0}}, [0.0, 0.0]),
    ],
)
def test_weights_come_by_every_carrier(url: str, judge: Judge, how: dict[str, Any], weights: list[float]) -> None:
    asked = Asked(list(b"Once upon a time"), weights, 12)
    assert ids_of(complete(url, asked, **how)) == judge.greedy(asked)


FAULTS: dict[str, tuple[dict[str, Any], int]] = {
    "wrong number of weights": ({"vllm_xargs": {"eft_weights": [1.0]}}, 400),
    "NaN": ({"vllm_xargs": {"eft_weights": [float("nan"), 1.0]}}, 400),
    "infinite": ({"eft_reward_weights": float("inf")}, 400),
    "too large": ({"eft_reward_weights": 1e12}, 400),
    "a mapping where vLLM has lists": ({"vllm_xargs": {"eft_weights": {"polite": 1.0}}}, 400),
    "unknown key": ({"vllm_xargs": {"eft_wieghts": [1.0, 1.0]}}, 400),
    "extra arguments that are no mapping": ({"vllm_xargs": [1.0]}, 400),
    "unknown pair": ({"eft_reward_weights": {"polite": 1.0}}, 400),
    "pair of another name": ({"model": "friendly", "eft_reward_weights": {"json": 1.0}}, 400),
    "weights of another type": ({"eft_reward_weights": ["chat"]}, 400),
    "alias that cannot be read": ({"model": "both@chat"}, 400),
    "header that cannot be read": ({"headers": {"X-EFT-Reward-Weights": "chat=high"}}, 400),
    "unknown model": ({"model": "nobody"}, 404),
    "oversized prompt": ({"prompt": [65] * 600}, 400),
    "token that is none": ({"prompt": [10**6]}, 400),
    "too many tokens asked for": ({"max_tokens": 10**6}, 400),
    "body that is no mapping": ({"stop": 7}, 400),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_request_fails_alone(url: str, judge: Judge, fault: str) -> None:
    """One wrong request among good ones: 4xx for it, exact answers for them, and the server goes on."""
    wrong, status = FAULTS[fault]
    good = mixed_requests(4, num_pairs=2, max_tokens=10, longest=60)
    with ThreadPoolExecutor(5) as clients:
        running_ones = [clients.submit(complete, url, own, vllm_xargs={"eft_weights": own.weights}) for own in good]
        failed = clients.submit(complete, url, Asked([65, 66], [], 4), **wrong).result()
        assert (failed.status_code, failed.json()["error"]["code"]) == (status, status)
        assert [ids_of(one.result()) for one in running_ones] == [judge.greedy(own) for own in good]
    assert httpx.get(f"{url}/health").status_code == 200


def test_body_that_is_not_json_is_refused(url: str) -> None:
    response = httpx.post(f"{url}/v1/completions", content=b"{", headers={"content-type": "application/json"})
    assert 400 <= response.status_code < 500
    assert httpx.get(f"{url}/health").status_code == 200


def test_models_list_their_pairs(url: str) -> None:
    listed = httpx.get(f"{url}/v1/models").json()["data"]
    assert {model["id"]: model["eft"]["pairs"] for model in listed} == {
        "both": {"chat": 1.0, "json": 1.0},
        "friendly": {"chat": 0.5},
    }


# ---- adapters ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(trio: TrioFolders) -> Iterator[Any]:
    """Our own engine with the same trio."""
    pairs = {name: TunedPair(str(tuned), str(reference)) for name, (tuned, reference) in trio.pairs.items()}
    with Engine.load(str(trio.base), pairs=pairs, config=EngineConfig(dtype="float32", device="cpu")) as engine:
        yield engine


@pytest.fixture(scope="module")
def remote(url: str) -> RemoteBackend:
    return RemoteBackend(f"{url}/v1")


CONVERSATION = (Message("system", "Be brief."), *QUESTION, Message("assistant", "Me."), Message("user", "Who?"))


def whole(text: str) -> str:
    """Without a character whose bytes were cut off at the end: vLLM leaves it out, the engine marks it."""
    return text.rstrip("\N{REPLACEMENT CHARACTER}")


GREEDY = {"temperature": 0.0, "max_tokens": 16}
SWITCH = Tool(
    "switch", "Turn it on or off.", {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
)
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
CLOSED = {**GREEDY, "max_tokens": 120}


@pytest.mark.parametrize(
    "request_",
    [
        ChatRequest(QUESTION, sampling=GREEDY),
        ChatRequest(QUESTION, sampling=GREEDY, reward_weights={"chat": 0.5, "json": -0.7}),
        ChatRequest(QUESTION, sampling={**GREEDY, "stop": ["e", "7"], "logprobs": 2}, reward_weights=1.37),
        ChatRequest(CONVERSATION, sampling=GREEDY),
        ChatRequest(prompt="Once upon a time", sampling={**GREEDY, "logprobs": 0}),
        ChatRequest(QUESTION, sampling=CLOSED, response_schema=SCHEMA),
        ChatRequest(QUESTION, (SWITCH,), ToolChoice("required", parallel=False), sampling=CLOSED),
        ChatRequest(QUESTION, sampling={**GREEDY, "logit_bias": {65: 100.0}, "ignore_eos": True}),
    ],
    ids=["plain", "weights", "stop and logprobs", "conversation", "text", "schema", "tool", "bias"],
)  # fmt: skip
def test_remote_backend_answers_as_the_engine_does(remote: RemoteBackend, engine: Any, request_: ChatRequest) -> None:
    theirs, ours = remote.chat(request_), backend_of(engine).chat(request_)
    assert whole(theirs.content) == whole(ours.content)
    assert theirs.finish_reason == ours.finish_reason
    assert theirs.metadata["reward_weights"] == ours.metadata["reward_weights"]
    assert [(call.name, call.arguments) for call in theirs.tool_calls] == [
        (call.name, call.arguments) for call in ours.tool_calls
    ]
    assert theirs.usage.prompt_tokens == ours.usage.prompt_tokens == remote.count_prompt_tokens(request_)
    ended_by_grammar = bool(ours.tool_calls) or request_.response_schema is not None  # vLLM generates an end token then
    assert theirs.usage.completion_tokens - ours.usage.completion_tokens == int(ended_by_grammar)
    if ours.logprobs is not None:
        assert theirs.logprobs is not None
        assert [own.token_id for own in theirs.logprobs] == [own.token_id for own in ours.logprobs]
        assert [own.logprob for own in theirs.logprobs] == pytest.approx(
            [own.logprob for own in ours.logprobs], abs=1e-4
        )


def test_remote_backend_knows_what_the_engine_knows(remote: RemoteBackend, engine: Any) -> None:
    ours = backend_of(engine)
    assert remote.model_name == "both"
    assert remote.weights == ours.weights
    assert remote.context_len == ours.context_len
    assert remote.token_ids("Grüße") == ours.token_ids("Grüße")
    before = remote.stats()
    remote.chat(ChatRequest(QUESTION, sampling=GREEDY))
    assert remote.stats().num_finished == before.num_finished + 1


def test_stream_joins_to_the_whole_answer_and_can_be_left(remote: RemoteBackend) -> None:
    asked = ChatRequest(QUESTION, sampling=GREEDY)
    pieces = list(remote.stream(asked))
    assert "".join(piece.text for piece in pieces) == remote.chat(asked).content
    assert len(pieces) > 3
    left = remote.stream(ChatRequest(QUESTION, sampling={**GREEDY, "max_tokens": 400, "ignore_eos": True}))
    next(left)
    left.close()  # type: ignore[attr-defined]
    assert remote.chat(asked).content == "".join(piece.text for piece in pieces)


def test_async_answers_in_two_event_loops(remote: RemoteBackend) -> None:
    asked = [ChatRequest(QUESTION, sampling=GREEDY, reward_weights=weight) for weight in (0.0, 0.5, 1.0, 2.0)] * 2

    async def ask() -> list[str]:
        return [result.content for result in await asyncio.gather(*map(remote.achat, asked))]

    expected = [remote.chat(own).content for own in asked]
    assert asyncio.run(ask()) == expected
    assert asyncio.run(ask()) == expected


def test_errors_have_the_types_of_the_engine(remote: RemoteBackend, url: str) -> None:
    with pytest.raises(errors.UnknownPairError):
        remote.chat(ChatRequest(QUESTION, reward_weights={"polite": 1.0}))
    with pytest.raises(errors.InvalidWeightError):
        remote.chat(ChatRequest(QUESTION, reward_weights=float("nan")))
    with pytest.raises(errors.ContextOverflowError) as found:
        remote.chat(ChatRequest((Message("user", "word " * 300),), sampling=GREEDY))
    assert found.value.prompt_len > found.value.context_len == remote.context_len
    with pytest.raises(errors.InvalidOptionError):
        remote.chat(ChatRequest(QUESTION, sampling={**GREEDY, "logprobs": 100}))
    with pytest.raises(errors.ModelNotFoundError, match="both, friendly"):
        _ = RemoteBackend(f"{url}/v1", served_name="nobody").weights
    with pytest.raises(errors.RemoteServerError):
        _ = RemoteBackend("http://127.0.0.1:9/v1").weights


def test_langchain_moves_by_one_line(url: str, engine: Any) -> None:
    from eft_integrations.langchain import EFTChatModel

    here, there = EFTChatModel(engine=engine, **GREEDY), EFTChatModel(base_url=f"{url}/v1", **GREEDY)
    for weights in (0.0, 1.0, {"chat": 2.0, "json": -0.7}):
        answers = [model.with_weights(weights).invoke("Hello").text for model in (here, there)]
        assert whole(answers[0]) == whole(answers[1])
    by_alias = there.invoke("Hello", model="both@chat=0.5,json=0")
    assert whole(by_alias.text) == whole(here.invoke("Hello", reward_weights={"chat": 0.5, "json": 0.0}).text)
    friendly = EFTChatModel(base_url=f"{url}/v1", served_name="friendly", **GREEDY)
    assert friendly.invoke("Hello").content == by_alias.content


def test_our_server_stands_in_front_by_one_line(url: str, remote: RemoteBackend) -> None:
    from eft_integrations.server.composition_settings import CompositionSettings
    from eft_integrations.server.loading import load_compositions

    settings = CompositionSettings(name="gate", url=f"{url}/v1", weights={"json": 0.0})
    body = {
        "model": "gate@chat=2",
        "messages": [{"role": "user", "content": "Hello"}],
        "temperature": 0,
        "max_tokens": 16,
    }
    with running(load_compositions([settings], EngineConfig())) as gate:
        answer = httpx.post(f"{gate}/v1/chat/completions", json=body, timeout=600).json()
        missing = httpx.post(
            f"{gate}/v1/chat/completions", json={**body, "eft_reward_weights": {"polite": 1}}, timeout=600
        )
    asked = ChatRequest((Message("user", "Hello"),), sampling=GREEDY, reward_weights={"chat": 2.0, "json": 0.0})
    assert answer["choices"][0]["message"]["content"] == remote.chat(asked).content
    assert answer["eft"]["reward_weights"] == {"chat": 2.0, "json": 0.0}
    assert missing.status_code == 400
