"""Names that users of other chat models, and LangChain's own components, bring."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain.chat_models import init_chat_model as langchains_init_chat_model
from langchain_core import exceptions
from langchain_core.messages import HumanMessage
from langchain_core.rate_limiters import InMemoryRateLimiter
from pydantic import BaseModel, ValidationError

from eft_engine import errors
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import Message, ToolCall
from eft_integrations.langchain import EFTChatModel, init_chat_model

SCHEMA = {"title": "Person", "type": "object", "properties": {"name": {"type": "string"}}}


def scripted(*replies: Any, **fields: Any) -> tuple[EFTChatModel, ScriptedBackend]:
    """A model over a script."""
    backend = ScriptedBackend(list(replies))
    return EFTChatModel(backend=backend, **fields), backend


# ---- of a model ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"max_completion_tokens": 7}, "max_tokens", 7),
        ({"max_new_tokens": 7}, "max_tokens", 7),
        ({"num_predict": 7}, "max_tokens", 7),
        ({"max_tokens": 7, "num_predict": None}, "max_tokens", 7),
        ({"max_tokens": 7, "num_predict": 7}, "max_tokens", 7),
        ({"request_timeout": 3.0}, "timeout", 3.0),
        ({"stop_sequences": ["x"]}, "stop", ["x"]),
        ({"repeat_penalty": 1.2}, "repetition_penalty", 1.2),
        ({"reasoning_effort": "low"}, "reasoning", "low"),
        ({"think": False}, "reasoning", "off"),
        ({"model_kwargs": {"top_k": 3}}, "top_k", 3),
        ({"extra_body": {"min_p": 0.1, "reward_weights": 0.3}, "reward_weights": 0.5}, "reward_weights", 0.3),
    ],
)
def test_names_of_other_models_mean_the_same(given: dict[str, Any], field: str, value: Any) -> None:
    llm, _ = scripted(**given)
    assert getattr(llm, field) == value


@pytest.mark.parametrize(
    "given",
    [
        {"n": 1}, {"n": None}, {"format": ""}, {"use_responses_api": None}, {"use_responses_api": False}, {"num_ctx": None},
        {"max_retries": 3}, {"stream_usage": True}, {"store": False}, {"default_headers": {"a": "b"}}, {"verbose": True},
        {"service_tier": "flex"}, {"tags": ["a"]}, {"metadata": {"a": 1}}, {"disable_streaming": True}, {"streaming": True},
        {"rate_limiter": InMemoryRateLimiter(requests_per_second=1000, max_bucket_size=10)}, {"custom_get_token_ids": list},
    ],
)  # fmt: skip
def test_what_changes_no_answer_is_taken(given: dict[str, Any]) -> None:
    llm, backend = scripted("ok", **given)
    plain, plainly = scripted("ok")
    for model in (llm, plain):
        assert model.invoke("hi").content == "ok"
    assert backend.requests == plainly.requests


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"n": 2}, r"n=2: .*llm\.batch"),
        ({"num_ctx": 2048}, "max_context_len"),
        ({"format": "json"}, "with_structured_output"),
        ({"response_format": {"type": "json_object"}}, r"llm\.bind\(response_format"),
        ({"model_kwargs": {"response_format": {"type": "json_object"}}}, r"llm\.bind\(response_format"),
        ({"tools": []}, "bind_tools"),
        ({"use_responses_api": True}, "leave it out"),
        ({"verbosity": "low"}, "system message"),
        ({"device_map": "auto"}, "engine_config"),
        ({"thinking": {"type": "enabled", "budget_tokens": 100}}, "reasoning_budget"),
        ({"max_tokens": 3, "num_predict": 4}, "max_tokens=3 was given too"),
        ({"model_kwargs": {"temperature": 1.0}, "temperature": 0.0}, "temperature=0.0 was given too"),
        ({"model_kwargs": 3}, "mapping of options"),
        ({"model": "another"}, "the backend is 'scripted'"),
    ],
)
def test_what_cannot_be_meant_says_what_to_write(given: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.InvalidOptionError, match=words):
        scripted(**given)


def test_options_of_a_connection_are_refused_where_there_is_one() -> None:
    with pytest.raises(errors.InvalidOptionError, match="api_key and no other header"):
        EFTChatModel(base_url="http://host/v1", default_headers={"a": "b"})  # type: ignore[call-arg]


def test_name_that_nobody_knows_is_an_error_of_the_model_as_langchains_users_know_it() -> None:
    with pytest.raises(ValidationError, match="temprature"):
        scripted(temprature=1)
    with pytest.raises(ValidationError, match="temprature"):
        scripted(model_kwargs={"temprature": 1})


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({"model": "atlas"}, {"preset": "atlas", "reward_weights": None}),
        ({"model_name": "atlas"}, {"preset": "atlas"}),
        ({"model": "atlas@assistant=0.5"}, {"preset": "atlas", "reward_weights": {"assistant": 0.5}}),
        ({"model": "atlas@assistant=0.5", "reward_weights": 0.1}, {"preset": "atlas", "reward_weights": 0.1}),
        ({"model": "org/large", "tuned": "./t", "reference": "org/small"}, {"base": "org/large", "preset": None}),
        ({"model": "org/large", "pairs": {"a": ("t", "r")}}, {"base": "org/large", "preset": None}),
        ({"model": "trio", "base_url": "http://host/v1"}, {"served_name": "trio"}),
        (
            {"model": "trio@a=1", "openai_api_base": "http://host/v1"},
            {"served_name": "trio", "reward_weights": {"a": 1.0}},
        ),
    ],
)
def test_model_names_a_trio(given: dict[str, Any], fields: dict[str, Any]) -> None:
    llm = EFTChatModel(**given)
    assert {name: getattr(llm, name) for name in fields} == fields


@pytest.mark.parametrize("name", ["org/large", "./folder", "model.gguf", "gpt-4o"])
def test_model_that_names_no_trio_says_what_to_write(name: str) -> None:
    with pytest.raises(errors.InvalidOptionError, match=r"base=.*tuned=.*reference=.*atlas"):
        EFTChatModel(model=name)  # type: ignore[call-arg]


def test_names_with_an_at_sign_are_no_weights() -> None:
    backend = ScriptedBackend(["ok"] * 2, model_name="org/large@v2")
    llm = EFTChatModel(backend=backend)
    assert llm.invoke("hi").response_metadata["model_name"] == "org/large@v2"
    assert llm.invoke("hi", model="org/large@v2").content == "ok"


# ---- of a call -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"stream_usage": True}, {"stream": False}, {"cache_control": {"type": "ephemeral"}}, {"user": "u"}, {"n": 1},
        {"prompt_cache_key": "k"}, {"parallel_tool_calls": None}, {"extra_body": {}}, {"response_format": None}, {"tools": None},
        {"strict": None}, {"tool_choice": None}, {"service_tier": "auto"}, {"stop": None}, {"model": None}, {"format": None},
    ],
)  # fmt: skip
def test_keywords_that_components_pass_change_no_answer(given: dict[str, Any]) -> None:
    llm, backend = scripted("ok", "ok", stop=["x"])
    llm.invoke("hi")
    llm.bind(**given).invoke("hi")
    assert backend.requests[0] == backend.requests[1]


def test_keywords_of_other_models_mean_the_same() -> None:
    llm, backend = scripted("ok", "{}", "{}", "ok")
    llm.invoke("hi", num_predict=7, stop_sequences=["x"], extra_body={"min_p": 0.1, "reward_weights": 0.3})
    assert backend.requests[0].sampling == {"max_tokens": 7, "stop": ["x"], "min_p": 0.1}
    assert backend.requests[0].reward_weights == 0.3
    llm.invoke("hi", format="json")
    assert backend.requests[1].response_schema == {"type": "object"}
    llm.invoke("hi", format={"type": "object", "properties": {"a": {"type": "string"}}})
    assert backend.requests[2].response_schema == {"type": "object", "properties": {"a": {"type": "string"}}}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"n": 3}, "llm.batch"),
        ({"functions": []}, "bind_tools"),
        ({"format": "yaml"}, "JSON schema"),
        ({"format": "json", "response_format": {"type": "text"}}, "give one of them"),
        ({"max_tokens": 3, "num_predict": 4}, "give one of them"),
        ({"stop": ["a"], "stop_sequences": ["b"]}, "give one of them"),
        ({"output_version": "v1"}, "option of the model"),
        ({"modalities": ["audio"]}, "unknown keyword modalities"),
        ({"extra_body": {"temprature": 1}}, "unknown keyword temprature"),
    ],
)
def test_keyword_that_cannot_be_meant_says_what_to_write(given: dict[str, Any], words: str) -> None:
    llm, backend = scripted("ok")
    with pytest.raises(exceptions.ModelInvalidRequestError, match=words):
        llm.invoke("hi", **given)
    assert not backend.requests


class Person(BaseModel):
    """Somebody."""

    name: str


@pytest.mark.parametrize("strict", [None, True])
def test_agents_ask_for_their_answers_in_both_of_langchains_ways(strict: bool | None) -> None:
    llm, backend = scripted('{"name": "Ann"}', Message("assistant", "", (ToolCall("1", "Person", '{"name": "Ann"}'),)))
    for strategy in (ProviderStrategy(Person, strict=strict), ToolStrategy(Person)):
        agent = create_agent(llm, [], response_format=strategy)
        answer = agent.invoke({"messages": [HumanMessage("Who?")]})
        assert answer["structured_response"] == Person(name="Ann")
    assert backend.requests[0].response_schema is not None
    assert backend.requests[0].strict_response is bool(strict)
    assert [tool.name for tool in backend.requests[1].tools] == ["Person"]


# ---- by the name of the provider -----------------------------------------------------------------------------------------


def test_models_by_the_name_of_their_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    for llm in (
        init_chat_model("eft:atlas", temperature=0.0),
        init_chat_model("atlas", model_provider="eft", temperature=0.0),
        init_chat_model(model_provider="eft", preset="atlas", temperature=0.0),
    ):
        assert isinstance(llm, EFTChatModel)
        assert (llm.preset, llm.temperature) == ("atlas", 0.0)
    monkeypatch.setattr("langchain.chat_models.init_chat_model", lambda *given, **options: (given, options))
    other: Any = init_chat_model("openai:gpt-4o", temperature=0.0)
    assert other == (("openai:gpt-4o",), {"model_provider": None, "temperature": 0.0})
    with pytest.raises(errors.InvalidOptionError, match=r"llm\.configurable_fields"):
        init_chat_model("eft:atlas", configurable_fields="any")


def test_langchains_list_of_providers_is_closed() -> None:
    """When this fails, LangChain has a way in, and `init_chat_model` of ours is needed no more."""
    with pytest.raises(ValueError, match="Unsupported provider='eft'"):
        langchains_init_chat_model("atlas", model_provider="eft")
