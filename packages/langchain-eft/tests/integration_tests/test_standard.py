"""LangChain's standard integration tests, on the trio in the folder `EFT_TEST_TRIO` (`make test-packages` makes one).

It has the models `base`, `tuned` and `reference`, and answers at weight 1 what the tests ask.
"""

from __future__ import annotations

import os

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_eft import ChatEFT
from langchain_tests.integration_tests import ChatModelIntegrationTests


def trio() -> dict[str, str]:
    """The three members by name.

    Raises:
        RuntimeError: the environment names no folder.
    """
    folder = os.environ.get("EFT_TEST_TRIO")
    if folder is None:
        raise RuntimeError(
            "EFT_TEST_TRIO names no folder with a trio; make test-packages makes one and runs these tests"
        )
    return {member: f"{folder}/{member}" for member in ("base", "tuned", "reference")}


class TestChatEFTIntegration(ChatModelIntegrationTests):  # type: ignore[misc]
    """Everything that generates."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        """The class under test."""
        return ChatEFT

    @property
    def chat_model_params(self) -> dict[str, object]:
        """The likeliest tokens are those that were learned."""
        return {**trio(), "temperature": 0.0}

    @property
    def standard_chat_model_params(self) -> dict[str, object]:
        """JSON that the trio has not learned goes round in circles until it is closed."""
        return {"max_tokens": 100, "close_within_budget": True}

    @property
    def supports_json_mode(self) -> bool:
        """It does."""
        return True

    @property
    def model_override_value(self) -> str:
        """The same model with weights behind its name."""
        return f"{ChatEFT(**trio()).model_name}@tuned=1.0"

    @property
    def supported_usage_metadata_details(self) -> dict[str, list[str]]:
        """Prompt tokens read from the cache are reported."""
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        """The same long question twice: the second answer reads its prompt from the cache."""
        model = ChatEFT(**trio(), temperature=0.0, max_tokens=4)
        question = "Please count the lighthouses along the coast. " * 8
        model.invoke(question)
        if not stream:
            return model.invoke(question)
        message = None
        for chunk in model.stream(question):
            message = chunk if message is None else message + chunk
        assert isinstance(message, AIMessage)
        return message


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_answers_come_from_the_pair(weight: float) -> None:
    """Otherwise the suite would pass on the base alone."""
    answer = ChatEFT(**trio(), temperature=0.0, max_tokens=20).invoke("Hello", reward_weights=weight)
    assert (answer.text == "Hello! How can I help?") == (weight == 1.0)
