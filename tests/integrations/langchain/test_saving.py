"""JSON of models and of chains that hold them, and back."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.load import dumpd, dumps, loads
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableBinding, RunnableSequence
from langchain_core.tools import tool
from pydantic import SecretStr

from eft_engine import CompositionOptions, EngineConfig, MemberConfig, TunedPair
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.langchain import EFTChatModel

pytestmark = pytest.mark.filterwarnings("ignore:The function `loads` is in beta")


@tool
def look(place: str) -> str:
    """Look at a place."""
    return place


def there_and_back(value: Any, **options: Any) -> Any:
    """Out of its JSON, with the classes that LangChain has by itself, and ours."""
    own = tuple(EFTChatModel.lc_id())
    return loads(
        dumps(value),
        allowed_objects="core",
        valid_namespaces=["eft_integrations"],
        additional_import_mappings={own: own},
        **options,
    )


MODELS: dict[str, dict[str, Any]] = {
    "preset": {"preset": "atlas", "reward_weights": {"assistant": 0.5}},
    "sources": {"base": "b", "tuned": "t", "reference": "r", "temperature": 0.0, "stop": ["x"], "reward_weights": 0.0},
    "members": {"base": MemberConfig(source="b", dtype="float32"), "pairs": {"p": TunedPair("t", "r", weight=0.5)}},
    "pairs": {"base": "b", "pairs": {"p": ("t", "r"), "q": {"tuned": "u", "reference": "r"}}},
    "engine": {"preset": "atlas", "engine_config": EngineConfig(max_context_len=64)},
    "options": {
        "preset": "atlas", "logit_bias": {3: 1.0}, "reasoning_tags": ("<a>", "</a>"), "lenient_tool_calls": False,
        "composition": CompositionOptions(amplification=2.0), "streaming": True, "reasoning": "off",
    },
    "server": {"base_url": "http://host:8000/v1", "served_name": "trio"},
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_named_model_comes_back_as_it_was(name: str) -> None:
    llm = EFTChatModel(**MODELS[name])
    again = there_and_back(llm)
    assert type(again) is EFTChatModel
    assert again.asdict() == llm.asdict()
    assert again._get_llm_string() == llm._get_llm_string()
    assert again._held.backend is llm._held.backend


def test_list_of_classes_is_enough() -> None:
    llm = EFTChatModel(preset="atlas")
    again = loads(dumps(llm), allowed_objects=[EFTChatModel], valid_namespaces=["eft_integrations"])
    assert again.asdict() == llm.asdict()


def test_key_of_a_server_is_never_told() -> None:
    llm = EFTChatModel(base_url="http://host:8000/v1", served_name="trio", api_key=SecretStr("hush"))
    assert "hush" not in dumps(llm | look)
    again = there_and_back(llm, secrets_map={"EFT_API_KEY": "hush"})
    assert again.api_key.get_secret_value() == "hush"
    assert there_and_back(llm).api_key is None


def test_models_come_back_inside_of_chains() -> None:
    llm = EFTChatModel(preset="atlas", temperature=0.0)
    prompt = ChatPromptTemplate.from_messages([("human", "{x}")])
    chain = there_and_back(prompt | llm.bind_tools([look], tool_choice="any"))
    assert isinstance(chain, RunnableSequence)
    bound = chain.last
    assert isinstance(bound, RunnableBinding)
    assert bound.bound.asdict() == llm.asdict()
    assert bound.kwargs["tools"][0]["function"]["name"] == "look"
    assert bound.kwargs["tool_choice"] == "any"
    dial = there_and_back(prompt | llm.configurable_fields(reward_weights=ConfigurableField(id="dial")))
    assert dial.last.default.asdict() == llm.asdict()


def test_model_that_holds_something_of_this_process_says_so() -> None:
    llm = EFTChatModel(backend=ScriptedBackend(["ok"]))
    form = dumpd(ChatPromptTemplate.from_messages([("human", "{x}")]) | llm)["kwargs"]["last"]
    assert form["type"] == "not_implemented"
    with pytest.raises(NotImplementedError, match="EFTChatModel"):
        there_and_back(llm)


def test_a_trace_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """LangChain writes a model down for every call."""
    llm = EFTChatModel(preset="atlas")
    monkeypatch.setattr(type(llm._held), "opened", lambda held: pytest.fail("the backend was asked"))
    assert llm._serialized["kwargs"]["preset"] == "atlas"
    assert llm._get_ls_params()["ls_model_name"] == "atlas"
