"""What the adapters have in common: the trio's names, one engine, one text."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.llms import ChatMessage, MessageRole

from eft_engine import SamplingParams
from eft_integrations.langchain import EFTChatModel
from eft_integrations.llama_index import EFTLLM
from tests.integrations.llama_index.trained import GREETING, trained_engine

NAMES = {"base": "a", "tuned": "t", "reference": "r"}
ADAPTERS = pytest.mark.parametrize("adapter", [EFTChatModel, EFTLLM])


@ADAPTERS
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "name the large model"),
        ({"base": "a", "tuned": "b"}, "belong together"),
        ({"preset": "smollm2-json", "base": "a"}, "preset names a whole trio"),
        ({"engine": ..., "base": "a"}, "one of"),
        ({"base": "a", "pairs": {"x": 3}}, "must be a TunedPair"),
        ({"base": "a", "temprature": 1.0}, "temprature"),
        ({"base": "a", "engine_config": {"max_num_seq": 3}}, "max_num_seqs"),
    ],
    ids=str,
)
def test_wrong_construction_says_what_is_wrong(fields: dict[str, Any], reason: str, adapter: Any) -> None:
    with pytest.raises(ValueError, match=reason):
        adapter(**fields)


@ADAPTERS
def test_models_of_one_trio_share_one_engine_whatever_their_framework(adapter: Any) -> None:
    model = adapter(**NAMES)
    assert model._backend is EFTLLM(**NAMES)._backend
    assert model._backend is EFTChatModel(**NAMES)._backend
    assert model._backend is model.with_weights(0.5)._backend
    assert model._backend is not adapter(**{**NAMES, "base": "b"})._backend
    assert adapter(engine=trained_engine())._backend is EFTLLM(engine=trained_engine())._backend


CONVERSATIONS: dict[str, list[tuple[str, str]]] = {
    "greeting": [("user", "Hello")],
    "with a system turn": [("system", "Be kind."), ("user", "Hello")],
    "second turn": [("user", "Hello"), ("assistant", GREETING), ("user", "Which pier?")],
    "any script": [("user", "¿Dónde está el faro? 灯台")],
}


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, {"chat": 1.7}], ids=str)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_text_of_every_adapter_is_the_engines(name: str, weight: Any) -> None:
    turns, engine = CONVERSATIONS[name], trained_engine()
    sampling = {"temperature": 0.0, "max_tokens": 24}
    expected = engine.generate(
        [{"role": role, "content": content} for role, content in turns],
        sampling=SamplingParams(**sampling),
        reward_weights=weight,
    ).text
    chat_model, llm = EFTChatModel(engine=engine, **sampling), EFTLLM(engine=engine, **sampling)
    assert chat_model.invoke(turns, reward_weights=weight).content == expected
    conversation = [ChatMessage(role=MessageRole(role), content=content) for role, content in turns]
    assert llm.chat(conversation, reward_weights=weight).message.content == expected
