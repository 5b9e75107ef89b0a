"""A forked child says that it has no engine, at every way in, whatever locks were held at the fork; and it can load its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import torch

from eft_engine import Engine, SamplingParams
from eft_engine.engine.openmp import num_threads
from eft_engine.engine.worker import _close_all
from tests.toy import ToyTrio, make_trio

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no process forks here"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
SHORT = SamplingParams(temperature=0.0, max_tokens=4)


def in_child(function: Callable[[], object]) -> str:
    """What a function returns in a forked child, or the kind of error that it raises there; nothing where it hangs."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        try:
            said = str(function())
        except BaseException as error:
            said = type(error).__name__
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said


@pytest.fixture(scope="module")
def engine(toy_trio: ToyTrio) -> Iterator[Engine]:
    """Has answered once, so that its thread has computed."""
    with toy_trio.engine() as engine:
        engine.generate("abc", sampling=SHORT)
        yield engine


WAYS_IN: dict[str, Callable[[Engine], object]] = {
    "generate": lambda engine: engine.generate("abc", sampling=SHORT),
    "stream": lambda engine: next(engine.stream("abc", sampling=SHORT)),
    "score": lambda engine: engine.score("abc", "def"),
    "token_ids": lambda engine: engine.token_ids("abc"),
    "count_prompt_tokens": lambda engine: engine.count_prompt_tokens("abc"),
    "stats": lambda engine: engine.stats(),
}


@pytest.mark.parametrize("name", WAYS_IN)
def test_engine_of_the_parent_is_refused_in_a_child_even_where_its_locks_are_held(name: str, engine: Engine) -> None:
    with ExitStack() as held:
        held.enter_context(engine._worker._wake)
        held.enter_context(engine._requests._tokenizer_lock)
        assert in_child(lambda: WAYS_IN[name](engine)) == "ForkedEngineError"


def test_stream_of_the_parent_is_refused_in_a_child(engine: Engine) -> None:
    stream = engine.stream("abc", sampling=SHORT)
    next(stream)
    assert in_child(lambda: list(stream)) == "ForkedEngineError"
    assert list(stream)[-1].output is not None, "the parent's goes on"


def test_child_leaves_the_parents_engine_alone(engine: Engine) -> None:
    with engine._worker._wake:
        assert in_child(engine.close) == "None"
        assert in_child(_close_all) == "None", "what is done when an interpreter ends"
    assert not engine.is_closed
    assert engine.generate("abc", sampling=SHORT).text


def test_child_computes_although_its_parent_did_with_several_threads() -> None:
    numbers = torch.zeros(700, 700)
    with num_threads(2):
        numbers.exp().sum()
        assert in_child(lambda: float(numbers.exp().sum())) == "490000.0"


def test_child_loads_an_engine_of_its_own(engine: Engine) -> None:
    text = engine.generate("abc", sampling=SHORT).text

    def own() -> str:
        with make_trio("llama").engine() as found:
            return found.generate("abc", sampling=SHORT).text

    assert in_child(own) == text
