"""The workload comparison on a toy trio: every peer answers, the engine's text is the naive loop's, refusals are reported."""

from __future__ import annotations

import itertools

import pytest

from benchmarks import workloads
from benchmarks.bandwidth import position_bytes, step_bytes, weight_bytes
from benchmarks.naive import naive_batch
from benchmarks.smollm2 import SeparateTrio
from benchmarks.texts import WORKLOADS
from tests.toy import END_ID, make_trio, naive_greedy


def toy_case(batch_size: int, *, acceptance: float | None = None) -> workloads.Case:
    toy = make_trio("llama", context_len=8192)
    trio = SeparateTrio(toy.base, toy.tuned, toy.reference, toy.tokenizer)
    return workloads.Case(trio, workloads.make_turns(toy.tokenizer, "chat", batch_size), 4, acceptance)


def test_naive_batch_with_padding_is_the_formula_for_every_prompt() -> None:
    trio = make_trio("llama")
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9], [10]]
    run = naive_batch((trio.base, trio.tuned, trio.reference), prompts, weight=0.5, max_tokens=6)
    assert run.token_ids == [naive_greedy(trio, ids, weight=0.5, max_tokens=6, stop_at_end=False) for ids in prompts]


def test_every_peer_is_measured_and_what_refuses_batches_says_so() -> None:
    told: list[str] = []
    result = workloads.measure_case(toy_case(2), list(workloads.PEERS), rounds=1, bandwidth=1e9, advance=told.append)
    assert set(result) == set(workloads.PEERS)
    assert told == list(workloads.PEERS)
    assert "batch" in result["assisted"]["refused"]
    assert all(own["tokens_per_s"] > 0 for name, own in result.items() if name != "assisted")
    assert result["engine, none"]["bandwidth_share"] > 0
    assert result["naive loop"]["times naive loop"] == pytest.approx(1)
    workloads.make_table("toy", {("chat", 2): result})


def test_imposed_drafts_are_known_to_the_engine_by_the_prompts_of_the_naive_loop() -> None:
    peers = ["naive loop", "engine, none", "engine, tuned"]
    result = workloads.measure_case(
        toy_case(1, acceptance=1.0), peers, rounds=1, bandwidth=1e9, advance=lambda peer: None
    )
    assert result["engine, none"]["tokens_per_step"] == 1.0
    assert result["engine, tuned"]["tokens_per_step"] >= 1.0


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_conversations_differ_between_requests_and_turns_only_add_to_their_history(name: str) -> None:
    conversations = [WORKLOADS[name](index) for index in range(32)]
    assert len({str(turns) for turns in conversations}) == 32
    for turns in conversations:
        for before, after in itertools.pairwise(turns):
            assert after[: len(before)] == before
            assert len(after) > len(before)


def test_step_reads_all_weights_once_and_the_cache_of_every_row() -> None:
    base = make_trio("llama").base
    parameters = sum(parameter.nbytes for parameter in base.parameters())
    tied = base.get_input_embeddings().weight is base.get_output_embeddings().weight
    unread = 0 if tied else base.get_input_embeddings().weight.nbytes
    assert weight_bytes(base) == parameters - unread
    assert position_bytes(base) == 2 * 2 * 2 * 16 * 4  # keys and values, layers, key heads, head size, float32
    assert step_bytes([base], [10, 20]) == weight_bytes(base) + 30 * position_bytes(base)
    assert base.config.eos_token_id == END_ID
