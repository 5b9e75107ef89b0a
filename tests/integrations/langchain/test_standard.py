"""LangChain's own suites, once per method of structured output, on a trio that answers through the real engine."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from eft_integrations.langchain import EFTChatModel
from tests.integrations.trained_trio import trained_engine

pytestmark = pytest.mark.timeout(func_only=True)
"""The time limit is that of a test; the model is trained before the first one."""


@pytest.fixture(scope="module", autouse=True)
def _trained() -> None:
    """Seconds, or minutes on a machine that has other things to do."""
    trained_engine()


class Properties:
    """What both suites ask."""

    method = "json_schema"

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        """The class under test."""
        return EFTChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """An engine of three members, drafting on, asked for its likeliest tokens: those are the ones that were learned."""
        return {"engine": trained_engine(), "temperature": 0.0}

    @property
    def supports_json_mode(self) -> bool:
        """It does."""
        return True

    @property
    def model_override_value(self) -> str:
        """The same model with weights behind its name."""
        return "eft@chat=1.0"

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        """The method of this class."""
        return {"method": self.method}


@pytest.fixture
def _listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite loads JSON with `allowed_objects="all"`, which are the classes in a closed list of LangChain's."""
    own = tuple(EFTChatModel.lc_id())
    loading = importlib.import_module("langchain_core.load.load")
    monkeypatch.setitem(loading.ALL_SERIALIZABLE_MAPPINGS, own, own)
    monkeypatch.setattr(loading, "_default_class_paths_cache", {})


@pytest.mark.usefixtures("_listed")
class TestUnit(Properties, ChatModelUnitTests):  # type: ignore[misc]
    """Construction, binding, parameters, JSON (which models have that are named)."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """A trio by name; nothing is loaded."""
        return {"preset": "atlas", "temperature": 0.0}


class IntegrationSuite(Properties, ChatModelIntegrationTests):  # type: ignore[misc]
    """Everything that generates."""

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        """JSON that it has not learned goes round in circles until it is closed."""
        return {"max_tokens": 100, "close_within_budget": True}

    @property
    def supported_usage_metadata_details(self) -> dict[str, list[str]]:
        """Prompt tokens read from the cache are reported."""
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        """The same long question twice: the second answer reads its prompt from the cache."""
        model = EFTChatModel(engine=trained_engine(), temperature=0.0, max_tokens=4)
        question = "Please count the lighthouses along the coast. " * 8
        model.invoke(question)
        if not stream:
            return model.invoke(question)
        message = None
        for chunk in model.stream(question):
            message = chunk if message is None else message + chunk
        assert isinstance(message, AIMessage)
        return message


class TestJsonSchema(IntegrationSuite):
    """Answers decoded under the schema."""


class TestFunctionCalling(IntegrationSuite):
    """Structured output as a forced tool call."""

    method = "function_calling"


class TestJsonMode(IntegrationSuite):
    """Structured output as JSON."""

    method = "json_mode"


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_answers_of_the_fixture_come_from_the_pair(weight: float) -> None:
    """Otherwise the suites would pass on the base alone."""
    model = EFTChatModel(engine=trained_engine(), temperature=0.0, max_tokens=20)
    answer = model.invoke("Hello", reward_weights=weight).content
    assert (answer == "Hello! How can I help?") == (weight == 1.0)
