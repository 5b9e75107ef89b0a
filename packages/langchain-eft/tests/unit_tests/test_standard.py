"""LangChain's standard unit tests."""

from __future__ import annotations

import importlib

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_eft import ChatEFT
from langchain_tests.unit_tests import ChatModelUnitTests


@pytest.fixture
def _listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite loads JSON with `allowed_objects="all"`, which are the classes in a closed list of LangChain's."""
    own = tuple(ChatEFT.lc_id())
    loading = importlib.import_module("langchain_core.load.load")
    monkeypatch.setitem(loading.ALL_SERIALIZABLE_MAPPINGS, own, own)
    monkeypatch.setattr(loading, "_default_class_paths_cache", {})


@pytest.mark.usefixtures("_listed")
class TestChatEFTUnit(ChatModelUnitTests):  # type: ignore[misc]
    """Construction, binding, parameters, JSON; no engine is loaded."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        """The class under test."""
        return ChatEFT

    @property
    def chat_model_params(self) -> dict[str, object]:
        """A trio that comes with the core."""
        return {"preset": "atlas"}
