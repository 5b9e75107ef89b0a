"""Streams that frameworks begin when they are read, not when they are made: those that are made inside a block keep its weights.

`(prompt | llm).stream(x)` is a generator of LangChain's, and a streamed answer of LlamaIndex's query engines is one of theirs: the
model is called when somebody asks for the first piece, perhaps long after the block. So entering a block puts a thin wrapper around
the methods that make such streams: what one returns inside a block is read inside of that block, piece by piece. Outside of blocks
they do what they always do.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import opcode
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any
from weakref import WeakSet

from eft_integrations.blocks import Block, carrying, in_effect

WATCHED: dict[tuple[str, str], tuple[str, ...]] = {
    ("langchain_core.runnables.base", "Runnable"): (
        "stream",
        "astream",
        "transform",
        "atransform",
        "astream_events",
        "astream_log",
        "stream_events",
        "batch_as_completed",
        "abatch_as_completed",
    ),
    ("llama_index.core.response_synthesizers.base", "BaseSynthesizer"): ("get_response", "aget_response"),
    ("llama_index.core.types", "BasePydanticProgram"): ("stream_call", "astream_call"),
    ("llama_index.core.llms.structured_llm", "StructuredLLM"): ("stream_chat", "astream_chat"),
}
"""Methods by the class whose subclasses have them."""
LOADED_LATE = tuple(
    f"langchain_core.runnables.{name}" for name in ("branch", "configurable", "fallbacks", "retry", "router")
)
"""Modules of such subclasses that LangChain loads when they are first used, which may be inside of a block."""
MARK = "__eft_watched__"
_KNOWN: WeakSet[type] = WeakSet()
_LOCK = threading.Lock()


def watch() -> None:
    """Watch all classes that are loaded by now."""
    if "langchain_core.runnables.base" in sys.modules:
        for name in LOADED_LATE:
            importlib.import_module(name)
    for (module, name), methods in WATCHED.items():
        root = getattr(sys.modules.get(module), name, None)
        if root is not None:
            for kind in _family(root) - set(_KNOWN):
                _watch(kind, methods)


def _family(root: type) -> set[type]:
    """A class and everything below it."""
    family = {root}
    waiting = [root]
    while waiting:
        below: set[type] = set(type.__subclasses__(waiting.pop()))
        waiting += below - family
        family |= below
    return family


def _watch(kind: type, methods: tuple[str, ...]) -> None:
    with _LOCK:
        for name in methods:
            method = vars(kind).get(name)
            if inspect.isroutine(method) and not hasattr(method, MARK):
                setattr(kind, name, _watched(method))
        _KNOWN.add(kind)


def _watched(method: Any) -> Callable[..., Any]:
    """A method whose streams keep the block that they are made in. It is bound as Python does it: it may be a wrapper itself."""

    @functools.wraps(method)
    def call(self: object, *args: Any, **keywords: Any) -> Any:
        return _kept(method.__get__(self, type(self))(*args, **keywords))

    @functools.wraps(method)
    async def acall(self: object, *args: Any, **keywords: Any) -> Any:
        return _kept(await method.__get__(self, type(self))(*args, **keywords))

    watched = acall if inspect.iscoroutinefunction(method) else call
    setattr(watched, MARK, True)
    return watched


def _kept(made: Any) -> Any:
    block = in_effect()
    return made if block is not None and block.is_carried else carried(made, block)


def is_lazy(made: object) -> bool:
    """Whether something is a stream that has not begun."""
    if inspect.isgenerator(made):
        return inspect.getgeneratorstate(made) == inspect.GEN_CREATED
    if not inspect.isasyncgen(made) or made.ag_frame is None:
        return False
    at = made.ag_frame.f_lasti
    return at < 0 or opcode.opname[made.ag_code.co_code[at]] == "RETURN_GENERATOR"


def carried(made: Any, block: Block | None) -> Any:
    """A stream that has not begun, to be read with the weights of a block; anything else as it is."""
    if block is None or not is_lazy(made):
        return made
    block.was_used = True
    return _pieces(made, block) if inspect.isgenerator(made) else _apieces(made, block)


def _pieces(made: Generator[Any, Any, Any], block: Block) -> Generator[Any, Any, Any]:
    sent: Any = None
    try:
        while True:
            try:
                with carrying(block):
                    piece = made.send(sent)
            except StopIteration as end:
                return end.value
            sent = yield piece
    finally:
        made.close()


async def _apieces(made: AsyncGenerator[Any, Any], block: Block) -> AsyncGenerator[Any, Any]:
    sent: Any = None
    try:
        while True:
            try:
                with carrying(block):
                    piece = await made.asend(sent)
            except StopAsyncIteration:
                return
            sent = yield piece
    finally:
        await made.aclose()
