"""Under load and after mistakes: a failure stays with its request, and the engine lives on."""

from __future__ import annotations

import asyncio
import gc
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from eft_engine import Engine, SamplingParams
from eft_engine.errors import (
    ChatTemplateError,
    ContextOverflowError,
    EFTError,
    EmptyPromptError,
    EngineClosedError,
    EngineStepError,
    InvalidOptionError,
    InvalidWeightError,
    NonFiniteLogitsError,
    UnknownPairError,
)
from tests.toy import ToyTrio, make_model, make_tokenizer, make_trio

GREEDY = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
LONG = SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)


@pytest.fixture
def engine() -> Iterator[Engine]:
    """A trio of its own for every test."""
    with make_trio("llama").engine() as engine:
        yield engine


def drained(engine: Engine) -> bool:
    """Whether the engine comes to rest with no sequence left."""
    for _ in range(200):
        if not engine._worker._scheduler.has_work:
            return True
        time.sleep(0.01)
    return False


def poisoned_trio(architecture: str) -> ToyTrio:
    """The base returns NaN once it has read a Z."""
    base = make_model(architecture, hidden_size=64, seed=1)
    tokenizer = make_tokenizer()
    with torch.no_grad():
        base.model.embed_tokens.weight[tokenizer.encode("Z")[0]] = torch.nan
        base.lm_head.weight.copy_(torch.randn_like(base.lm_head.weight) * 0.3)
    return ToyTrio(base, make_model(architecture, seed=2), make_model(architecture, seed=3), tokenizer)


def test_threads_get_what_they_would_get_alone(engine: Engine) -> None:
    prompts = [f"prompt {index} " + "x" * index for index in range(24)]
    weights = [index % 4 / 2 for index in range(24)]
    expected = [
        engine.generate(p, sampling=GREEDY, reward_weights=w).token_ids for p, w in zip(prompts, weights, strict=True)
    ]
    with ThreadPoolExecutor(8) as pool:
        futures = [
            pool.submit(engine.generate, prompt, sampling=GREEDY, reward_weights=weight)
            for prompt, weight in zip(prompts, weights, strict=True)
        ]
        found = [future.result().token_ids for future in futures]
    assert found == expected


@pytest.mark.parametrize("architecture", ["llama", pytest.param("qwen3_next", marks=pytest.mark.only_torch)])
def test_nan_fails_its_own_request_and_no_other(architecture: str) -> None:
    with poisoned_trio(architecture).engine() as engine:
        expected = engine.generate("abc", sampling=GREEDY, reward_weights=0.5).token_ids
        results: dict[str, Any] = {}

        def ask(name: str, prompt: str) -> None:
            try:
                results[name] = engine.generate(prompt, sampling=GREEDY, reward_weights=0.5).token_ids
            except EFTError as error:
                results[name] = error

        threads = [
            threading.Thread(target=ask, args=pair) for pair in (("good", "abc"), ("bad", "aZc"), ("fine", "abc"))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results["good"] == results["fine"] == expected
        assert isinstance(results["bad"], NonFiniteLogitsError)
        assert "base returned NaN" in str(results["bad"])
        assert results["bad"].position == 0
        # whoever gets the slots of the failed request finds no NaN in them
        again = engine.generate(["abc"] * 4, sampling=GREEDY, reward_weights=0.5)
        assert {out.token_ids for out in again} == {expected}
        with pytest.raises(NonFiniteLogitsError):
            engine.score("a", "Zbc")


def test_forbidding_every_token_is_an_error_of_the_request(engine: Engine) -> None:
    everything = dict.fromkeys(range(260), -math.inf)
    forbidden = SamplingParams(max_tokens=3, temperature=0.0, logit_bias=everything)
    with pytest.raises(NonFiniteLogitsError, match="no token is possible"):
        engine.generate("a", sampling=forbidden)
    assert engine.generate("a", sampling=GREEDY).token_ids


def test_exception_in_a_step_fails_those_in_it_and_the_engine_lives(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = engine.generate("abc", sampling=GREEDY).token_ids
    base = engine._trio.networks[0]
    with monkeypatch.context() as patch:
        patch.setattr(base, "forward", lambda blocks: (_ for _ in ()).throw(RuntimeError("boom")))
        with pytest.raises(EngineStepError, match="boom") as caught:
            engine.generate(["abc", "def"], sampling=GREEDY)
        assert isinstance(caught.value.__cause__, RuntimeError)
    assert engine.generate("abc", sampling=GREEDY).token_ids == expected


def test_closing_a_stream_cancels_its_request(engine: Engine) -> None:
    expected = engine.generate("abc", sampling=GREEDY).token_ids
    stream = engine.stream("abcdef", sampling=LONG)
    next(stream)
    stream.close()
    assert engine.generate("abc", sampling=GREEDY).token_ids == expected
    assert drained(engine)


def test_dropping_a_stream_cancels_its_request(engine: Engine) -> None:
    stream = engine.stream("abcdef", sampling=LONG)
    next(stream)
    del stream
    gc.collect()
    engine.generate("abc", sampling=GREEDY)
    assert drained(engine)


async def test_cancelling_a_task_cancels_its_requests(engine: Engine) -> None:
    task = asyncio.create_task(engine.agenerate(["abc", "def"], sampling=LONG))
    async for _ in engine.astream("x", sampling=SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)):
        pass
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await engine.agenerate("abc", sampling=GREEDY)).token_ids
    assert drained(engine)


async def test_errors_reach_async_callers() -> None:
    with poisoned_trio("llama").engine() as engine:
        with pytest.raises(NonFiniteLogitsError):
            await engine.agenerate("Z", sampling=GREEDY)
        with pytest.raises(NonFiniteLogitsError):
            await engine.ascore("a", "Zbc")


def test_closing_fails_what_is_in_flight_and_refuses_what_comes_later() -> None:
    engine = make_trio("llama").engine(max_num_seqs=1)
    streams = [engine.stream(letter, sampling=LONG) for letter in "abc"]
    next(streams[0])
    engine.close()
    for stream in streams:
        with pytest.raises(EngineClosedError, match="in flight"):
            list(stream)
    with pytest.raises(EngineClosedError, match="load a new one"):
        engine.generate("a", sampling=GREEDY)
    engine.close()
    assert not any(thread.name == "eft-engine" and thread is engine._worker._thread for thread in threading.enumerate())


BAD_REQUESTS: list[tuple[Any, dict[str, Any], type[Exception]]] = [
    ("", {}, EmptyPromptError),
    ("x" * 300, {}, ContextOverflowError),
    ("a", {"reward_weights": math.nan}, InvalidWeightError),
    ("a", {"reward_weights": {"chat": "high"}}, InvalidWeightError),
    ("a", {"reward_weights": {"chatty": 1.0}}, UnknownPairError),
    ("a", {"sampling": "greedy"}, InvalidOptionError),
    ("a", {"temperature": 1.0}, TypeError),
    ([{"role": "user"}, {"content": 3}], {}, ChatTemplateError),
    (["a", ""], {}, EmptyPromptError),
]


def test_the_engine_answers_after_every_mistake(engine: Engine) -> None:
    expected = engine.generate("abc", sampling=GREEDY).token_ids
    for prompt, arguments, kind in BAD_REQUESTS:
        with pytest.raises(kind):
            engine.generate(prompt, **arguments)
        with pytest.raises(kind if prompt != ["a", ""] else InvalidOptionError):
            list(engine.stream(prompt, **arguments))
        assert engine.generate("abc", sampling=GREEDY).token_ids == expected


def test_program_that_does_not_close_its_engine_ends_cleanly() -> None:
    """The engine's thread is in the middle of a step when the interpreter goes away."""
    code = (
        "from eft_engine import SamplingParams\n"
        "from tests.toy import make_trio\n"
        "engine = make_trio('llama').engine()\n"
        "stream = engine.stream('abc', sampling=SamplingParams(max_tokens=200, ignore_eos=True))\n"
        "next(stream)\n"
        "print('done', flush=True)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr
