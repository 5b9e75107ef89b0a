"""Forty shapes in four ways of asking: each is accepted, and whatever the masks let a model write is an object of the shape."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.exceptions import OutputParserException
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel, TypeAdapter, create_model
from pydantic.v1 import BaseModel as BaseModelV1
from typing_extensions import is_typeddict

from eft_engine import GenerationDelta, JsonSchema, Lark, RequestMetrics, RequestOutput, Usage
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.answer import AnswerReader
from eft_integrations.chat.prompt import Asked, ControlTokens
from eft_integrations.chat.request import ChatDelta, ChatRequest, ChatResult
from eft_integrations.langchain import EFTChatModel
from eft_integrations.llama_index import EFTLLM
from tests.choice import thorough_but
from tests.integrations.chat.sentences import sentence
from tests.integrations.chat.shapes import SHAPES, Address

METRICS = RequestMetrics(queue_s=0.0, ttft_s=0.0, tpot_s=0.0, total_s=0.0, num_forwards={})
SEEDS = range(4)
BEYOND_FLOATS = re.compile(r"\d[eE][+-]?\d{3}")
"""JSON has such numbers, and Python reads them as infinite."""


class WithoutSense(ScriptedBackend):
    """Writes what the masks of a request let it write, at random, and reads it as any backend does."""

    def __init__(self, seed: int) -> None:
        super().__init__([])
        self._random = random.Random(seed)

    def stream(self, request: ChatRequest) -> Iterator[ChatDelta]:
        """See `ChatBackend`."""
        asked = Asked.of(request, chat_template=None, control_tokens=ControlTokens.of({}, ()))
        text = self._written(asked)
        output = RequestOutput("random", text, (), "stop", None, Usage(1, 1), METRICS, {})
        reader = AnswerReader(asked)
        yield from reader.feed(GenerationDelta(text, finish_reason="stop", output=output))

    def chat(self, request: ChatRequest) -> ChatResult:
        """See `ChatBackend`."""
        *_, last = self.stream(request)
        assert last.result is not None
        return last.result

    def _written(self, asked: Asked) -> str:
        grammar = asked.options["sampling"].grammar
        assert isinstance(grammar, JsonSchema | Lark)
        rules = grammar.grammar if isinstance(grammar, Lark) else dict(grammar.json_schema)
        for _ in range(50):
            text = sentence(rules, self._random, max_len=2000)
            if text is not None and not BEYOND_FLOATS.search(text):
                return text
        raise AssertionError(f"nothing that comes to an end was found in 50 tries: {rules}")


def of_langchain(method: str) -> Callable[[Any, int], Any]:
    """An object through `EFTChatModel.with_structured_output`."""

    def ask(shape: Any, seed: int) -> Any:
        model = EFTChatModel(backend=WithoutSense(seed))
        return model.with_structured_output(shape, method=method).invoke("Now.")

    return ask


def of_llama_index(shape: Any, seed: int) -> Any:
    """An object through `EFTLLM.structured_predict`, which takes pydantic classes only."""
    if not is_typeddict(shape):
        return EFTLLM(backend=WithoutSense(seed)).structured_predict(shape, PromptTemplate("Now."))
    wrapped: Any = create_model("Wrapped", value=(shape, ...))
    return EFTLLM(backend=WithoutSense(seed)).structured_predict(wrapped, PromptTemplate("Now.")).value


METHODS: dict[str, Callable[[Any, int], Any]] = {
    "json_schema": of_langchain("json_schema"),
    "function_calling": of_langchain("function_calling"),
    "json_mode": of_langchain("json_mode"),
    "llama_index": of_llama_index,
}


def test_there_are_as_many_as_we_say() -> None:
    assert len(set(SHAPES)) * len(METHODS) == 160


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", thorough_but([pytest.param(own, id=own.__name__) for own in SHAPES], often=3))
def test_shape(shape: Any, method: str) -> None:
    for seed in SEEDS:
        found = METHODS[method](shape, seed)
        if is_typeddict(shape):
            TypeAdapter(shape).validate_python(found)
        else:
            assert isinstance(found, shape)


class Old(BaseModelV1):
    """A class of pydantic 1."""

    name: str
    older: list[Old] = []


Old.update_forward_refs()


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_classes_of_pydantic_1(method: str) -> None:
    assert isinstance(METHODS[method](Old, 0), Old)


class Picky(BaseModel):
    """What no mask can hold."""

    numbers: set[int]
    address: Address


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_what_no_mask_holds_is_checked_at_the_end(method: str) -> None:
    """Sets of numbers that repeat are no answers; those that do not are."""
    outcomes = set()
    for seed in range(60):
        try:
            found = METHODS[method](Picky, seed)
        except OutputParserException as error:
            outcomes.add("refused" if "non-unique" in str(error) else str(error))
        else:
            outcomes.add("taken" if isinstance(found, Picky) else repr(found))
    assert outcomes == {"refused", "taken"}
