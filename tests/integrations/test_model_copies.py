"""Copies of model objects in both frameworks: what they share, what is saved and pickled, and what refuses to be."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.workflow import Context, JsonSerializer
from llama_index.core.workflow.context_serializers import PickleSerializer

from eft_engine import EngineConfig, MemberConfig, PlainText, PromptOptions, TunedPair, errors
from eft_integrations.backends import ScriptedBackend, backend_of
from eft_integrations.llama_index import EFTLLM
from tests.engine.test_fork import in_child
from tests.integrations.test_model_life import ADAPTERS, NAMES
from tests.toy import ToyTrio

# ---- saving --------------------------------------------------------------------------------------------------------------


@ADAPTERS
def test_options_survive_saving_and_show_in_words(adapter: Any) -> None:
    base = MemberConfig(source="a", dtype="float32")
    model = adapter(**{**NAMES, "base": base}, engine_config=EngineConfig(max_num_seqs=3), keep_alive="5m")
    assert model.base is base
    assert model.engine_config == {"max_num_seqs": 3}
    assert "MemberConfig(source='a'" in repr(model)
    saved = model.model_dump()
    restored = adapter(**{name: saved[name] for name in (*NAMES, "engine_config", "keep_alive")})
    assert restored._backend is model._backend
    assert (restored.base, restored.keep_alive) == (base, "5m")


@ADAPTERS
def test_saved_adapter_still_has_everything_else_from_its_reference(adapter: Any) -> None:
    pairs = {"a": TunedPair("t", "r"), "b": (MemberConfig(source="t"), "r")}
    model = adapter(base="a", tuned=MemberConfig(source="t"), reference=MemberConfig(source="r"), pairs=pairs)
    explicit = adapter(base="a", tuned={"source": "t", "dtype": None}, reference="r", pairs=pairs)
    assert explicit._backend is not model._backend
    saved = model.model_dump()
    restored = adapter(**{name: saved[name] for name in ("base", "tuned", "reference", "pairs")})
    assert restored._backend is model._backend
    for pair in restored._backend.source.pairs.values():
        assert pair.tuned.model_fields_set == {"source"}


def test_llama_index_saves_and_restores() -> None:
    options = PromptOptions(base=PlainText())
    llm = EFTLLM(
        **{**NAMES, "base": MemberConfig(source="a", dtype="float32")}, prompt_options=options, temperature=0.5
    )
    assert llm.to_dict()["class_name"] == "EFTLLM"
    for restored in (EFTLLM.from_json(llm.to_json()), EFTLLM.from_dict(llm.to_dict())):
        assert restored._backend is llm._backend
        assert (restored.prompt_options, restored.temperature) == (options, 0.5)


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
