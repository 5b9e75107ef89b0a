"""Several compositions in one process: shared engines, own weights, own pairs, own templates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eft_engine import Engine, EngineConfig, LoadedPair, SamplingParams, errors
from eft_integrations.backends.engine import EngineBackend
from eft_integrations.backends.pool import backend_of
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.server.composition_settings import CompositionSettings
from eft_integrations.server.compositions import Composition, Compositions
from eft_integrations.server.loading import load_compositions
from tests.integrations.server.serving import in_process
from tests.toy import make_model, make_tokenizer

GREEDY: dict[str, Any] = {"prompt": "abc", "max_tokens": 8, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """A base with two pairs."""
    tokenizer = make_tokenizer()
    pairs = {
        name: LoadedPair(make_model("llama", seed=seed), make_model("llama", seed=seed + 1))
        for name, seed in (("kind", 10), ("brief", 20))
    }
    with Engine.from_models(make_model("llama", hidden_size=64, seed=1), tokenizer=tokenizer, pairs=pairs) as engine:
        yield engine


async def test_compositions_over_one_engine_answer_as_their_weights_say(engine: Engine) -> None:
    backend = backend_of(engine)
    served = [
        Composition("kind", backend, {"kind": 1.0}),
        Composition("both", backend, {"kind": 0.5, "brief": 2.0}),
        Composition("plain", backend, {}),
    ]
    expected = {
        "kind": {"kind": 1.0, "brief": 0.0},
        "both": {"kind": 0.5, "brief": 2.0},
        "plain": {"kind": 0.0, "brief": 0.0},
        "both@kind=0": {"kind": 0.0, "brief": 2.0},
    }
    async with in_process(served) as client:
        for model, weights in expected.items():
            reply = (await client.post("/v1/completions", json={"model": model, **GREEDY})).json()
            sampling = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
            alone = engine.generate("abc", sampling=sampling, reward_weights=weights)
            assert reply["choices"][0]["text"] == alone.text
            name = model.partition("@")[0]
            own = next(composition.weights for composition in served if composition.name == name)
            assert reply["eft"]["reward_weights"] == {pair: weights[pair] for pair in own}
        listed = (await client.get("/v1/models")).json()["data"]
    assert {model["id"]: model["eft"]["pairs"] for model in listed} == {
        "kind": {"kind": 1.0},
        "both": {"kind": 0.5, "brief": 2.0},
        "plain": {},
    }


async def test_pair_of_another_composition_does_not_exist_and_is_not_run(engine: Engine) -> None:
    served = [Composition("kind", backend_of(engine), {"kind": 1.0})]
    async with in_process(served) as client:
        refused = await client.post(
            "/v1/completions", json={"model": "kind", "eft_reward_weights": {"brief": 1}, **GREEDY}
        )
        assert refused.json()["error"]["message"] == "there is no pair 'brief'; 'kind' has 'kind'"
        reply = (
            await client.post("/v1/completions", json={"model": "kind", "eft_reward_weights": 0.5, **GREEDY})
        ).json()
    forwards = reply["eft"]["choices"][0]["num_forwards"]
    assert forwards["kind.tuned"] > 0
    assert forwards["brief.tuned"] == forwards["brief.reference"] == 0


def test_composition_over_a_shared_base_is_rendered_with_the_template_of_its_own_pair(tmp_path: Path) -> None:
    settings, templates = [], {}
    base = tmp_path / "base"
    make_model("llama", hidden_size=64, seed=1).save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    for name, seed in (("first", 10), ("second", 20)):
        tokenizer = make_tokenizer()
        templates[name] = f"{name}: {tokenizer.chat_template}"
        tokenizer.chat_template = templates[name]
        for side in ("tuned", "reference"):
            make_model("llama", seed=seed + (side == "tuned")).save_pretrained(tmp_path / f"{name}-{side}")
            tokenizer.save_pretrained(tmp_path / f"{name}-{side}")
        pair = {side: str(tmp_path / f"{name}-{side}") for side in ("tuned", "reference")}
        settings.append(CompositionSettings(name=name, base=str(base), pairs={name: pair}, weights={name: 0.5}))
    first, second = load_compositions(settings, EngineConfig(dtype="float32", device="cpu"))
    try:
        assert first.backend is second.backend
        assert isinstance(first.backend, EngineBackend)
        assert (first.weights, second.weights) == ({"first": 0.5}, {"second": 0.5})
        assert first.chat_template is None
        assert first.backend.engine.chat_template == templates["first"]
        assert second.chat_template == templates["second"]
    finally:
        Compositions([first, second]).close()


def test_one_pair_name_for_different_models_is_refused() -> None:
    settings = [
        CompositionSettings(name=name, base="org/base", pairs={"chat": {"tuned": tuned, "reference": "org/small"}})
        for name, tuned in (("a", "org/one"), ("b", "org/two"))
    ]
    with pytest.raises(errors.InvalidOptionError, match="pair 'chat' means different models"):
        load_compositions(settings, EngineConfig())


def test_fingerprint_changes_with_the_weights() -> None:
    backend = ScriptedBackend([])
    one, two, three = (Composition("m", backend, {"scripted": weight}) for weight in (1.0, 1.0, 0.5))
    assert one.fingerprint == two.fingerprint != three.fingerprint


def test_server_without_compositions_is_refused() -> None:
    with pytest.raises(errors.InvalidOptionError, match="at least one composition"):
        Compositions([])
