"""LangChain's standard unit tests."""

from __future__ import annotations

from langchain_core.language_models import BaseChatModel
from langchain_eft import ChatEFT
from langchain_tests.unit_tests import ChatModelUnitTests


class TestChatEFTUnit(ChatModelUnitTests):  # type: ignore[misc]
    """Construction, binding, parameters; no engine is loaded."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        """The class under test."""
        return ChatEFT

    @property
    def chat_model_params(self) -> dict[str, object]:
        """A trio that comes with the core."""
        return {"preset": "atlas"}
