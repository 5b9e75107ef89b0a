"""What agents rely on: the profile, which reads no weights."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.messages import HumanMessage
from langchain_core.runnables import ConfigurableField

from eft_engine import errors
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.langchain import EFTChatModel
from eft_integrations.langchain.profile import ABILITIES, LazyProfile

CONTEXT = 1024
"""Of Atlas."""


def test_named_model_knows_its_context_without_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    import eft_engine

    monkeypatch.setattr(eft_engine.Engine, "load", lambda *_, **__: pytest.fail("weights were read"))
    llm = EFTChatModel(preset="atlas", engine_config={"max_context_len": 500})
    assert llm.profile is not None
    assert llm.profile["max_input_tokens"] == 500
    assert not llm._is_loaded


def test_construction_asks_nobody() -> None:
    code = (
        "import copy, pickle, sys; from eft_integrations.langchain import EFTChatModel\n"
        "llm = EFTChatModel(preset='atlas'); repr(llm.profile); llm.profile.get('tool_calling'); llm._serialized; str(llm)\n"
        "copy.deepcopy(llm); llm.with_weights(0.5).bind_tools([]); pickle.loads(pickle.dumps(llm)).profile['tool_calling']\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "EFTChatModel(base_url='http://127.0.0.1:9/v1')._get_ls_params()"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize("where", [{"base": "/nowhere", "tuned": "/t", "reference": "/r"}, {"preset": "nobody"}])
def test_models_that_are_not_there_have_no_limits_and_are_made_all_the_same(where: dict[str, Any]) -> None:
    profile = EFTChatModel(**where).profile
    assert profile is not None
    assert profile.get("max_input_tokens") is None
    assert dict(profile) == ABILITIES


def test_profile_is_the_same_whatever_it_is_first_asked() -> None:
    expected = {**ABILITIES, "max_input_tokens": 7, "max_output_tokens": 7}
    questions: list[Any] = [
        dict,
        lambda own: {**own},
        lambda own: dict(own.items()),
        lambda own: dict(zip(own.keys(), own.values(), strict=True)),
        lambda own: {name: own[name] for name in own},
        lambda own: json.loads(json.dumps(own)),
        lambda own: pickle.loads(pickle.dumps(own)),
        copy.deepcopy,
        lambda own: own.copy(),
        lambda own: own | {},
    ]
    for question in questions:
        assert question(LazyProfile(lambda: 7)) == expected
    assert LazyProfile(lambda: 7) == expected
    assert len(LazyProfile(lambda: 7)) == len(expected)
    assert "max_input_tokens" in LazyProfile(lambda: 7)


def test_limit_that_was_not_known_is_asked_for_again() -> None:
    answers = [errors.ModelNotFoundError("not yet"), 7]

    def context_len() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    profile = LazyProfile(context_len)
    assert profile.get("max_input_tokens", 3) == 3
    assert profile.get("max_input_tokens", 3) == 7


def test_own_profile_and_copies() -> None:
    own: Any = {"max_input_tokens": 100}
    assert EFTChatModel(preset="atlas", profile=own).profile == own
    llm = EFTChatModel(backend=ScriptedBackend([], context_len=50))
    change = {"backend": ScriptedBackend([], context_len=60)}
    other, deep = llm.model_copy(update=change), llm.model_copy(update=change, deep=True)
    fields: Any = llm.configurable_fields(temperature=ConfigurableField(id="heat"))
    configured = fields.prepare({"configurable": {"heat": 0.5}})[0]
    assert configured.temperature == 0.5
    for model, length in ((llm, 50), (llm.with_weights(0.5), 50), (other, 60), (deep, 60), (configured, 50)):
        assert model.profile is not None
        assert model.profile["max_input_tokens"] == length


def test_profile_of_a_pickled_model_and_of_a_deep_copy() -> None:
    llm = EFTChatModel(preset="atlas")
    for again in (pickle.loads(pickle.dumps(llm)), copy.deepcopy(llm), llm.model_copy(deep=True)):
        assert again.profile["max_input_tokens"] == CONTEXT
    own: Any = {"max_input_tokens": 100}
    assert pickle.loads(pickle.dumps(EFTChatModel(preset="atlas", profile=own))).profile == own


def test_summarization_at_a_fraction_of_the_context() -> None:
    backend = ScriptedBackend(["A summary.", "Fine."], context_len=200)
    llm = EFTChatModel(backend=backend)
    middleware = SummarizationMiddleware(llm, trigger=("fraction", 0.5), keep=("messages", 1))
    agent = create_agent(llm, [], middleware=[middleware])
    history = [HumanMessage("word " * 40) for _ in range(4)]
    answer = agent.invoke({"messages": [*history, HumanMessage("And now?")]})
    assert answer["messages"][-1].content == "Fine."
    asked = backend.requests[-1].messages
    assert "A summary." in asked[0].content
    assert [turn.content for turn in asked[1:]] == ["And now?"]


def test_summarization_of_a_named_trio_at_a_fraction() -> None:
    middleware = SummarizationMiddleware(EFTChatModel(preset="atlas"), trigger=("fraction", 0.8))
    assert middleware._get_profile_limits() == CONTEXT
