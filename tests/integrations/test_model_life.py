"""The life of a model object in both frameworks: how it is named, what is known before it is loaded, copies, pickles, its end."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.workflow import Context, JsonSerializer
from llama_index.core.workflow.context_serializers import PickleSerializer

from eft_engine import Engine, EngineConfig, MemberConfig, PlainText, PromptOptions, TunedPair, context_len_of, errors
from eft_integrations.backends import EngineBackend, ScriptedBackend, backend_of, shared_backend
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
    ids=str,
)
def test_another_option_of_a_member_or_the_engine_is_another_engine(adapter: Any, fields: dict[str, Any]) -> None:
    model = adapter(**fields)
    assert model._backend is not adapter(**NAMES)._backend
    assert model._backend is adapter(**fields)._backend
    assert model._backend.identity != adapter(**NAMES)._backend.identity


@ADAPTERS
def test_options_survive_saving_and_show_in_words(adapter: Any) -> None:
    base = MemberConfig(source="a", dtype="float32")
    model = adapter(**{**NAMES, "base": base}, engine_config=EngineConfig(max_num_seqs=3), keep_alive="5m")
    assert model.base is base
    assert model.engine_config == {"max_num_seqs": 3}
    assert "MemberConfig(source='a'" in repr(model)
    saved = model.model_dump(include={*NAMES, "engine_config", "keep_alive"}, exclude={"class_name"})
    saved.pop("class_name", None)
    assert adapter(**saved)._backend is model._backend


def test_llama_index_saves_and_restores() -> None:
    options = PromptOptions(base=PlainText())
    llm = EFTLLM(
        **{**NAMES, "base": MemberConfig(source="a", dtype="float32")}, prompt_options=options, temperature=0.5
    )
    assert llm.to_dict()["class_name"] == "EFTLLM"
    for restored in (EFTLLM.from_json(llm.to_json()), EFTLLM.from_dict(llm.to_dict())):
        assert restored._backend is llm._backend
        assert (restored.prompt_options, restored.temperature) == (options, 0.5)


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


@ADAPTERS
async def test_event_loop_runs_on_while_an_engine_is_loaded(adapter: Any, toy_trio: ToyTrio) -> None:
    loading, may_load = threading.Event(), threading.Event()

    def load() -> Engine:
        loading.set()
        assert may_load.wait(60)
        return toy_trio.engine()

    backend = EngineBackend(load, model_name="toy")
    model = adapter(backend=backend, **SHORT)
    asked = asyncio.ensure_future(model.achat([ChatMessage("abc")]) if adapter is EFTLLM else model.ainvoke("abc"))
    while not loading.is_set():
        await asyncio.sleep(0)
    may_load.set()  # only an event loop that runs gets here
    await asked
    backend.close()


# ---- copies and pickles --------------------------------------------------------------------------------------------------

COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "model_copy": lambda model: model.model_copy(),
    "deep model_copy": lambda model: model.model_copy(deep=True),
    "with_weights": lambda model: model.with_weights(0.5),
}


@ADAPTERS
@pytest.mark.parametrize("name", COPIES)
def test_copies_share_the_engine(adapter: Any, name: str, toy_trio: ToyTrio) -> None:
    with toy_trio.engine() as engine:
        for model in (adapter(engine=engine), adapter(backend=ScriptedBackend(["x"])), adapter(**NAMES)):
            copied = COPIES[name](model)
            assert copied is not model
            assert copied._backend is model._backend
            assert (copied.engine, copied.backend) == (model.engine, model.backend)


@ADAPTERS
def test_deep_copy_has_options_of_its_own(adapter: Any) -> None:
    model = adapter(**NAMES, stop=["x"])
    copied = copy.deepcopy(model)
    copied.stop.append("y")
    assert model.stop == ["x"]


@ADAPTERS
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_pickled_model_shares_the_engine_of_the_process_where_it_comes_back(adapter: Any) -> None:
    base = MemberConfig(source="a", dtype="float32")
    model = adapter(**{**NAMES, "base": base}, prompt_options=PromptOptions(base=PlainText()), temperature=0.5)
    data = pickle.dumps(model)
    restored = pickle.loads(data)
    assert restored._backend is model._backend
    for field in ("base", "prompt_options", "temperature"):
        assert getattr(restored, field) == getattr(model, field)

    def elsewhere() -> bool:
        there = pickle.loads(data)
        return there._backend is not model._backend and there._backend is adapter(**{**NAMES, "base": base})._backend

    assert in_child(elsewhere) == "True"


@ADAPTERS
@pytest.mark.parametrize("field", ["engine", "backend"])
def test_model_of_something_that_lives_here_refuses_to_be_pickled(adapter: Any, field: str, toy_trio: ToyTrio) -> None:
    with toy_trio.engine() as engine:
        model = adapter(**{field: engine if field == "engine" else backend_of(engine)})
        with pytest.raises(errors.InvalidOptionError, match=f"made with {field}= .* name the models instead"):
            pickle.dumps(model)


@pytest.mark.parametrize("serializer", [JsonSerializer(), PickleSerializer()], ids=["JSON", "pickle"])
@pytest.mark.filterwarnings("ignore::workflows.context.state_store.UnserializableKeyWarning")
async def test_context_of_a_workflow_is_saved_and_restored(serializer: Any) -> None:
    backend = ScriptedBackend(["one", "two"])
    agent = FunctionAgent(tools=[], llm=EFTLLM(backend=backend))
    context = Context(agent)
    await agent.run("first", ctx=context, memory=ChatMemoryBuffer.from_defaults(llm=agent.llm))
    named = EFTLLM(**NAMES, temperature=0.5)
    await context.store.set("llm", named)
    restored = Context.from_dict(agent, context.to_dict(serializer=serializer), serializer=serializer)
    assert (await restored.store.get("llm"))._backend is named._backend
    assert str(await agent.run("second", ctx=restored)) == "two"


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
