"""Blocks of code that give their weights to everything that is asked inside them, however deep in a chain the model is called.

A context variable alone is not enough. A generator runs in the context of whoever asks for its next piece: what it sets is seen by
its reader between two pieces, and is missing when another context asks for the next one, as Starlette's threads do. So a block that
a generator entered is in effect where that generator runs and in the tasks and threads that it started, and nowhere else; any other
block is in effect in its context and in those that are copied from it.
"""

from __future__ import annotations

import inspect
import opcode
import sys
import threading
import types
import warnings
from collections.abc import Callable, Generator
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from eft_engine.config import RewardWeights

GENERATORS = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
FIXTURES = ("_pytest.", "pytest_asyncio.")
"""Packages that run a generator up to its `yield` and keep it there while other code is to see what it set, as contextlib does."""
THREADS_OF_A_CALL = "anyio."
"""Runs every call of a function in a context that ends with it."""
WRAPS_A_PIECE = "ASYNC_GEN_WRAP"


Result = TypeVar("Result")


class Steps(Protocol):
    """What coroutines and steps of asynchronous generators have in common."""

    def send(self, value: Any, /) -> Any: ...

    def throw(self, error: BaseException, /) -> Any: ...


class WeightsWarning(UserWarning):
    """The weights of a block did not reach what was asked."""


@dataclass(eq=False)
class Block:
    """One block that was entered.

    Args:
        weights: its weights.
        outer: the block that was in effect where it was entered.
        generator: the frame of the generator that entered it; None: it was no generator.
        place: file and line.
        is_of_stream: it stands for another block in the carrier of a stream; what is made inside is read inside.
    """

    weights: RewardWeights
    outer: Block | None
    generator: types.FrameType | None
    place: str
    is_of_stream: bool = False
    is_left: bool = False
    was_used: bool = False

    def is_within(self, other: Block) -> bool:
        """Whether this block was entered inside of the other one."""
        block: Block | None = self
        while block is not None:
            if block is other:
                return True
            block = block.outer
        return False


@dataclass(eq=False)
class Unused:
    """What a context keeps of a block in which nothing was asked, until something is asked after it."""

    block: Block
    was_told: bool = False


_CURRENT: ContextVar[Block | Unused | None] = ContextVar("eft_reward_weights", default=None)
_OF_GENERATORS: dict[types.FrameType, list[Block]] = {}
"""Open blocks by the generator that entered them, or the carrier that runs them, the innermost last."""


def current_weights() -> RewardWeights:
    """The weights of the block that is in effect, or None."""
    block = in_effect()
    return None if block is None else block.weights


def weights_of_call(*, has_own: bool = False) -> RewardWeights:
    """`current_weights` for a call to a model, which thereby uses the block. Of a block that it may have missed the user is told,
    unless the call has weights of its own.
    """
    block = in_effect()
    if block is not None:
        block.was_used = True
        return block.weights
    if not has_own:
        _tell_of_unused()
    return None


def in_effect() -> Block | None:
    """The innermost block here."""
    running = _of_running_generator()
    inherited = _inherited()
    if running is None or (inherited is not None and inherited.is_within(running)):
        return inherited
    return running


class Carrier:
    """Where something runs with the weights of a block, whoever waits for it: a context of its own, a copy of the one here.

    Threads and tasks that begin there have the block as long as they run, and whoever waits has it never.
    """

    def __init__(self, block: Block, *, of_stream: bool = False) -> None:
        block.was_used = True
        self._block = Block(block.weights, None, None, block.place, is_of_stream=of_stream)
        self._context = copy_context()
        self._context.run(_CURRENT.set, self._block)

    def run(self, function: Callable[..., Result], *args: object, **keywords: object) -> Result:
        """Call a function there."""
        frame = sys._getframe()  # it stands nearer than a generator that waits for this
        _OF_GENERATORS[frame] = [self._block]
        try:
            return self._context.run(function, *args, **keywords)
        finally:
            del _OF_GENERATORS[frame]
            del frame  # which holds itself by this name, and its callers' streams with it

    @types.coroutine
    def wait(self, awaited: Steps) -> Generator[Any, Any, Any]:
        """Await something there."""
        resume: Callable[..., Any] = awaited.send
        value: Any = None
        while True:
            try:
                waits_for = self.run(resume, value)
            except StopIteration as end:
                return end.value
            try:
                value = yield waits_for
                resume = awaited.send
            except BaseException as error:  # cancellation too: it is for what is awaited
                resume, value = awaited.throw, error


# ---- which block is in effect -----------------------------------------------------------------------------------------------


def _of_running_generator() -> Block | None:
    """The block of the nearest generator on this thread's stack that has one open."""
    frame = sys._getframe(2) if _OF_GENERATORS else None
    while frame is not None:
        if blocks := _OF_GENERATORS.get(frame):
            return blocks[-1]
        frame = frame.f_back
    return None


def _inherited() -> Block | None:
    """The innermost block that this context has or was copied with."""
    block = _newest()
    while block is not None and not _reaches_its_context(block):
        block = block.outer
    return block


def _reaches_its_context(block: Block) -> bool:
    """Whether a block holds in its context. That of a generator does in tasks and threads that it waits for, not between pieces."""
    if block.is_left:
        return False
    frame = block.generator
    return frame is None or frame.f_back is not None or _is_awaiting(frame)


def _is_awaiting(frame: types.FrameType) -> bool:
    """Whether an async generator that does not run waits for something; False: it has given a piece, or is over.

    Both are the same instruction; in front of a piece stands one that wraps it, by itself or as an intrinsic function.
    """
    if not frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR:
        return False
    code, at = frame.f_code.co_code, frame.f_lasti
    name, before = opcode.opname[code[at]], opcode.opname[code[at - 2]]
    return name in ("YIELD_VALUE", "SEND") and before not in (WRAPS_A_PIECE, "CALL_INTRINSIC_1")


# ---- entering and leaving ---------------------------------------------------------------------------------------------------


def enter(reward_weights: RewardWeights, frame: types.FrameType) -> Block:
    """A block that begins in this frame."""
    opener = _opener(frame)
    is_generator = bool(opener.f_code.co_flags & GENERATORS)
    place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
    block = Block(reward_weights, in_effect(), opener if is_generator else None, place)
    if is_generator:
        _OF_GENERATORS.setdefault(opener, []).append(block)
    elif opener is not frame and _module(opener).startswith(THREADS_OF_A_CALL):
        _tell(
            block,
            "was entered by a function that runs in a context of its own, so it reaches nothing outside of that function: "
            "FastAPI runs dependencies with `yield` so. Write `async def` in front of the dependency",
        )
    _CURRENT.set(block)
    return block


def _opener(frame: types.FrameType) -> types.FrameType:
    """Who entered a block: what stands inside a context manager that contextlib made belongs to whoever entered that."""
    while frame.f_back is not None:
        is_helper = _module(frame) == "contextlib"
        driver = _module(frame.f_back)
        is_manager = frame.f_code.co_flags & GENERATORS and (driver == "contextlib" or driver.startswith(FIXTURES))
        if not (is_helper or is_manager):
            break
        frame = frame.f_back
    return frame


def _module(frame: types.FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def leave(block: Block, *, failed: bool) -> None:
    """The end of a block."""
    if block.generator is not None:
        _close(block)
    if _newest() is block:
        _CURRENT.set(block.outer if block.was_used or failed else Unused(block))
    else:
        block.is_left = True


def _close(block: Block) -> None:
    """Let a generator's block be open no more."""
    assert block.generator is not None
    blocks = _OF_GENERATORS[block.generator]
    blocks.remove(block)
    if not blocks:
        del _OF_GENERATORS[block.generator]


def _newest() -> Block | None:
    """What this context was given last, in effect or not."""
    found = _CURRENT.get()
    return found.block.outer if isinstance(found, Unused) else found


# ---- what is told -----------------------------------------------------------------------------------------------------------

_TOLD: set[str] = set()
_TOLD_LOCK = threading.Lock()


def _tell_of_unused() -> None:
    """Something is asked without weights after a block in which nothing was asked: perhaps it was made inside and begins now."""
    found = _CURRENT.get()
    if isinstance(found, Unused) and not found.was_told and not found.block.was_used:
        found.was_told = True
        _tell(
            found.block,
            "was left before anything was asked, and this call has no weights of a block. What begins when it is read or awaited "
            "must be read inside of the block. Or give the weights another way: with_weights(...), or LangChain's "
            'config={"configurable": {"eft_reward_weights": ...}}',
        )


def _tell(block: Block, what: str) -> None:
    """Warn, once for every place."""
    with _TOLD_LOCK:
        if block.place in _TOLD:
            return
        _TOLD.add(block.place)
    warnings.warn(f"the block weights({block.weights!r}) at {block.place} {what}", WeightsWarning, stacklevel=2)
