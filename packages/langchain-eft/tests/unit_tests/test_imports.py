"""The public names of the package, and that they are the installed distribution's."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import langchain_eft
from langchain_eft import ChatEFT
from langchain_eft.chat_models import ChatEFT as ChatEFTOfItsFile

import eft_engine
import eft_integrations
from eft_integrations.langchain import EFTChatModel

EXPECTED_ALL = ["ChatEFT", "ContextAware", "EFTChatModel", "init_chat_model", "__version__"]


def test_all_imports() -> None:
    assert sorted(langchain_eft.__all__) == sorted(EXPECTED_ALL)
    assert all(hasattr(langchain_eft, name) for name in EXPECTED_ALL)


def test_what_is_imported_is_what_the_wheels_have_installed() -> None:
    for module in (langchain_eft, eft_integrations, eft_engine):
        assert Path(module.__file__ or "").is_relative_to(sys.prefix), module.__file__


def test_there_is_one_class_so_that_saved_chains_name_one() -> None:
    assert ChatEFT is EFTChatModel is ChatEFTOfItsFile
    assert ChatEFT.lc_id() == EFTChatModel.lc_id()


def test_versions_are_the_cores() -> None:
    assert langchain_eft.__version__ == version("eft-engine") == eft_engine.__version__
