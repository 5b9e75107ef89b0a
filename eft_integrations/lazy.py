"""What frameworks begin when it is read or awaited, not when it is made: what is made inside a block keeps its weights.

`(prompt | llm).stream(x)` is a generator of LangChain's, and a streamed answer of LlamaIndex's query engines is one of theirs: the
model is called when somebody asks for the first piece, perhaps long after the block. So entering a block puts a thin wrapper around
the methods that make such streams and coroutines: what one returns inside a block runs with that block, in a context of its own. So
do calls under the block of a generator, which the threads and tasks of a call would otherwise lose between two pieces. Outside of
blocks these methods do what they always do.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import opcode
import sys
import threading
import types
import weakref
from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import Any
from weakref import WeakSet

from eft_integrations.blocks import Block, Carrier, in_effect

WATCHED: dict[tuple[str, str], tuple[str, ...]] = {
    ("langchain_core.runnables.base", "Runnable"): (
        "invoke",
        "ainvoke",
        "batch",
        "abatch",
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
    ("workflows.workflow", "Workflow"): ("run",),
    ("llama_index.core.base.llms.base", "BaseLLM"): (
        "achat",
        "acomplete",
        "stream_chat",
        "astream_chat",
        "astream_complete",
    ),
    ("llama_index.core.base.base_query_engine", "BaseQueryEngine"): ("query", "aquery"),
    ("llama_index.core.chat_engine.types", "BaseChatEngine"): ("chat", "achat", "stream_chat", "astream_chat"),
    ("llama_index.core.response_synthesizers.base", "BaseSynthesizer"): (
        "synthesize",
        "asynthesize",
        "get_response",
        "aget_response",
    ),
    ("llama_index.core.types", "BasePydanticProgram"): ("stream_call", "astream_call"),
}
"""Methods by the class whose subclasses have them; no class is below two of these."""
LOADED_LATE = tuple(
    f"langchain_core.runnables.{name}" for name in ("branch", "configurable", "fallbacks", "retry", "router")
)
"""Modules of such subclasses that LangChain loads when they are first used, which may be inside of a block."""
_KNOWN: WeakSet[type] = WeakSet()
_LOCK = threading.Lock()


def watch() -> None:
    """Watch all classes that are loaded by now."""
    if "langchain_core.runnables.base" in sys.modules:
        for name in LOADED_LATE:
            importlib.import_module(name)
    with _LOCK:
        known = set(_KNOWN)
        for (module, name), methods in WATCHED.items():
            root = getattr(sys.modules.get(module), name, None)
            if root is not None:
                _watch(_family(root) - known, methods)


def _family(root: type) -> set[type]:
    """A class and everything below it."""
    family = {root}
    waiting = [root]
    while waiting:
        below: set[type] = set(type.__subclasses__(waiting.pop()))
        waiting += below - family
        family |= below
    return family


def _watch(kinds: set[type], methods: tuple[str, ...]) -> None:
    for kind in kinds:
        for name in methods:
            method = vars(kind).get(name)
            if not isinstance(method, Watched | staticmethod | classmethod) and inspect.isroutine(method):
                setattr(kind, name, Watched(method))
        _KNOWN.add(kind)


class Watched:
    """A method whose streams and coroutines keep the block that they are made in.

    It is bound as Python does it, since the method may be a wrapper itself, and asked what it is (a generator function, a coroutine
    function), it answers as the method does: LangChain makes another runnable of a generator function than of any other.
    """

    __wrapped__: Any

    def __init__(self, method: Any) -> None:
        functools.update_wrapper(self, method)
        for name in ("__code__", "__defaults__", "__kwdefaults__"):
            if hasattr(method, name):
                setattr(self, name, getattr(method, name))

    def __get__(self, instance: object, kind: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __call__(self, instance: object, /, *args: Any, **keywords: Any) -> Any:
        method = self.__wrapped__.__get__(instance, type(instance))
        block = in_effect()
        if block is None or block.is_of_stream:
            return method(*args, **keywords)
        if block.generator is None:
            return carried(method(*args, **keywords), block)
        return carried(Carrier(block).run(method, *args, **keywords), block)

    def __reduce__(self) -> str:
        return str(self.__wrapped__.__qualname__)


def is_lazy(made: object) -> bool:
    """Whether something is a stream or a coroutine that has not begun."""
    if inspect.iscoroutine(made):
        return inspect.getcoroutinestate(made) == inspect.CORO_CREATED
    if inspect.isgenerator(made):
        return inspect.getgeneratorstate(made) == inspect.GEN_CREATED
    if not inspect.isasyncgen(made) or made.ag_frame is None:
        return False
    at = made.ag_frame.f_lasti
    return at < 0 or opcode.opname[made.ag_code.co_code[at]] == "RETURN_GENERATOR"


def carried(made: Any, block: Block | None) -> Any:
    """A stream or coroutine that has not begun, to be run with the weights of a block; anything else as it is."""
    if block is None or not is_lazy(made):
        return made
    block.was_used = True
    if isinstance(made, types.CoroutineType):
        answer = _awaited(made, block)
        for name in ("__name__", "__qualname__"):
            setattr(answer, name, getattr(made, name))
        weakref.finalize(answer, made.close).atexit = False  # if it never begins, what is inside need not be awaited
        return answer
    kept = Block(block.weights, None, None, block.place)  # without the generator, which may hold this stream
    return _pieces(made, kept) if inspect.isgenerator(made) else _apieces(made, kept)


def _pieces(made: Generator[Any, Any, Any], block: Block) -> Generator[Any, Any, Any]:
    carrier = Carrier(block, of_stream=True)
    sent: Any = None
    try:
        while True:
            try:
                piece = carrier.run(made.send, sent)
            except StopIteration as end:
                return end.value
            sent = yield piece
    finally:
        carrier.run(made.close)


async def _apieces(made: AsyncGenerator[Any, Any], block: Block) -> AsyncGenerator[Any, Any]:
    carrier = Carrier(block, of_stream=True)
    sent: Any = None
    try:
        while True:
            try:
                piece = await carrier.wait(made.asend(sent))
            except StopAsyncIteration:
                return
            sent = yield piece
    finally:
        await carrier.wait(made.aclose())


async def _awaited(made: Coroutine[Any, Any, Any], block: Block) -> Any:
    """It needs no context of its own where the block is in effect as long as it runs. It may give a stream that has not begun."""
    if block.generator is None and in_effect() is block:
        return carried(await made, block)
    return carried(await Carrier(block).wait(made), block)
