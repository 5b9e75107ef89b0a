"""LangChain's caches: calls that may be answered differently never share an entry, and equal ones do, in every process."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from langchain_core import exceptions
from langchain_core.caches import RETURN_VAL_TYPE, BaseCache, InMemoryCache
from langchain_core.load import dumps, loads
from langchain_core.tools import tool

import eft_integrations
from eft_engine import CompositionOptions, PromptOptions, PromptPair, SpeculationOptions
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.backends.stamp import identity_of
from eft_integrations.backends.trio_source import TrioSource
from eft_integrations.call_options import WITHOUT_EFFECT, CallKeywords, CallOptions
from eft_integrations.langchain import EFTChatModel


@tool
def look(place: str) -> str:
    """Look at a place."""
    return place


@tool
def leave(place: str) -> str:
    """Leave a place."""
    return place


OPTIONS: dict[str, tuple[Any, Any]] = {
    "max_tokens": (3, 4), "temperature": (0.0, 0.5), "top_k": (1, 2), "top_p": (0.5, 0.6), "min_p": (0.1, 0.2),
    "repetition_penalty": (1.1, 1.2), "presence_penalty": (0.1, 0.2), "frequency_penalty": (0.1, 0.2),
    "logit_bias": ({3: 1.0}, {3: 2.0}), "seed": (1, 2), "stop": (["a"], ["b"]), "stop_token_ids": ([1], [2]),
    "ignore_eos": (True, False), "close_within_budget": (True, False), "reward_weights": (0.3, {"scripted": 0.4}),
    "logprobs": (True, False), "chat_template_kwargs": ({"a": 1}, {"a": 2}), "reasoning": ("off", "high"),
    "reasoning_budget": (3, 4), "reasoning_tags": (("<a>", "</a>"), ("<b>", "</b>")), "strict": (True, False),
    "lenient_tool_calls": (True, False), "tool_notation": ("hermes", "llama3"),
    "prompt_options": (PromptOptions(control_tokens="parse"), PromptOptions(add_special_tokens=False)),
    "composition": (CompositionOptions(amplification=2.0), CompositionOptions(amplification=3.0)),
    "speculation": (SpeculationOptions(max_draft_tokens=1), SpeculationOptions(max_draft_tokens=2)),
    "call_weight": (0.0, {"scripted": 0.5}), "call_lookahead": (8, 16), "reasoning_weight": (0.0, 0.5),
    "min_plausibility": (0.1, 0.2), "tuned_plausibility": (0.1, 0.2),
    "prompt_pairs": (
        {"own": PromptPair(negative={"system": "a"})}, {"own": PromptPair(negative={"system": "a"}, weight=0.5)},
    ),
}  # fmt: skip
"""By option of a model and of a call, two values."""

OF_A_CALL: dict[str, tuple[Any, Any]] = {
    "tools": ([look], [leave]),
    "tool_choice": ("auto", "none"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"title": "a", "type": "object"}, {"title": "b", "type": "array"}),
    "documents": ([{"text": "a"}], [{"text": "b"}]),
    "max_completion_tokens": (3, 4),
    "model": ("scripted@scripted=0.4", "scripted@scripted=0.5"),
}
BESIDE = {"top_logprobs"}
"""Tried with another option."""


class SqliteFile(BaseCache):
    """As langchain-community has it: JSON of answers in a file, by prompt and key."""

    def __init__(self, path: Path) -> None:
        self._rows = sqlite3.connect(path)
        self._rows.execute("create table if not exists answers (prompt text, llm text, answer text)")

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """See `BaseCache`."""
        asked = "select answer from answers where prompt = ? and llm = ?"
        found = self._rows.execute(asked, (prompt, llm_string)).fetchone()
        return None if found is None else loads(found[0], allowed_objects="core")

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """See `BaseCache`."""
        self._rows.execute("insert into answers values (?, ?, ?)", (prompt, llm_string, dumps(return_val)))
        self._rows.commit()

    def clear(self, **_: Any) -> None:
        """See `BaseCache`."""


def number_of_answers(*calls: Callable[[EFTChatModel], object], **fields: Any) -> int:
    """How often a model with one cache is asked."""
    backend = ScriptedBackend(["ok"] * len(calls))
    llm = EFTChatModel(backend=backend, cache=InMemoryCache(), **fields)
    for call in calls:
        call(llm)
    return len(backend.requests)


def with_fields(**fields: Any) -> Callable[[EFTChatModel], object]:
    """A call of a copy that has these fields from its construction."""
    return lambda llm: EFTChatModel(backend=llm.backend, cache=llm.cache, **fields).invoke("hi")


def test_every_option_is_tried() -> None:
    assert set(CallOptions.model_fields) == set(OPTIONS) | WITHOUT_EFFECT | BESIDE
    assert set(CallKeywords.model_fields) - set(CallOptions.model_fields) == set(OF_A_CALL)


@pytest.mark.parametrize("option", OPTIONS)
def test_option_of_a_model_tells_calls_apart_wherever_it_is_given(option: str) -> None:
    first, second = ({option: value} for value in OPTIONS[option])
    assert number_of_answers(with_fields(**first), with_fields(**second)) == 2
    given: list[Callable[[EFTChatModel], object]] = [
        with_fields(**first),
        lambda llm: llm.bind(**first).invoke("hi"),
        lambda llm: llm.invoke("hi", **first),
    ]
    assert number_of_answers(*given) == 1
    assert number_of_answers(lambda llm: llm.bind(**first).invoke("hi"), lambda llm: llm.invoke("hi", **second)) == 2


@pytest.mark.parametrize("option", OF_A_CALL)
def test_keyword_of_a_call_tells_calls_apart(option: str) -> None:
    first, second = ({option: value} for value in OF_A_CALL[option])
    tools: Mapping[str, Any] = {} if option == "tools" else {"tools": [look]}
    calls: list[Callable[[EFTChatModel], object]] = [
        lambda llm: llm.invoke("hi", **{**tools, **first}),
        lambda llm: llm.invoke("hi", **{**tools, **second}),
    ]
    assert number_of_answers(*calls) == 2
    assert number_of_answers(calls[0], calls[0]) == 1


def test_what_changes_no_answer_is_no_part_of_the_key() -> None:
    calls = (with_fields(timeout=3.0), with_fields(timeout=4.0), with_fields(keep_alive=5), with_fields(streaming=True))
    assert number_of_answers(*calls) == 1
    assert (
        number_of_answers(*(lambda llm, name=name: llm.invoke("hi", stream_usage=name) for name in (True, False))) == 1
    )


def test_more_that_tells_calls_apart() -> None:
    def in_block(llm: EFTChatModel) -> None:
        with eft_integrations.weights(0.1):
            llm.invoke("hi")

    calls = (
        lambda llm: llm.invoke("hi"),
        lambda llm: llm.invoke("ho"),
        lambda llm: llm.invoke("hi", stop=["x"]),
        lambda llm: llm.invoke("hi", logprobs=True, top_logprobs=1),
        lambda llm: llm.invoke("hi", logprobs=True, top_logprobs=2),
        lambda llm: llm.invoke("hi", config={"configurable": {"eft_reward_weights": 0.2}}),
        lambda llm: llm.with_weights(0.3).invoke("hi"),
        lambda llm: llm.bind_tools([look]).invoke("hi"),
        in_block,
        with_fields(output_version="v1"),
    )
    assert number_of_answers(*calls) == len(calls)


def test_copies_never_have_each_others_key() -> None:
    """LangChain keeps what it made of a model once, and a copy would have it too."""
    llm = EFTChatModel(backend=ScriptedBackend(["ok"] * 2), cache=InMemoryCache())
    llm.invoke("hi")
    assert llm.with_weights(0.5)._get_llm_string() != llm._get_llm_string()
    named = EFTChatModel(base="a", tuned="t", reference="r")
    assert named._serialized != named.with_weights(0.5)._serialized


def test_two_backends_never_share_an_entry() -> None:
    cache = InMemoryCache()
    for text in ("one", "two"):
        assert EFTChatModel(backend=ScriptedBackend([text]), cache=cache).invoke("hi").content == text


def test_wrong_keyword_is_langchains_error_with_a_cache_too() -> None:
    llm = EFTChatModel(backend=ScriptedBackend(["ok"]), cache=InMemoryCache())
    with pytest.raises(exceptions.ModelInvalidRequestError, match="temprature"):
        llm.invoke("hi", temprature=1)


@pytest.mark.filterwarnings("ignore:The function `loads` is in beta")
def test_entries_in_a_file_are_found_again(tmp_path: Path) -> None:
    backend = ScriptedBackend(["first"])
    for _ in range(2):
        llm = EFTChatModel(backend=backend, cache=SqliteFile(tmp_path / "cache.db"))
        answer = llm.invoke("hi")
        assert answer.content == "first"
        assert answer.response_metadata["eft"] == {"reward_weights": {"scripted": 1.0}}


NAMES = {"base": "base", "tuned": "t", "reference": "r"}
KEY = (
    f"from eft_integrations.langchain import EFTChatModel as M; print(M(**{NAMES})._get_llm_string(stop=['x'], seed=3))"
)


def test_named_models_have_one_key_in_all_processes_until_their_files_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identity(folder: str) -> str:
        monkeypatch.chdir(tmp_path / folder)
        return identity_of(TrioSource.of(**NAMES))

    for folder in ("here", "there"):
        (tmp_path / folder / "base").mkdir(parents=True)
        (tmp_path / folder / "base" / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    first = identity("here")
    assert identity("there") != first, "a name is relative to where a process runs"
    assert identity("here") == first
    elsewhere = subprocess.check_output([sys.executable, "-c", KEY], text=True)
    assert elsewhere.strip() == EFTChatModel(**NAMES)._get_llm_string(stop=["x"], seed=3)
    Path("base", "model.safetensors").write_bytes(b"trained again")
    assert identity("here") != first
