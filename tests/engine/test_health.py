"""`Engine.health` tells an engine that works from one that hangs, one whose thread has ended and one that was closed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

import pytest

from eft_engine import Engine, EngineHealth, SamplingParams
from eft_engine.errors import EngineClosedError, EngineStepError, TensorParallelError
from eft_engine.models.network import Block
from tests.engine.gate import Gate
from tests.toy import make_trio, wait_until_idle

SHORT = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An engine that a test may break."""
    with make_trio("llama").engine() as engine:
        yield engine


def until(engine: Engine, fact: Callable[[EngineHealth], bool]) -> EngineHealth:
    """Wait for the health to show something."""
    deadline = time.monotonic() + 30
    while not fact(health := engine.health()):
        assert time.monotonic() < deadline, f"it never came: {health}"
        time.sleep(0.001)
    return health


def break_passes(patch: pytest.MonkeyPatch, engine: Engine, error: BaseException) -> None:
    """Let every pass of the base raise."""

    def forward(blocks: list[Block]) -> None:
        raise error

    patch.setattr(engine._trio.networks[0], "forward", forward)


def test_engine_without_work_is_alive_and_behind_with_nothing(engine: Engine) -> None:
    engine.generate("abc", sampling=SHORT)
    wait_until_idle(engine)
    health = until(engine, lambda health: health.step_s is None)
    assert health == EngineHealth(is_closed=False, failure=None, num_in_hand=0, step_s=None, seconds_since_progress=0.0)
    assert health.is_alive


def test_step_that_hangs_is_told_by_the_time_since_the_last_pass(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.generate("abc", sampling=SHORT)
    gate = Gate(monkeypatch, engine._trio.networks[0])
    stream = engine.stream("abc", sampling=SHORT)
    assert gate.reached.wait(30)
    first = engine.health()
    assert (first.is_alive, first.num_in_hand) == (True, 1)
    assert first.step_s is not None
    later = until(engine, lambda health: health.seconds_since_progress > first.seconds_since_progress + 0.05)
    assert later.step_s is not None
    assert later.step_s >= later.seconds_since_progress - 1.0
    with engine._worker._wake:  # a thread that hangs may hold it
        assert engine.health().is_alive
    gate.open()
    assert len(list(stream)[-1].output.token_ids) == 4  # type: ignore[union-attr]
    assert until(engine, lambda health: health.step_s is None).seconds_since_progress == 0.0


def test_engine_that_was_idle_for_long_does_not_seem_to_hang(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.generate("abc", sampling=SHORT)
    wait_until_idle(engine)
    until(engine, lambda health: health.step_s is None)
    engine._totals.last_pass -= 1000.0  # as if that had been long ago
    engine._worker._work_began -= 1000.0
    gate = Gate(monkeypatch, engine._trio.networks[0])
    stream = engine.stream("abc", sampling=SHORT)
    while not gate.reached.wait(0.0005):
        assert engine.health().seconds_since_progress < 500.0
    assert engine.health().seconds_since_progress < 500.0
    gate.open()
    stream.close()


def test_passes_are_progress_inside_one_step(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of several long passes is no hang."""
    gate = Gate(monkeypatch, engine._trio.networks[-1])
    stream = engine.stream("abc", sampling=SHORT)
    assert gate.reached.wait(30)
    assert engine._totals.last_pass > engine._worker._work_began, "a pass of another network ended in this step"
    gate.open()
    stream.close()


def test_thread_that_ends_leaves_nobody_waiting(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    break_passes(monkeypatch, engine, SystemExit("a library wants to end the process"))
    with caplog.at_level(logging.CRITICAL), pytest.raises(EngineClosedError, match="thread of the engine has ended"):
        engine.generate(["abc", "xyz"], sampling=SHORT)
    health = until(engine, lambda health: health.failure is not None)
    assert not health.is_alive
    assert health.failure == "the thread of the engine has ended (SystemExit)"
    assert not health.is_closed
    with pytest.raises(EngineClosedError, match="SystemExit"):
        engine.generate("abc", sampling=SHORT)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert engine.stats().num_running == engine.stats().num_waiting == 0


def test_failure_of_one_request_is_none_of_the_engine(engine: Engine) -> None:
    with pytest.MonkeyPatch.context() as patch:
        break_passes(patch, engine, RuntimeError("for once"))
        with pytest.raises(EngineStepError, match="for once"):
            engine.generate("abc", sampling=SHORT)
    engine.generate("abc", sampling=SHORT)
    assert engine.health().is_alive


def test_lost_process_of_a_network_is_a_failure_of_the_engine(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    break_passes(monkeypatch, engine, TensorParallelError("rank 1 is lost", rank=0))
    with pytest.raises(EngineStepError):
        engine.generate("abc", sampling=SHORT)
    assert until(engine, lambda health: not health.is_alive).failure == "a process that holds part of a network is lost"


def test_lost_device_is_a_failure_of_the_engine(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    break_passes(monkeypatch, engine, RuntimeError("CUDA error"))
    monkeypatch.setattr(engine._worker._stepper, "check_device", lost)
    with pytest.raises(EngineStepError):
        engine.generate("abc", sampling=SHORT)
    assert until(engine, lambda health: not health.is_alive).failure == "the device is lost (RuntimeError)"


def test_closed_engine_is_not_alive(engine: Engine) -> None:
    engine.close()
    health = engine.health()
    assert health.is_closed
    assert not health.is_alive


def test_share_of_the_cache_is_of_its_bound_or_of_what_the_context_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    with make_trio("llama", context_len=64).engine(max_num_seqs=2) as engine:
        assert engine.stats().kv_cache_use == 0.0
        stream = engine.stream("abc", sampling=SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True))
        first = next(stream)
        assert first.output is None
        assert 0.0 < engine.stats().kv_cache_use <= 0.5, "one of two texts"
        stream.close()
    with make_trio("llama", context_len=64).engine(max_num_seqs=2, max_kv_cache_bytes=10_000_000) as engine:
        engine.generate("abc", sampling=SHORT)
        stats = engine.stats()
        assert stats.kv_cache_use == pytest.approx(stats.kv_cache_bytes / 10_000_000)
        assert stats.kv_cache_use > 0.0
