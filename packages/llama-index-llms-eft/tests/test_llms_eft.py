"""The integration's names, its entry in LlamaIndex's table of LLMs, and answers of a trio that comes with the core."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.loading import load_llm
from llama_index.llms import eft
from llama_index.llms.eft import EFTLLM

import eft_engine
import eft_integrations
from eft_integrations import llama_index as adapter

QUESTION = "What is the capital of France?"


def test_class_is_an_llm_that_calls_functions() -> None:
    names_of_base_classes = [base.__name__ for base in EFTLLM.__mro__]
    assert BaseLLM.__name__ in names_of_base_classes
    assert FunctionCallingLLM.__name__ in names_of_base_classes
    assert EFTLLM.class_name() == "EFTLLM"


def test_package_only_re_exports() -> None:
    assert eft.__all__ == ["EFTLLM", "ContextAware"]
    assert EFTLLM is adapter.EFTLLM
    assert version("llama-index-llms-eft") == version("eft-engine")


def test_what_is_imported_is_what_the_wheels_have_installed() -> None:
    for module in (eft, eft_integrations, eft_engine):
        assert Path(module.__file__ or "").is_relative_to(sys.prefix), module.__file__


def test_llm_is_loaded_by_its_name() -> None:
    llm = EFTLLM(preset="atlas", reward_weights=0.5, max_tokens=7)
    again = load_llm(llm.to_dict())
    assert isinstance(again, EFTLLM)
    assert (again.preset, again.reward_weights, again.max_tokens) == ("atlas", 0.5, 7)


@pytest.fixture(scope="module")
def llm() -> EFTLLM:
    return EFTLLM(preset="atlas", temperature=0.0, max_tokens=30)


def test_complete_and_chat_answer(llm: EFTLLM) -> None:
    assert "Paris" in llm.complete(QUESTION).text
    assert "Paris" in str(llm.chat([ChatMessage(role="user", content=QUESTION)]).message.content)


def test_streams_are_the_answer_in_pieces(llm: EFTLLM) -> None:
    whole = llm.complete(QUESTION).text
    assert "".join(piece.delta or "" for piece in llm.stream_complete(QUESTION)) == whole


async def test_async_forms_answer_the_same(llm: EFTLLM) -> None:
    assert (await llm.acomplete(QUESTION)).text == llm.complete(QUESTION).text
