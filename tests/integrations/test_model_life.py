"""The life of a model object in both frameworks: how it is named, what is known before it is loaded, copies, pickles, its end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain.agents import create_agent
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate

from eft_engine import Engine, EngineConfig, MemberConfig, TunedPair, context_len_of, errors
from eft_integrations.backends import EngineBackend, remote_backend, shared_backend
from eft_integrations.backends.trio_source import TrioSource
from eft_integrations.langchain import EFTChatModel
from eft_integrations.llama_index import EFTLLM
from tests.engine.test_fork import in_child
from tests.gguf_files import make_gguf_trio
from tests.toy import ToyTrio, make_model

ADAPTERS = pytest.mark.parametrize("adapter", [EFTChatModel, EFTLLM])
NAMES: dict[str, Any] = {"base": "a", "tuned": "t", "reference": "r"}
SHORT: dict[str, Any] = {"temperature": 0.0, "max_tokens": 4}


def ask(model: Any, **keywords: Any) -> str:
    """One answer."""
    if isinstance(model, EFTLLM):
        return str(model.chat([ChatMessage("abc")], **keywords).message.content)
    return str(model.invoke("abc", **keywords).content)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory, toy_trio: ToyTrio) -> dict[str, str]:
    """A trio in folders, whose reference reads less than the others."""
    folders = {name: tmp_path_factory.mktemp("life") / name for name in NAMES}
    models = {"base": toy_trio.base, "tuned": toy_trio.tuned, "reference": make_model("llama", seed=3, context_len=200)}
    for name, folder in folders.items():
        models[name].save_pretrained(folder)
        toy_trio.tokenizer.save_pretrained(folder)
    return {name: str(folder) for name, folder in folders.items()}


# ---- names ---------------------------------------------------------------------------------------------------------------


@ADAPTERS
@pytest.mark.parametrize(
    "fields",
    [
        {**NAMES, "base": MemberConfig(source="a")},
        {**NAMES, "base": {"source": "a"}, "tuned": MemberConfig(source="t"), "reference": {"source": "r"}},
        {"base": "a", "pairs": {"tuned": TunedPair("t", "r")}},
        {"base": "a", "pairs": {"tuned": (MemberConfig(source="t"), {"source": "r"})}},
        {"base": "a", "pairs": {"tuned": {"tuned": {"source": "t"}, "reference": "r"}}},
        {**NAMES, "engine_config": EngineConfig()},
        {**NAMES, "engine_config": {"max_num_seqs": 16}},
    ],
    ids=str,
)
def test_same_trio_in_other_words_is_the_same_engine(adapter: Any, fields: dict[str, Any]) -> None:
    model = adapter(**fields)
    assert model._backend is adapter(**NAMES)._backend
    assert model.model_name == "a"
    assert not model._is_loaded


@ADAPTERS
@pytest.mark.parametrize(
    "fields",
    [
        {**NAMES, "base": MemberConfig(source="a", dtype="float32")},
        {**NAMES, "tuned": {"source": "t", "adapter": "x"}},
        {**NAMES, "base": MemberConfig(source="a", quantization_config=object())},
        {**NAMES, "engine_config": EngineConfig(max_num_seqs=3)},
        {**NAMES, "engine_config": EngineConfig(speculation={"drafter": "none"})},
    ],
    ids=["dtype", "adapter", "quantization", "sequences", "speculation"],
)
def test_another_option_of_a_member_or_the_engine_is_another_engine(adapter: Any, fields: dict[str, Any]) -> None:
    model = adapter(**fields)
    assert model._backend is not adapter(**NAMES)._backend
    assert model._backend is adapter(**fields)._backend
    assert model._backend.identity != adapter(**NAMES)._backend.identity


@ADAPTERS
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"base": {"source": "a", "dtpye": 1}}, "did you mean 'dtype'"),
        ({"base": 3}, "a hub id, a folder, a .gguf file, a MemberConfig"),
        ({"base": "a", "pairs": {"x": {"tuned": "t"}}}, "a mapping of tuned and reference"),
        ({"base": "a", "keep_alive": "soon"}, "keep_alive is a number of seconds"),
    ],
    ids=str,
)
def test_wrong_names_are_refused_in_words(adapter: Any, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(errors.InvalidOptionError, match=reason):
        adapter(**fields)


@ADAPTERS
def test_what_answers_is_settled_when_a_model_is_made(adapter: Any) -> None:
    model = adapter(**NAMES)
    model.temperature = 0.3
    with pytest.raises(errors.InvalidOptionError, match="settled when a model is made"):
        model.base = "b"
    other = model.model_copy(update={"base": "b"})
    assert other._backend is adapter(**{**NAMES, "base": "b"})._backend
    assert (other.model_name, other.temperature, model.model_name) == ("b", 0.3, "a")


# ---- before it is loaded -------------------------------------------------------------------------------------------------


def loaded_and_planned(backend: EngineBackend) -> tuple[int, int]:
    """The context of the engine, and what was told of it before."""
    planned = backend.context_len
    assert not backend.is_loaded, "nothing is loaded for it"
    actual = backend.engine.context_len
    assert backend.context_len == actual
    backend.close()
    return actual, planned


@ADAPTERS
@pytest.mark.parametrize(("config", "expected"), [({}, 200), ({"max_context_len": 64}, 64)], ids=str)
def test_context_of_folders_is_known_before_they_are_loaded(
    adapter: Any, config: dict[str, Any], expected: int, names: dict[str, str]
) -> None:
    model = adapter(**names, engine_config=config)
    if adapter is EFTLLM:
        assert model.metadata.context_window == expected
    else:
        assert model.profile["max_input_tokens"] == expected
    assert loaded_and_planned(model._backend) == (expected, expected)


def test_context_of_gguf_files_is_known_before_they_are_loaded(tmp_path: Path) -> None:
    files = make_gguf_trio(tmp_path, "llama", context_len=96)
    backend = shared_backend(base=str(files.base), tuned=str(files.tuned), reference=str(files.reference))
    assert loaded_and_planned(backend) == (96, 96)


def test_context_of_a_preset_is_known_before_it_is_loaded() -> None:
    assert loaded_and_planned(shared_backend(preset="atlas", engine_config={"self_check": False})) == (1024, 1024)


def test_context_of_an_adapter_is_that_of_its_reference(names: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    pairs = {"chat": TunedPair(str(tmp_path), names["reference"])}
    assert context_len_of(names["base"], pairs) == 200
    assert context_len_of(names["base"]) == 256


@ADAPTERS
def test_context_that_cannot_be_known_is_a_typed_error(adapter: Any, tmp_path: Path) -> None:
    model = adapter(base=str(tmp_path / "nowhere"))
    with pytest.raises(errors.ModelNotFoundError, match="nowhere"):
        _ = model._backend.context_len
    assert not model._is_loaded


@ADAPTERS
def test_models_are_looked_for_at_once_where_that_is_asked_for(
    adapter: Any, names: dict[str, str], tmp_path: Path
) -> None:
    assert not adapter(**names, validate_model_on_init=True)._is_loaded
    adapter(**{**names, "base": str(tmp_path / "nowhere")})
    with pytest.raises(errors.ModelNotFoundError, match="nowhere"):
        adapter(**{**names, "base": str(tmp_path / "nowhere")}, validate_model_on_init=True)
    with pytest.raises(errors.InvalidOptionError, match="there is no preset"):
        adapter(preset="nothing", validate_model_on_init=True)
    with pytest.raises(errors.RemoteServerError):
        adapter(base_url="http://127.0.0.1:9/v1", validate_model_on_init=True)


async def by_agent_of_llama_index(names: dict[str, str]) -> None:
    """Asks for the metadata before anything else."""
    await FunctionAgent(tools=[], llm=EFTLLM(**names, **SHORT)).run("abc")


async def by_prediction(names: dict[str, str]) -> None:
    """As query engines ask."""
    await EFTLLM(**names, **SHORT).apredict(PromptTemplate("abc"))


async def by_chat(names: dict[str, str]) -> None:
    """LlamaIndex without anything around it."""
    await EFTLLM(**names, **SHORT).achat([ChatMessage("abc")])


async def by_agent_of_langchain(names: dict[str, str]) -> None:
    """A graph."""
    await create_agent(EFTChatModel(**names, **SHORT)).ainvoke({"messages": [("user", "abc")]})


async def by_stream(names: dict[str, str]) -> None:
    """LangChain without anything around it."""
    assert [chunk async for chunk in EFTChatModel(**names, **SHORT).astream("abc")]


@pytest.mark.parametrize("ask_it", [by_agent_of_llama_index, by_prediction, by_chat, by_agent_of_langchain, by_stream])
async def test_event_loop_runs_on_while_an_engine_is_loaded(
    ask_it: Callable[[dict[str, str]], Awaitable[None]],
    names: dict[str, str],
    toy_trio: ToyTrio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loading, may_load = threading.Event(), threading.Event()

    def load(source: TrioSource) -> Engine:
        loading.set()
        assert may_load.wait(60), "the event loop stands still"
        return toy_trio.engine()

    monkeypatch.setattr(TrioSource, "load", load)
    asked = asyncio.ensure_future(ask_it(names))
    while not (loading.is_set() or asked.done()):
        await asyncio.sleep(0)
    may_load.set()  # only an event loop that runs gets here
    await asked
    shared_backend(**names).close()


@ADAPTERS
async def test_server_is_first_asked_beside_the_event_loop(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def answer(request: httpx.Request) -> httpx.Response:
        threads.append(threading.current_thread())
        return httpx.Response(503, json={"error": {"message": "not yet"}})

    model = adapter(base_url="http://127.0.0.1:9/v2")
    client = httpx.Client(transport=httpx.MockTransport(answer))
    monkeypatch.setattr(model._held.own._connection, "_client", client)
    with pytest.raises(Exception, match="503"):
        await (model.achat([ChatMessage("abc")]) if adapter is EFTLLM else model.ainvoke("abc"))
    assert threads
    assert threading.current_thread() not in threads


# ---- the end -------------------------------------------------------------------------------------------------------------


@ADAPTERS
def test_closed_model_unloads_its_engine_and_says_so(adapter: Any, names: dict[str, str]) -> None:
    with adapter(**names, **SHORT, engine_config={"max_num_seqs": 5}) as model:
        answer = ask(model)
        engine, copied = model._backend.engine, model.with_weights(0.5)
        other = adapter(**names, **SHORT, engine_config={"max_num_seqs": 5})
    assert engine.is_closed
    for closed in (model, copied):
        with pytest.raises(errors.EngineClosedError, match="was closed, and its copies with it"):
            closed.token_ids("abc")
        with pytest.raises(Exception, match="was closed, and its copies with it"):
            ask(closed)
    assert ask(other) == answer, "another model of the trio loads it again"
    other.close()


@ADAPTERS
async def test_request_that_runs_when_a_model_is_closed_comes_to_its_end(adapter: Any, toy_trio: ToyTrio) -> None:
    backend = EngineBackend(toy_trio.engine, model_name="toy")
    async with adapter(backend=backend, **SHORT) as given:
        assert ask(given)
    assert backend.is_loaded, "it was given"
    assert not backend.engine.is_closed
    use = backend._keeper.begin()
    backend.let_go()
    assert backend.is_loaded
    use.end()
    while backend.is_loaded:
        await asyncio.sleep(0.001)
    backend.close()  # waits until it is unloaded


@ADAPTERS
def test_engine_that_was_given_stays_open(adapter: Any, toy_trio: ToyTrio) -> None:
    with toy_trio.engine() as engine:
        with adapter(engine=engine, **SHORT) as model:
            assert ask(model)
        assert not engine.is_closed
        assert ask(adapter(engine=engine, **SHORT))


# ---- forks ---------------------------------------------------------------------------------------------------------------


@dataclass
class Forked:
    """Models of a parent: one that has answered, and one that was named alone."""

    loaded: Any
    named: Any


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@ADAPTERS
def test_forked_child_uses_no_engine_of_its_parent(adapter: Any, names: dict[str, str]) -> None:
    parent = Forked(adapter(**names, **SHORT), adapter(**names, **SHORT, engine_config={"max_num_seqs": 4}))
    answer = ask(parent.loaded)

    def refused() -> str:
        try:
            return ask(parent.loaded)
        except Exception as error:
            return type(error.__cause__ or error).__name__

    assert in_child(refused) == "ForkedEngineError"
    with parent.named._backend._keeper.loading:  # as if it were being loaded at the fork
        assert in_child(lambda: ask(parent.named)) == answer
    fresh = in_child(lambda: (adapter(**names)._backend is parent.loaded._backend, ask(adapter(**names, **SHORT))))
    assert fresh == str((False, answer))
    assert ask(parent.loaded) == answer
    parent.loaded.close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_child_has_connections_of_its_own() -> None:
    backend = remote_backend("http://127.0.0.1:9/v1", served_name="forked")
    client = backend._connection._client

    def begins_anew() -> bool:
        with backend._lock, backend._connection._lock:  # held by a parent's thread, or not
            return backend._connection._client is not client

    with backend._lock, backend._connection._lock:
        assert in_child(begins_anew) == "True"
    assert backend._connection._client is client
