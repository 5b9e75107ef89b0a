"""The reward of a token, as the server tells it, is what a plain pass over both models of the pair gives it."""

from __future__ import annotations

import json

import pytest
import torch

from eft_engine import SamplingParams
from eft_integrations.backends.pool import backend_of
from eft_integrations.backends.remote import RemoteBackend
from eft_integrations.server.openai.token_rewards import rewards_form
from tests.integrations.server.serving import events_of, in_process, running
from tests.toy import make_trio


@pytest.mark.parametrize("weight", [0.5, 1.0, -1.0])
@torch.inference_mode()
def test_rewards_are_those_of_a_plain_pass(weight: float) -> None:
    trio = make_trio("llama")
    prompt = "the cat sat"
    with trio.engine() as engine:
        (output,) = engine.generate([prompt], sampling=SamplingParams(max_tokens=12, logprobs=0), reward_weights=weight)

    prompt_ids = trio.tokenizer.encode(prompt)
    ids = torch.tensor([[*prompt_ids, *output.token_ids]])
    wanted = torch.zeros(len(output.token_ids))
    for sign, model in ((1, trio.tuned), (-1, trio.reference)):
        logprobs = model(ids.to(model.device)).logits[0, len(prompt_ids) - 1 : -1].float().cpu().log_softmax(-1)
        wanted += sign * logprobs.gather(-1, ids[0, len(prompt_ids) :, None])[:, 0]
    told = rewards_form(output.logprobs or (), ["chat"])
    assert [own["rewards"]["chat"] for own in told] == pytest.approx(wanted.tolist(), abs=2e-4)


def test_a_pair_that_was_not_run_has_no_reward() -> None:
    with make_trio("llama").engine() as engine:
        (output,) = engine.generate(["the cat"], sampling=SamplingParams(max_tokens=3, logprobs=0), reward_weights=0.0)
    assert [own["rewards"] for own in rewards_form(output.logprobs or (), ["chat"])] == [{}] * len(output.token_ids)


@pytest.mark.parametrize("logprobs", [False, True])
async def test_chunks_and_answers_tell_the_same_tokens(logprobs: bool) -> None:
    with make_trio("llama").engine() as engine:
        body = {
            "model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "temperature": 0,
            "eft_token_rewards": True, "logprobs": logprobs,
        }  # fmt: skip
        async with in_process({"m": backend_of(engine)}) as client:
            whole = (await client.post("/v1/chat/completions", json=body)).json()
            stream = await client.post("/v1/chat/completions", json={**body, "stream": True})
    assert (whole["choices"][0]["logprobs"] is not None) == logprobs
    chunks = [json.loads(text) for text in events_of(stream.text)[:-1]]
    tokens = whole["eft"]["choices"][0]["tokens"]
    streamed = [token for chunk in chunks for token in chunk.get("eft", {}).get("tokens", [])]
    assert any(chunk["choices"][0]["logprobs"] for chunk in chunks) == logprobs
    assert [token["token"] for token in tokens] == [token["token"] for token in streamed]
    assert [token["rewards"]["chat"] for token in tokens] == pytest.approx(
        [token["rewards"]["chat"] for token in streamed], abs=1e-4
    )


MESSAGES = [{"role": "user", "content": "the cat sat on the mat, the cat sat on the mat, the cat sat on"}]


async def test_chunks_tell_how_far_the_answer_is() -> None:
    body = {"model": "m", "messages": MESSAGES, "max_tokens": 40, "temperature": 0, "stream": True}
    with make_trio("llama").engine() as engine, running({"m": backend_of(engine)}) as url:
        served = {"m": backend_of(engine), "far": RemoteBackend(f"{url}/v1", served_name="m")}
        async with in_process(served) as client:
            plain = await client.post("/v1/chat/completions", json=body)
            texts = [
                (await client.post("/v1/chat/completions", json={**body, "model": name, "eft_progress": True})).text
                for name in served
            ]
    assert "progress" not in plain.text
    for text in texts:
        chunks = [json.loads(own) for own in events_of(text)[:-1]]
        told = [chunk["eft"]["progress"] for chunk in chunks if "progress" in chunk.get("eft", {})]
        counts = [own["num_tokens"] for own in told]
        assert counts == sorted(counts)
        assert len(counts) > 3
        assert any(own["num_drafted"] for own in told[:-1]), "it comes while the answer streams"
        rate = chunks[-1]["eft"]["choices"][0]["acceptance_rate"]
        assert told[-1]["num_accepted"] / told[-1]["num_drafted"] == pytest.approx(rate)


async def test_rewards_come_through_a_server_before_the_engine() -> None:
    body = {"model": "m", "messages": MESSAGES, "max_tokens": 4, "temperature": 0, "eft_token_rewards": True}
    with make_trio("llama").engine() as engine, running({"m": backend_of(engine)}) as url:
        async with in_process({"m": RemoteBackend(f"{url}/v1", served_name="m")}) as client:
            far = (await client.post("/v1/chat/completions", json=body)).json()
        async with in_process({"m": backend_of(engine)}) as client:
            near = (await client.post("/v1/chat/completions", json=body)).json()
    tokens = [answer["eft"]["choices"][0]["tokens"] for answer in (far, near)]
    assert len(tokens[0]) == 4
    assert [own["rewards"]["chat"] for own in tokens[0]] == pytest.approx(
        [own["rewards"]["chat"] for own in tokens[1]], abs=1e-4
    )
