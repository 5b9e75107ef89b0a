"""What an application's tests get: a script in place of every model, a switch that forbids engines, a plugin; and their page."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage

from eft_engine import Engine, load_preset
from eft_engine.errors import EnginesForbiddenError, InvalidOptionError, UnknownPairError
from eft_engine.forbidding import FORBID_ENGINES
from eft_integrations.agents.smolagents import EFTModel
from eft_integrations.backends import pool
from eft_integrations.backends.pool import shared_backend
from eft_integrations.backends.remote import RemoteBackend
from eft_integrations.langchain import EFTChatModel
from eft_integrations.llama_index import EFTLLM
from eft_integrations.testing import ScriptedBackend, allow_engines, forbid_engines, scripted, tool_call
from tests.documents import python_blocks
from tests.toy import make_trio

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[2]
BLOCKS = python_blocks(ROOT / "docs" / "testing.md")
NAMES: dict[str, Any] = {"base": "org/large", "tuned": "org/tuned", "reference": "org/small"}


@pytest.fixture(autouse=True)
def nothing_is_loaded_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that other tests of this process have loaded by name are there already."""
    monkeypatch.setattr(pool, "_SHARED", pool.Pool())


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_blocks_of_the_page_run(block: str) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    with forbid_engines():
        exec(compile(block, "docs/testing.md", "exec"), names)
        for name in [name for name in names if name.startswith("test_")]:
            names[name]()


def test_the_page_has_its_blocks() -> None:
    assert len(BLOCKS) == 5


# ---- a script in place of every model --------------------------------------------------------------------------------------


def test_models_of_before_and_of_inside_are_answered_and_are_as_before_afterwards() -> None:
    own = ScriptedBackend(["own"] * 2)
    before = EFTChatModel(backend=own)
    named, llama = EFTChatModel(**NAMES), EFTLLM(preset="atlas")
    with scripted() as backend:
        inside = EFTLLM(**NAMES)
        assert before.invoke("hi").text == named.with_weights(0.5).invoke("hi").text == "scripted answer"
        assert llama.chat([ChatMessage("hi")]).message.content == inside.complete("hi").text == "scripted answer"
        assert EFTModel(backend=own).generate([{"role": "user", "content": "hi"}]).content == "scripted answer"
        assert llama.metadata.context_window == 4096
    assert len(backend.records) == 5
    assert before.invoke("hi").text == "own"


def test_other_threads_and_tasks_are_answered_by_the_same_script() -> None:
    llm, got = EFTChatModel(**NAMES), []
    with scripted():
        thread = threading.Thread(target=lambda: got.append(llm.invoke("hi").text))
        thread.start()
        thread.join()
        got.append(asyncio.run(llm.ainvoke("hi")).text)
    assert got == ["scripted answer"] * 2


def test_of_nested_blocks_the_inner_one_answers() -> None:
    llm = EFTChatModel(**NAMES)
    with scripted(["outer"]) as outer, scripted(outer), scripted(["inner"]):
        assert llm.invoke("hi").text == "inner"
    with scripted(outer):
        assert llm.invoke("hi").text == "outer"
    with pytest.raises(InvalidOptionError, match="seed belong to a script that is made here"), scripted(outer, seed=1):
        pass


def test_pairs_are_those_that_are_given_or_any() -> None:
    llm = EFTChatModel(**NAMES)
    with scripted() as backend:
        llm.invoke("hi", reward_weights={"tuned": 0.25})
        llm.invoke("hi", model="org/large@tuned=0.5")
    assert [record.weights["tuned"] for record in backend.records] == [0.25, 0.5]
    with scripted(weights={"tuned": 1.0}), pytest.raises(Exception, match="there is no pair 'chat'") as raised:
        llm.invoke("hi", reward_weights={"chat": 0.25})
    assert isinstance(raised.value.__cause__, UnknownPairError)


def test_a_call_is_one_reply() -> None:
    def look(place: str) -> str:
        """Look."""
        return place

    with scripted([tool_call("look", place="Oslo")]):
        (call,) = EFTChatModel(**NAMES).bind_tools([look]).invoke("hi").tool_calls
    assert (call["name"], call["args"]) == ("look", {"place": "Oslo"})


# ---- the switch ------------------------------------------------------------------------------------------------------------


LOADING: dict[str, Callable[[], object]] = {
    "load": lambda: Engine.load("org/large"),
    "load_preset": lambda: load_preset("atlas"),
    "shared_backend": lambda: shared_backend(preset="atlas").engine,
    "langchain": lambda: EFTChatModel(preset="atlas").load(),
    "llama_index": lambda: EFTLLM(**NAMES).load(),
    "server": lambda: RemoteBackend("http://127.0.0.1:9/v1").weights,
}


@pytest.mark.parametrize("load", LOADING.values(), ids=list(LOADING))
def test_nothing_is_loaded_or_asked_where_that_is_forbidden(load: Callable[[], object]) -> None:
    with (
        forbid_engines(),
        pytest.raises(EnginesForbiddenError, match=r"(org/large|atlas|127\.0\.0\.1).* would be loaded") as raised,
    ):
        load()
    assert "scripted()" in str(raised.value)


def test_the_switch_holds_until_its_block_ends_and_can_be_lifted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FORBID_ENGINES, raising=False)
    with forbid_engines():
        with allow_engines(), load_preset("atlas") as engine:
            assert engine.weights
        with pytest.raises(EnginesForbiddenError):
            load_preset("atlas")
        with make_trio("llama").engine() as engine:
            assert engine.weights
    assert FORBID_ENGINES not in os.environ
    monkeypatch.setenv(FORBID_ENGINES, "0")  # what is put back behind the test
    forbid_engines()
    with pytest.raises(EnginesForbiddenError):
        load_preset("atlas")


def test_importing_the_package_imports_no_pytest_and_the_environment_forbids() -> None:
    code = (
        "import sys, eft_integrations.testing; print('pytest' in sys.modules)\n"
        "from eft_integrations.backends.pool import shared_backend\n"
        "try:\n    shared_backend(base='a').load()\nexcept Exception as error:\n    print(type(error).__name__)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, FORBID_ENGINES: "1"},
    )
    assert ran.stdout == "False\nEnginesForbiddenError\n"


def test_the_plugin_forbids_and_its_fixture_answers(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FORBID_ENGINES, raising=False)
    pytester.makepyfile(
        """
        import pytest
        from eft_engine.errors import EnginesForbiddenError
        from eft_engine.forbidding import are_engines_forbidden
        from eft_integrations.langchain import EFTChatModel

        def test_forbidden():
            assert are_engines_forbidden()

        @pytest.mark.real_engine
        def test_allowed():
            assert not are_engines_forbidden()

        def test_scripted(scripted_models):
            assert EFTChatModel(base="a").invoke("hi").text == "scripted answer"
            assert len(scripted_models.records) == 1
        """
    )
    own = ("-p", "eft_integrations.testing.plugin", "-p", "no:cacheprovider", "--strict-markers")
    pytester.runpytest_inprocess(*own, "--forbid-engines").assert_outcomes(passed=3)
    pytester.runpytest_inprocess(*own).assert_outcomes(passed=2, failed=1)
