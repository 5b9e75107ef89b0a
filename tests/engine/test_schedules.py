"""Whatever joins, is cancelled, stops or is preempted at whatever moment: every answer is the one that its request gets alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eft_engine import Engine, GenerationDelta, SamplingParams, SpeculationOptions
from eft_engine.engine.scheduler import Scheduler, StepPlan
from tests.toy import make_trio

SHARED = "You are a helpful assistant that answers briefly. "


@dataclass(frozen=True)
class Ask:
    """One request of the pool that schedules choose from."""

    prompt: str
    weight: float
    sampling: SamplingParams
    drafter: str

    def stream(self, engine: Engine, *, drafter: str | None = None) -> Iterator[GenerationDelta]:
        """Ask `engine`."""
        speculation = SpeculationOptions(
            drafter=drafter or self.drafter, adaptive=False, max_draft_tokens=3, min_ngram_size=1
        )
        return engine.stream(self.prompt, sampling=self.sampling, reward_weights=self.weight, speculation=speculation)


def sampling(**options: Any) -> SamplingParams:
    """14 tokens, past the end of the text."""
    return SamplingParams(**{"max_tokens": 14, "ignore_eos": True, "temperature": 0.0, **options})


POOL = [
    Ask("abc", 1.0, sampling(), "tuned"),
    Ask("ab" * 30, 0.5, sampling(), "prompt_lookup"),
    Ask("the cat sat on the mat", 0.0, sampling(), "none"),
    Ask(SHARED + "What is a mill?", 1.0, sampling(temperature=0.9, seed=1), "auto"),
    Ask(SHARED + "What is a weir?", 2.0, sampling(temperature=0.7, seed=2, top_p=0.9), "tuned"),
    Ask(SHARED * 3, -0.5, sampling(), "auto"),
    Ask("x", 1.0, sampling(repetition_penalty=1.3, frequency_penalty=0.5), "tuned"),
    Ask("12345", 0.5, sampling(temperature=1.0, seed=3, max_tokens=1), "tuned"),
    Ask("one two three one two", 1.0, sampling(temperature=0.5, seed=4, top_k=5, max_tokens=40), "prompt_lookup"),
]


def answer(deltas: Iterator[GenerationDelta]) -> tuple[tuple[int, ...], str]:
    """All tokens and the whole text of a stream."""
    pieces = list(deltas)
    return tuple(token_id for piece in pieces for token_id in piece.token_ids), "".join(p.text_delta for p in pieces)


@pytest.fixture(
    scope="module", params=["llama", pytest.param("qwen3_next", marks=[pytest.mark.only_torch, pytest.mark.thorough])]
)
def architecture(request: pytest.FixtureRequest) -> str:
    """Attention alone, and with a gated delta net and convolutions beside it."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def asks(architecture: str) -> list[tuple[Ask, tuple[tuple[int, ...], str]]]:
    """The pool with the right answers, and the same requests again with a stop string from the middle of their text."""
    with make_trio(architecture).engine(max_num_seqs=1, max_warm_prefixes=0) as alone:
        known = [(ask, answer(ask.stream(alone, drafter="none"))) for ask in POOL]
        for ask, (_, text) in list(known):
            if len(text) >= 6:
                stop = text[len(text) // 2 : len(text) // 2 + 2]
                stopping = Ask(ask.prompt, ask.weight, ask.sampling.model_copy(update={"stop": (stop,)}), ask.drafter)
                known.append((stopping, answer(stopping.stream(alone, drafter="none"))))
    return known


@pytest.fixture(scope="module")
def engine(architecture: str) -> Iterator[Engine]:
    """Fewer rows than requests, short chunks, some warm prefixes: everything happens at once."""
    with make_trio(architecture).engine(max_num_seqs=3, prefill_chunk_len=16, max_warm_prefixes=2) as engine:
        yield engine


class Preempting:
    """Takes the slots of running sequences away at given steps, between two plans, on the engine's thread."""

    def __init__(self, scheduler: Scheduler, patch: pytest.MonkeyPatch) -> None:
        self._left: list[bool] = []
        self.count = 0
        original = scheduler.plan

        def plan() -> StepPlan:
            if scheduler.running and self._left and self._left.pop(0):
                scheduler.preempt(scheduler.running[-1])
                self.count += 1
            return original()

        patch.setattr(scheduler, "plan", plan)

    def at(self, steps: list[bool]) -> None:
        """Preempt in those of the coming steps that are True; a step has something to take away."""
        self._left = list(steps)


@pytest.fixture(scope="module")
def preempting(engine: Engine) -> Iterator[Preempting]:
    """One for all examples."""
    with pytest.MonkeyPatch.context() as patch:
        yield Preempting(engine._worker._scheduler, patch)


OPEN, READ, CANCEL = "open", "read", "cancel"
ACTIONS = st.lists(
    st.tuples(st.sampled_from([OPEN, OPEN, READ, READ, CANCEL]), st.integers(0, 99)), min_size=2, max_size=24
)


@settings(max_examples=30)
@given(actions=ACTIONS, preempt=st.lists(st.booleans(), min_size=8, max_size=20))
def test_answers_do_not_depend_on_the_schedule(
    engine: Engine,
    asks: list[tuple[Ask, tuple[tuple[int, ...], str]]],
    preempting: Preempting,
    actions: list[tuple[str, int]],
    preempt: list[bool],
) -> None:
    preempting.at(preempt)
    in_flight: list[tuple[Iterator[GenerationDelta], list[GenerationDelta], tuple[tuple[int, ...], str]]] = []
    for action, number in actions:
        if action == OPEN:
            ask, expected = asks[number % len(asks)]
            in_flight.append((ask.stream(engine), [], expected))
        elif in_flight:
            index = number % len(in_flight)
            stream, pieces, expected = in_flight[index]
            if action == READ:
                pieces.extend(piece for piece in [next(stream, None)] if piece is not None)
            else:
                stream.close()  # type: ignore[attr-defined]
                token_ids = tuple(token_id for piece in pieces for token_id in piece.token_ids)
                assert token_ids == expected[0][: len(token_ids)]
                del in_flight[index]
    for stream, pieces, expected in in_flight:
        assert answer(iter([*pieces, *stream])) == expected


def test_preemption_really_happened(preempting: Preempting) -> None:
    """Runs after the schedules."""
    assert preempting.count > 20
