"""How long an engine stays loaded: durations, the count of uses under a clock of the test, and both model classes."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage

from eft_engine import errors
from eft_integrations.backends.engine import EngineBackend
from eft_integrations.backends.keep_alive import KeepAlive
from eft_integrations.durations import FOREVER, keep_alive_s
from eft_integrations.langchain import EFTChatModel
from eft_integrations.llama_index import EFTLLM
from tests.toy import ToyTrio


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("5m", 300), ("1h30m", 5400), ("1.5h", 5400), ("300ms", 0.3), (90, 90), (0, 0), ("0", 0), ("0s", 0), ("2.5", 2.5),
        (-1, FOREVER), ("-1", FOREVER), ("-1m", FOREVER), (float("inf"), FOREVER),
    ],
    ids=str,
)  # fmt: skip
def test_durations_are_those_of_ollama(written: Any, seconds: float) -> None:
    assert keep_alive_s(written) == pytest.approx(seconds)


@pytest.mark.parametrize("written", ["soon", "", "5 m", "5x", "m5", "nan", True, None, [5]], ids=repr)
def test_what_is_no_duration_is_refused(written: Any) -> None:
    with pytest.raises(errors.InvalidOptionError, match="keep_alive is a number of seconds") as caught:
        keep_alive_s(written)
    assert caught.value.option == "keep_alive"


def until(condition: Callable[[], object]) -> None:
    """Wait until another thread has got so far."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.001)


class Clock:
    """Stands still until it is moved; `waits` are the times that the thread of a `KeepAlive` went to wait for."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, ended: queue.SimpleQueue[None], seconds: float) -> bool:
        due = self.now + seconds
        self.waits.append(due)
        while True:
            try:
                ended.get(timeout=0.001)
            except queue.Empty:
                if self.now >= due:
                    return False
            else:
                return True


class Loaded:
    """Something that is loaded, under a keeper."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.is_there = True
        self.num_closed = 0
        self.keeper = KeepAlive(self._detach, clock=self.clock, wait=self.clock.wait)

    def _detach(self) -> Callable[[], None] | None:
        was_there, self.is_there = self.is_there, False
        return self._close if was_there else None

    def _close(self) -> None:
        self.num_closed += 1


def test_it_is_let_go_that_long_after_the_last_use() -> None:
    loaded = Loaded()
    first, second = loaded.keeper.begin(10.0), loaded.keeper.begin(10.0)
    first.end()
    first.end()
    until(lambda: loaded.clock.waits[-1:] == [10.0])
    loaded.clock.now = 11.0
    until(lambda: loaded.clock.waits[-1:] == [FOREVER])
    assert loaded.is_there, "the second use has not ended"
    second.end()
    until(lambda: loaded.clock.waits[-1:] == [21.0])
    assert loaded.is_there
    loaded.clock.now = 21.0
    until(lambda: loaded.num_closed == 1)
    assert not loaded.is_there
    loaded.keeper.stop()


def test_last_use_that_says_something_decides() -> None:
    loaded = Loaded()
    loaded.keeper.begin(10.0).end()
    loaded.keeper.begin(None).end()
    until(lambda: loaded.clock.waits[-1:] == [10.0])
    loaded.keeper.begin(FOREVER).end()
    until(lambda: loaded.clock.waits[-1:] == [FOREVER])
    loaded.clock.now = 1e9
    loaded.keeper.begin(None).end()
    until(lambda: len(loaded.clock.waits) > 4)
    assert loaded.is_there
    loaded.keeper.stop()


def test_nobody_who_keeps_it_for_ever_has_a_thread() -> None:
    loaded = Loaded()
    for _ in range(3):
        loaded.keeper.begin(FOREVER).end()
    assert loaded.keeper._watcher is None
    assert loaded.keeper._ended.empty()


def test_let_go_waits_for_the_uses_that_run() -> None:
    loaded = Loaded()
    use = loaded.keeper.begin(FOREVER)
    loaded.keeper.let_go()
    assert loaded.is_there
    use.end()
    until(lambda: loaded.num_closed == 1)
    other = Loaded()
    other.keeper.let_go()
    assert other.num_closed == 1, "nobody used it: at once, in this thread"
    loaded.keeper.stop()


def test_nothing_is_loaded_while_the_one_before_is_still_being_closed() -> None:
    closing, may_close = threading.Event(), threading.Event()

    def close() -> None:
        closing.set()
        assert may_close.wait(60)

    keeper = KeepAlive(lambda: close)
    leaving = threading.Thread(target=keeper.let_go)
    leaving.start()
    assert closing.wait(60)
    assert not keeper.loading.acquire(blocking=False)
    keeper.begin().end()  # comes and goes meanwhile
    may_close.set()
    leaving.join()
    assert keeper.loading.acquire(blocking=False)


# ---- models --------------------------------------------------------------------------------------------------------------


def ask(model: Any, **keywords: Any) -> Any:
    """One answer, in the host's own words."""
    if isinstance(model, EFTLLM):
        return model.chat([ChatMessage("abc")], **keywords).message.content
    return model.invoke("abc", **keywords).content


def stream(model: Any, **keywords: Any) -> Any:
    """An answer in pieces."""
    return (
        model.stream_chat([ChatMessage("abc")], **keywords)
        if isinstance(model, EFTLLM)
        else model.stream("abc", **keywords)
    )


@pytest.mark.parametrize("adapter", [EFTChatModel, EFTLLM])
def test_engine_goes_after_the_last_request_and_the_next_one_loads_it_again(adapter: Any, toy_trio: ToyTrio) -> None:
    loads: list[Any] = []

    def load() -> Any:
        loads.append(toy_trio.engine())
        return loads[-1]

    backend = EngineBackend(load, model_name="toy")
    model = adapter(backend=backend, temperature=0.0, max_tokens=4)
    answer = ask(model)
    assert backend.is_loaded, "without a word it stays for ever"
    pieces = stream(model, keep_alive=0)
    next(pieces)
    assert ask(model, keep_alive=0) == answer
    assert backend.is_loaded, "a request runs"
    pieces.close()
    until(lambda: not backend.is_loaded)
    with backend._keeper.loading:  # held until it is closed
        assert loads[0].is_closed
    assert not backend.is_closed
    assert ask(model, keep_alive="1h") == answer
    assert len(loads) == 2
    assert backend.is_loaded
    backend.close()
    assert loads[1].is_closed


@pytest.mark.parametrize("adapter", [EFTChatModel, EFTLLM])
async def test_asynchronous_requests_keep_it_too(adapter: Any, toy_trio: ToyTrio) -> None:
    backend = EngineBackend(toy_trio.engine, model_name="toy")
    model = adapter(backend=backend, temperature=0.0, max_tokens=4, keep_alive=0)
    pieces = await model.astream_chat([ChatMessage("abc")]) if adapter is EFTLLM else model.astream("abc")
    await anext(pieces)
    await pieces.aclose()
    while backend.is_loaded:  # LlamaIndex leaves what it wraps to the event loop
        await asyncio.sleep(0.001)
    with backend._keeper.loading:  # held until it is closed
        assert not backend.is_loaded


@pytest.mark.parametrize("adapter", [EFTChatModel, EFTLLM])
def test_engine_of_somebody_else_is_not_let_go(adapter: Any, toy_trio: ToyTrio) -> None:
    engine = toy_trio.engine()
    with pytest.raises(errors.InvalidOptionError, match="keep_alive") as caught:
        adapter(engine=engine, keep_alive="5m")
    assert caught.value.option == "keep_alive"
    with pytest.raises(errors.InvalidOptionError, match="keep_alive"):
        adapter(base_url="http://127.0.0.1:9/v1", keep_alive=0)
    assert adapter(engine=engine, keep_alive=-1)
    with pytest.raises(Exception, match="loaded by somebody else"):
        ask(adapter(engine=engine, max_tokens=1), keep_alive=0)
    assert not engine.is_closed
    engine.close()
