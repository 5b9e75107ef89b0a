"""`model=`, as users of other models write it: both adapters read it alike, and two names that contradict each other are told."""

from __future__ import annotations

from typing import Any

import pytest

from eft_engine import errors
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.langchain import EFTChatModel
from eft_integrations.llama_index import EFTLLM

ADAPTERS = pytest.mark.parametrize("adapter", [EFTChatModel, EFTLLM])
PAIR = {"tuned": "./t", "reference": "org/small"}
SERVER = {"base_url": "http://127.0.0.1:9/v1"}


@ADAPTERS
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": "a", "base": "b", **PAIR}, "base='b' was given too"),
        ({"model": "atlas", "preset": "smollm2-json"}, "preset='smollm2-json' was given too"),
        ({"model": "one", "served_name": "other", **SERVER}, "served_name='other' was given too"),
        ({"model": "org/large"}, "a trio has more than one model"),
        ({"model": "gpt-4o"}, "a trio has more than one model"),
        ({"model": 3}, "named by hub id"),
        ({"model": "atlas@assistant=much"}, "much"),
        ({"model": "another", "backend": ScriptedBackend()}, "the backend is 'scripted'"),
    ],
)
def test_name_that_cannot_be_meant_is_told(adapter: Any, given: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.InvalidOptionError, match=words):
        adapter(**given)


@ADAPTERS
@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({"model": "a", "base": "a", **PAIR}, {"base": "a", "preset": None}),
        ({"model": "atlas", "preset": "atlas"}, {"preset": "atlas"}),
        ({"model": "atlas", "preset": None}, {"preset": "atlas"}),
        ({"model": "one@a=1", "served_name": "one", **SERVER}, {"served_name": "one", "reward_weights": {"a": 1.0}}),
        ({"model": "atlas@assistant=0.5", "reward_weights": None}, {"reward_weights": {"assistant": 0.5}}),
        ({"model": "atlas@assistant=0.5", "reward_weights": 0.0}, {"reward_weights": 0.0}),
        ({"model": "scripted", "backend": ScriptedBackend()}, {"preset": None, "base": None}),
    ],
)
def test_names_that_agree_mean_one_trio(adapter: Any, given: dict[str, Any], fields: dict[str, Any]) -> None:
    llm = adapter(**given)
    assert {name: getattr(llm, name) for name in fields} == fields
