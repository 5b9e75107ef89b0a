"""LoRA adapters, switched per row of a batch."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model

from eft_engine.errors import CorruptWeightsError, LoadError, UnsafeWeightsError, UnsupportedAdapterError
from eft_engine.models.adapters import adapter_num_bytes, check_adapter
from eft_engine.models.language_model import LanguageModel
from eft_engine.models.network import Block
from tests.toy import make_model, save_adapter


def test_rows_with_and_without_adapters_share_a_pass(tmp_path: Path) -> None:
    base = make_model("llama")
    folders = [save_adapter(base, tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    model = LanguageModel(copy.deepcopy(base), name="toy")
    names = [model.with_adapter(folder, member="tuned")[1] for folder in folders]
    slots = [model.kv_cache.allocate() for _ in range(3)]
    prompt = [5, 6, 7, 8]
    logits = model.forward([Block(slot, prompt, 1, name) for slot, name in zip(slots, [None, *names], strict=True)])
    plain = base(torch.tensor([prompt])).logits[0, -1]
    tuned = [PeftModel.from_pretrained(copy.deepcopy(base), str(folder)) for folder in folders]
    expected = [plain, *(model(torch.tensor([prompt])).logits[0, -1] for model in tuned)]
    assert not torch.allclose(expected[0], expected[1], atol=1e-2)
    for ours, theirs in zip(logits, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_bytes_of_an_adapter_are_counted_apart(tmp_path: Path) -> None:
    base = make_model("llama")
    folder = save_adapter(base, tmp_path, seed=1)
    alone = sum(parameter.nbytes for parameter in base.parameters())
    model = LanguageModel(copy.deepcopy(base), name="toy")
    model.with_adapter(folder, member="tuned")
    added = sum(parameter.nbytes for parameter in model.model.parameters()) - alone
    assert model.parameter_bytes == alone
    assert adapter_num_bytes(folder, torch.float32) == added > 0


def test_release_takes_the_adapters_off(tmp_path: Path) -> None:
    base = make_model("llama")
    before = base(torch.tensor([[1, 2]])).logits
    model = LanguageModel(base, name="toy")
    model.with_adapter(save_adapter(make_model("llama"), tmp_path, seed=1), member="tuned")
    model.release()
    assert torch.allclose(base(torch.tensor([[1, 2]])).logits, before, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "phrase"),
    [
        (LoraConfig(use_dora=True, target_modules=["q_proj"]), "DoRA"),
        (LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]), "replaces whole modules"),
        (LoraConfig(target_modules=["q_proj", "embed_tokens"]), "embeddings or the output layer"),
        (LoraConfig(target_modules=["q_proj"], bias="all"), "biases"),
        (LoraConfig(target_modules=["q_proj"], trainable_token_indices=[1]), "embeddings of single tokens"),
        (IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "not an adapter configuration"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_adapter_that_cannot_be_switched_per_row_is_refused(config: Any, phrase: str, tmp_path: Path) -> None:
    get_peft_model(make_model("llama"), config).save_pretrained(tmp_path)
    kind = CorruptWeightsError if "configuration" in phrase else UnsupportedAdapterError
    with pytest.raises(kind, match=phrase) as caught:
        check_adapter(tmp_path, member="chat.tuned")
    assert caught.value.member == "chat.tuned"


def test_adapter_that_does_more_than_lora_is_refused_once_its_layers_are_there(tmp_path: Path) -> None:
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", alora_invocation_tokens=[5])
    get_peft_model(make_model("llama"), config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedAdapterError, match=r"more to its layers \(Linear\) than B\(A\(x\)\)"):
        LanguageModel(make_model("llama"), name="toy").with_adapter(tmp_path, member="chat.tuned")


def _only_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _no_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def _no_json(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{", encoding="utf-8")


def _truncated(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])


def _other_shape(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 7}), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "kind", "phrase"),
    [
        (_only_pickle, UnsafeWeightsError, "a pickle, which is never opened"),
        (_no_weights, CorruptWeightsError, "no adapter_model.safetensors"),
        (_no_json, CorruptWeightsError, "not an adapter configuration"),
        (_truncated, CorruptWeightsError, "does not load onto"),
        (_other_shape, CorruptWeightsError, "does not load onto"),
    ],
)
def test_damaged_adapter_is_named(damage: Any, kind: type[LoadError], phrase: str, tmp_path: Path) -> None:
    folder = save_adapter(make_model("llama"), tmp_path, seed=1)
    damage(folder)
    with pytest.raises(kind, match=phrase) as caught:
        LanguageModel(make_model("llama"), name="toy").with_adapter(folder, member="chat.tuned")
    assert (caught.value.member, caught.value.source) == ("chat.tuned", str(folder))
