"""LoRA adapters for llama.cpp: what is written is what PEFT adds, and what llama.cpp cannot hold is refused before it sees it."""

from __future__ import annotations

import copy
import ctypes
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from eft_engine import EngineConfig, MemberConfig, TunedPair
from eft_engine.errors import (
    CorruptWeightsError,
    InvalidOptionError,
    ModelNotFoundError,
    UnsafeWeightsError,
    UnsupportedAdapterError,
)
from eft_engine.models import network_plans
from eft_engine.models.adapters import check_adapter
from eft_engine.models.gguf_file import GGUFFile, read_gguf
from eft_engine.models.llama_cpp.adapter_file import check_gguf_adapter, check_peft_adapter, write_gguf_adapter
from eft_engine.models.planning import TrioPlan, plan_trio
from tests.gguf_files import GGUF_ARCHITECTURES, GgufContents, StoredTensor, write_gguf
from tests.toy import VOCAB_SIZE, make_model, make_tokenizer, save_adapter

PROMPT = [5, 6, 7, 8, 200, 3]
PATTERNS = {
    "rank_pattern": {"q_proj": 8, r"layers\.1\.mlp\..*": 2},
    "alpha_pattern": {"v_proj": 3, "layers.0.self_attn.k_proj": 32},
}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "plain": {"lora_alpha": 6},
    "rslora": {"lora_alpha": 3, "use_rslora": True},
    "patterns": {"lora_alpha": 6, **PATTERNS},
    "patterns, rslora": {"lora_alpha": 6, "use_rslora": True, **PATTERNS},
    "alpha 0": {"lora_alpha": 0, "alpha_pattern": {"v_proj": 3}},
    "some layers": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
    "expression": {"target_modules": r".*\.self_attn\.(q|k)_proj"},
}


@dataclass(frozen=True)
class Tuned:
    """A toy model and its file, and the folder of an adapter for it."""

    model: PreTrainedModel
    file: GGUFFile
    folder: Path

    def merged(self) -> PreTrainedModel:
        """The model with the adapter in its weights, as PEFT computes them."""
        tuned = PeftModel.from_pretrained(copy.deepcopy(self.model), str(self.folder))
        return tuned.merge_and_unload().eval()

    def write(self) -> Path:
        """The adapter for llama.cpp."""
        return write_gguf_adapter(
            self.folder, self.folder.with_name("adapter.gguf"), model=self.file, member="chat.tuned"
        )


def make_tuned(tmp_path: Path, architecture: str, **config: Any) -> Tuned:
    """An adapter of rank 4 on all layers, if `config` does not say otherwise, with large random values."""
    model = make_model(architecture)
    file = read_gguf(write_gguf(model, make_tokenizer(), tmp_path / "model.gguf"), member="chat.reference")
    settings = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **config}
    tuned = get_peft_model(copy.deepcopy(model), LoraConfig(**settings))
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    return Tuned(model, file, tmp_path / "adapter")


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def values(file: GGUFFile, name: str) -> np.ndarray:
    tensor = file.tensors[name]
    assert tensor.ggml_type == gguf.GGMLQuantizationType.F32
    found = np.fromfile(tensor.path, np.float32, tensor.num_elements, offset=tensor.offset)
    return found.reshape(tensor.shape)


def changes(adapter: GGUFFile) -> dict[str, np.ndarray]:
    """What llama.cpp adds to each tensor, by the rule of its source: alpha / rank * B A; for embeddings A is turned over."""
    alpha = adapter.metadata["adapter.lora.alpha"]
    names = [name.removesuffix(".lora_a") for name in adapter.tensors if name.endswith(".lora_a")]
    pairs = {name: (values(adapter, f"{name}.lora_a"), values(adapter, f"{name}.lora_b")) for name in names}
    return {
        name: alpha / up.shape[1] * (down @ up.T if name == "token_embd.weight" else up @ down)
        for name, (down, up) in pairs.items()
    }


# What is written


def assert_adds_what_peft_adds(tuned: Tuned, tmp_path: Path) -> None:
    """The file of the merged model minus that of the model is what the adapter adds, tensor by tensor."""
    merged = read_gguf(write_gguf(tuned.merged(), make_tokenizer(), tmp_path / "merged.gguf"), member="merged")
    adapter = check_gguf_adapter(tuned.write(), model=tuned.file, member="chat.tuned")
    added = changes(adapter)
    assert added
    for name in tuned.file.tensors:
        expected = values(merged, name) - values(tuned.file, name)
        np.testing.assert_allclose(added.get(name, np.zeros_like(expected)), expected, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("architecture", GGUF_ARCHITECTURES)
def test_adapter_adds_what_peft_merges(architecture: str, tmp_path: Path) -> None:
    tuned = make_tuned(tmp_path, architecture, **CONFIGURATIONS["plain"])
    assert_adds_what_peft_adds(tuned, tmp_path)


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_every_scaling_comes_out(name: str, tmp_path: Path) -> None:
    assert_adds_what_peft_adds(make_tuned(tmp_path, "llama", **CONFIGURATIONS[name]), tmp_path)


def test_embeddings_and_output_layer_of_an_untied_model_are_held(tmp_path: Path) -> None:
    tuned = make_tuned(tmp_path, "llama", target_modules=["embed_tokens", "lm_head", "q_proj"])
    with pytest.raises(UnsupportedAdapterError, match="embeddings or the output layer"):
        check_adapter(tuned.folder, member="chat.tuned")  # the other runtime, which switches rows
    assert_adds_what_peft_adds(tuned, tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_values_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    tuned = make_tuned(tmp_path, "llama")
    edit_weights(tuned.folder, lambda weights: weights.update({k: v.to(dtype) for k, v in weights.items()}))
    assert_adds_what_peft_adds(tuned, tmp_path)


def test_values_of_a_plain_adapter_keep_their_bits(tmp_path: Path) -> None:
    tuned = make_tuned(tmp_path, "qwen2")
    adapter = read_gguf(tuned.write(), member="chat.tuned")
    for half in "ab":
        saved = load_file(tuned.folder / "adapter_model.safetensors")
        theirs = saved[f"base_model.model.model.layers.1.mlp.up_proj.lora_{half.upper()}.weight"]
        assert (values(adapter, f"blk.1.ffn_up.weight.lora_{half}") == theirs.numpy()).all()
    assert adapter.metadata == {
        "general.architecture": "qwen2",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
    }


def test_layers_of_the_text_part_of_a_larger_model_are_found(tmp_path: Path) -> None:
    tuned = make_tuned(tmp_path, "gemma3")
    plain = changes(read_gguf(tuned.write(), member="chat.tuned"))

    def rename(weights: dict[str, torch.Tensor]) -> None:
        for key in list(weights):
            weights[key.replace("model.model.layers", "model.model.language_model.layers")] = weights.pop(key)

    edit_weights(tuned.folder, rename)
    renamed = changes(read_gguf(tuned.write(), member="chat.tuned"))
    assert renamed.keys() == plain.keys()
    assert all((renamed[name] == plain[name]).all() for name in plain)


def test_heads_may_be_counted_for_each_layer(tmp_path: Path) -> None:
    tuned = make_tuned(tmp_path, "llama")
    counts = {"llama.attention.head_count": np.array([4, 4]), "llama.attention.head_count_kv": np.array([2, 2])}
    plain = tuned.write().read_bytes()
    assert (
        replace(tuned, file=replace(tuned.file, metadata={**tuned.file.metadata, **counts})).write().read_bytes()
        == plain
    )
    wrong = replace(tuned.file, metadata={**tuned.file.metadata, "llama.attention.head_count": 5})
    with pytest.raises(CorruptWeightsError, match=r"blk\.0\.attn_q\.weight has 32 rows, .* of 5 heads"):
        replace(tuned, file=wrong).write()


# What is refused


def refused(tuned: Tuned) -> str:
    with pytest.raises(UnsupportedAdapterError) as caught:
        tuned.write()
    assert (caught.value.member, caught.value.source) == ("chat.tuned", str(tuned.folder))
    assert not tuned.folder.with_name("adapter.gguf").exists()
    with pytest.raises(UnsupportedAdapterError) as planned:
        check_peft_adapter(tuned.folder, model=tuned.file, member="chat.tuned")
    assert str(planned.value) == str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "phrase"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "replaces whole modules"),
        ({"target_modules": ["q_proj"], "bias": "all"}, "biases"),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [1]}, "embeddings of single tokens"),
        ({"target_modules": [], "target_parameters": ["mlp.up_proj.weight"]}, "parameters outside of layers"),
        ({"init_lora_weights": "pissa"}, "taken out of the model's own weights"),
        ({"init_lora_weights": "olora"}, "taken out of the model's own weights"),
        ({"layer_replication": [(0, 2), (1, 2)]}, "repeats layers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_more_than_lora_is_refused_by_both_runtimes(config: dict[str, Any], phrase: str, tmp_path: Path) -> None:
    tuned = make_tuned(tmp_path, "llama", **config)
    assert phrase in refused(tuned)
    with pytest.raises(UnsupportedAdapterError, match=phrase):
        check_adapter(tuned.folder, member="chat.tuned")


@pytest.mark.parametrize(
    ("architecture", "config", "phrase"),
    [
        ("qwen2", {"lora_bias": True, "target_modules": ["q_proj"]}, "its B has a bias"),
        ("llama", {"alora_invocation_tokens": [5]}, "it waits for invocation tokens"),
        ("gemma3", {"target_modules": ["embed_tokens"]}, "model.embed_tokens is one matrix for embeddings and output"),
        ("gemma3", {"target_modules": ["lm_head"]}, "lm_head is one matrix for embeddings and output"),
    ],
)
def test_what_llama_cpp_has_no_place_for_is_refused(
    architecture: str, config: dict[str, Any], phrase: str, tmp_path: Path
) -> None:
    assert phrase in refused(make_tuned(tmp_path, architecture, **config))


@pytest.mark.parametrize(
    ("key", "phrase"),
    [
        ("model.layers.0.block_sparse_moe.experts.3.w1.lora_A.weight", r"experts\.3\.w1 has no place in model\.gguf"),
        ("model.layers.7.self_attn.q_proj.lora_A.weight", r"layers\.7\.self_attn\.q_proj has no place in model\.gguf"),
        ("model.vision_tower.layers.0.self_attn.q_proj.lora_A.weight", "has no place"),
        (
            "model.layers.0.input_layernorm.lora_A.weight",
            r"is not a layer that takes LoRA \(blk\.0\.attn_norm\.weight\)",
        ),
        ("model.layers.0.self_attn.q_proj.lora_B.bias", r"q_proj\.lora_B\.bias is neither A nor B of a LoRA\."),
        ("model.layers.0.self_attn.q_proj.lora_magnitude_vector", "is neither A nor B of a LoRA"),
        ("lm_head.base_layer.weight", r"lm_head\.base_layer\.weight is .*save_embedding_layers=False"),
    ],
)
def test_weights_without_a_place_are_named(key: str, phrase: str, tmp_path: Path) -> None:
    tuned = make_tuned(tmp_path, "llama")

    def add(weights: dict[str, torch.Tensor]) -> None:
        weights[f"base_model.model.{key}"] = torch.zeros(4, 32)
        if key.endswith("lora_A.weight"):
            weights[f"base_model.model.{key.replace('lora_A', 'lora_B')}"] = torch.zeros(32, 4)

    edit_weights(tuned.folder, add)
    with pytest.raises(UnsupportedAdapterError, match=phrase):
        tuned.write()


def test_many_reasons_are_counted(tmp_path: Path) -> None:
    tuned = make_tuned(tmp_path, "llama")
    without = {name: tensor for name, tensor in tuned.file.tensors.items() if "ffn" not in name}
    message = refused(replace(tuned, file=replace(tuned.file, tensors=without)))
    assert message.count("has no place") == 3
    assert "; and 3 more. Leave runtime" in message


def test_an_adapter_of_a_shallower_model_is_refused(tmp_path: Path) -> None:
    tuned = make_tuned(tmp_path, "llama", target_modules=["q_proj", "v_proj"])

    def leave_out(weights: dict[str, torch.Tensor]) -> None:
        for key in [key for key in weights if ".layers.1." in key]:
            del weights[key]

    edit_weights(tuned.folder, leave_out)
    with pytest.raises(CorruptWeightsError, match=r"has nothing \(blk\.1\.attn_q\.weight, blk\.1\.attn_v\.weight\)"):
        tuned.write()


def test_what_llama_cpp_cannot_hold_runs_in_torch_unless_llama_cpp_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_plans, "why_unavailable", lambda: None)
    monkeypatch.setattr(network_plans, "computes_on_gpu", lambda: False)
    folder = make_tuned(tmp_path, "llama", use_dora=True, target_modules=["q_proj"]).folder
    model = str(tmp_path / "model.gguf")

    def planned(runtime: Literal["auto", "llama.cpp"], **tuned: Any) -> TrioPlan:
        pairs = {"chat": TunedPair(MemberConfig(source=model, adapter=str(folder), **tuned), model)}
        return plan_trio(model, pairs, EngineConfig(device="cpu", runtime=runtime))

    plan = planned("auto")
    networks = [plan.networks[member.network] for member in plan.members.values()]
    assert [network.runtime for network in networks] == ["llama.cpp", "torch", "llama.cpp"]
    assert networks[1].why_merged == "it uses DoRA"
    assert "in torch, since llama.cpp cannot hold the adapter: it uses DoRA" in plan.report().members[1].notes
    with pytest.raises(UnsupportedAdapterError, match="cannot be held by llama.cpp: it uses DoRA"):
        planned("llama.cpp")
    with pytest.raises(InvalidOptionError, match="merge=True is for torch"):
        planned("llama.cpp", merge=True)
    plain = make_tuned(tmp_path, "llama").folder
    folder = plain
    assert {network.runtime for network in planned("auto").networks.values()} == {"llama.cpp"}
    assert [network.runtime for network in planned("auto", merge=True).networks.values()] == ["llama.cpp", "torch"]


def test_fused_rows_of_a_llama_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = make_tuned(tmp_path, "phi3", target_modules=["qkv_proj"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.PHI3, 2)  # newer versions of gguf have such names for llama too
    monkeypatch.setattr(gguf, "get_tensor_name_map", lambda architecture, num_layers: names)
    llama = {**tuned.file.metadata, "general.architecture": "llama"}
    message = refused(replace(tuned, file=replace(tuned.file, metadata=llama)))
    assert "layers.0.self_attn.qkv_proj has the rows of q, k and v together" in message


def test_unknown_architecture_is_refused(tmp_path: Path) -> None:
    tuned = make_tuned(tmp_path, "llama")
    other = replace(tuned.file, metadata={**tuned.file.metadata, "general.architecture": "deepseek2"})
    assert "the model's architecture is deepseek2, and adapters are known for arcee, " in refused(
        replace(tuned, file=other)
    )


def test_architecture_that_the_library_does_not_know_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = make_tuned(tmp_path, "llama")
    monkeypatch.setattr(gguf, "MODEL_ARCH_NAMES", {})
    assert "the installed gguf does not know llama. Install a newer one." in refused(tuned)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_missing_library_is_named(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = make_tuned(tmp_path, "llama")
    path = tuned.write()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UnsupportedAdapterError, match=r"pip install 'eft-engine\[llama-cpp\]'"):
        _ = tuned.write() if kind == "folder" else check_gguf_adapter(path, model=tuned.file, member="chat.tuned")


# Damage


def _only_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _truncated(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _other_method(folder: Path) -> None:
    get_peft_model(make_model("llama"), IA3Config(target_modules=["k_proj"], feedforward_modules=[])).save_pretrained(
        folder
    )


def _weight(key: str, index: int, value: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        edit_weights(
            folder, lambda weights: weights[f"base_model.model.model.{key}"].view(-1).__setitem__(index, value)
        )

    return damage


def _without_half(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.pop("base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"))


def _twice(folder: Path) -> None:
    def add(weights: dict[str, torch.Tensor]) -> None:
        for half in "AB":
            key = f"layers.0.mlp.up_proj.lora_{half}.weight"
            weights[f"base_model.model.model.language_model.{key}"] = weights[f"base_model.model.model.{key}"].clone()

    edit_weights(folder, add)


def _config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, **changes)


@pytest.mark.parametrize(
    ("damage", "kind", "phrase"),
    [
        (_only_pickle, UnsafeWeightsError, "a pickle, which is never opened"),
        (_truncated, CorruptWeightsError, "cannot be read"),
        (_other_method, UnsupportedAdapterError, "it is of type IA3, not LORA"),
        (
            _weight("layers.1.mlp.up_proj.lora_A.weight", 3, float("nan")),
            CorruptWeightsError,
            r"lora_A\.weight has values",
        ),
        (
            _weight("layers.1.mlp.up_proj.lora_B.weight", 3, float("inf")),
            CorruptWeightsError,
            r"lora_B\.weight has values",
        ),
        (_without_half, CorruptWeightsError, r"up_proj\.lora_A\.weight is there without its other half"),
        (_twice, CorruptWeightsError, r"are both blk\.0\.ffn_up\.weight"),
        (lambda folder: edit_weights(folder, dict.clear), CorruptWeightsError, "no weights"),
        (_config(r=7), CorruptWeightsError, r"lora_A\.weight has the shape \[4, \d+\], and \[7, \d+\] is expected"),
        (_config(r=0), CorruptWeightsError, "a rank is 0"),
        (_config(r=None), CorruptWeightsError, "a rank is None"),
        (_config(lora_alpha=float("nan")), CorruptWeightsError, "an alpha is nan"),
        (_config(rank_pattern={"q_proj": "8"}), CorruptWeightsError, "a rank is '8'"),
        (_config(alpha_pattern=[1]), CorruptWeightsError, "alpha_pattern must map expressions for names"),
        (_config(rank_pattern={"q_(proj": 8}), CorruptWeightsError, "rank_pattern must map .*unterminated subpattern"),
    ],
)
def test_damaged_adapter_is_named(
    damage: Callable[[Path], None], kind: type[Exception], phrase: str, tmp_path: Path
) -> None:
    tuned = make_tuned(tmp_path, "llama")
    damage(tuned.folder)
    with pytest.raises(kind, match=phrase):
        tuned.write()
    assert not tuned.folder.with_name("adapter.gguf").exists()
    if "values" in phrase:
        check_peft_adapter(tuned.folder, model=tuned.file, member="chat.tuned")  # does not read them
    else:
        with pytest.raises(kind, match=phrase):
            check_peft_adapter(tuned.folder, model=tuned.file, member="chat.tuned")


def test_adapter_of_another_model_is_named(tmp_path: Path) -> None:
    tuned = make_tuned(tmp_path, "llama")
    save_adapter(make_model("llama", hidden_size=64), tuned.folder, seed=1)
    with pytest.raises(CorruptWeightsError, match=r"lora_A\.weight has the shape \[4, 64\], and \[4, 32\] is expected"):
        tuned.write()


# GGUF adapters as they are

Q = "blk.0.attn_q.weight"
EMBEDDINGS = "token_embd.weight"
METADATA = {
    "general.type": "adapter",
    "general.architecture": "llama",
    "adapter.type": "lora",
    "adapter.lora.alpha": 8.0,
}


def stored(name: str, *shape: int, kind: str = "F32", value: float | None = None) -> StoredTensor:
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32) * 0.3
    if value is not None:
        array.flat[1] = value
    own = gguf.GGMLQuantizationType[kind]
    data = array.astype(np.float64) if kind == "F64" else gguf.quants.quantize(array, own)
    return StoredTensor(name, shape, int(own), data.tobytes())


def pair(
    name: str,
    down: tuple[int, ...],
    up: tuple[int, ...],
    *,
    a: Mapping[str, Any] = {},
    b: Mapping[str, Any] = {},
    keys: Mapping[str, Any] = {},
) -> GgufContents:
    """An adapter on one tensor. `a` and `b` say how its halves are stored, `keys` changes the metadata."""
    return GgufContents(METADATA, [stored(f"{name}.lora_a", *down, **a), stored(f"{name}.lora_b", *up, **b)]).with_keys(
        keys
    )


GOOD = pair(Q, (4, 32), (32, 4))


def model_file(tmp_path: Path, architecture: str = "llama") -> GGUFFile:
    return read_gguf(
        write_gguf(make_model(architecture), make_tokenizer(), tmp_path / f"{architecture}.gguf"),
        member="chat.reference",
    )


@pytest.mark.parametrize(
    "adapter",
    [
        GOOD,
        GOOD.with_keys({"adapter.lora.alpha": None}),
        pair(Q, (4, 32), (32, 4), a={"kind": "Q8_0"}),
        pair(Q, (4, 32), (32, 4), b={"kind": "F16"}),
        pair(Q, (4, 32), (32, 4), b={"kind": "BF16"}),
        pair(Q, (32,), (32, 1)),
        pair("output.weight", (4, 32), (VOCAB_SIZE, 4)),
        pair(EMBEDDINGS, (VOCAB_SIZE, 4), (32, 4)),
    ],
    ids=["f32", "no alpha", "q8_0", "f16", "bf16", "rank 1", "output layer", "embeddings"],
)
def test_good_gguf_adapter_passes(adapter: GgufContents, tmp_path: Path) -> None:
    path = adapter.write(tmp_path / "adapter.gguf")
    found = check_gguf_adapter(path, model=model_file(tmp_path), member="chat.tuned")
    assert list(found.tensors) == [tensor.name for tensor in adapter.tensors]


BAD: list[tuple[GgufContents, type[Exception], str]] = [
    (
        GOOD.with_keys({"general.type": "model"}),
        UnsupportedAdapterError,
        "of type model .architecture llama., not adapter",
    ),
    (GOOD.with_keys({"general.type": None}), UnsupportedAdapterError, "of type model"),
    (GOOD.with_keys({"general.type": 3}), UnsupportedAdapterError, "of type 3"),
    (
        GgufContents({"general.architecture": "controlvector"}, [stored("direction.1", 32)]),
        UnsupportedAdapterError,
        "architecture controlvector",
    ),
    (
        GOOD.with_keys({"adapter.type": "control_vector"}),
        UnsupportedAdapterError,
        "of type control_vector .adapter.type.",
    ),
    (GOOD.with_keys({"adapter.type": ["lora", "lora"]}), UnsupportedAdapterError, "not lora"),
    (
        GOOD.with_keys({"general.architecture": "qwen2"}),
        UnsupportedAdapterError,
        "architecture qwen2, and this one is of llama",
    ),
    (GOOD.with_keys({"adapter.alora.invocation_tokens": [1]}), UnsupportedAdapterError, "invocation tokens"),
    (GOOD.with_keys({"adapter.lora.alpha": 8}), CorruptWeightsError, "alpha is 8 .UINT32."),
    (GOOD.with_keys({"adapter.lora.alpha": np.float64(8)}), CorruptWeightsError, "alpha is 8.0 .FLOAT64."),
    (GOOD.with_keys({"adapter.lora.alpha": "8"}), CorruptWeightsError, "alpha is 8 .STRING."),
    (GOOD.with_keys({"adapter.lora.alpha": float("nan")}), CorruptWeightsError, "alpha is nan"),
    (GgufContents(METADATA), CorruptWeightsError, "no tensors"),
    (GOOD.without(f"{Q}.lora_b"), CorruptWeightsError, "lora_a is there without its other half"),
    (pair("blk.0.attn_norm.weight", (4, 32), (1, 4)), UnsupportedAdapterError, "blk.0.attn_norm.weight is not a layer"),
    (
        pair("blk.7.attn_q.weight", (4, 32), (32, 4)),
        UnsupportedAdapterError,
        "blk.7.attn_q.weight has no place in llama.gguf",
    ),
    (
        replace(GOOD, tensors=[*GOOD.tensors, stored("blk.0.attn_norm.weight", 32)]),
        UnsupportedAdapterError,
        "blk.0.attn_norm.weight is neither lora_a nor lora_b",
    ),
    (pair(Q, (4, 64), (32, 4)), CorruptWeightsError, r"lora_a has the shape \[4, 64\], and \[4, 32\] is expected"),
    (pair(Q, (4, 32), (64, 4)), CorruptWeightsError, r"lora_b has the shape \[64, 4\], and \[32, 4\] is expected"),
    (pair(Q, (4, 32), (32, 8)), CorruptWeightsError, r"lora_a has the shape \[4, 32\], and \[8, 32\] is expected"),
    (pair(Q, (2, 4, 32), (32, 4)), CorruptWeightsError, r"lora_a has the shape \[2, 4, 32\]"),
    (pair(Q, (4, 32), (3, 32, 4)), CorruptWeightsError, r"lora_b has the shape \[3, 32, 4\]"),
    (pair(Q, (0, 32), (32, 0)), CorruptWeightsError, r"and \[1, 32\] is expected"),
    (
        pair(EMBEDDINGS, (4, 32), (VOCAB_SIZE, 4)),
        CorruptWeightsError,
        r"lora_a has the shape \[4, 32\], and \[260, 4\]",
    ),
    (
        pair(EMBEDDINGS, (VOCAB_SIZE, 4), (32, 8)),
        CorruptWeightsError,
        r"lora_a has the shape \[260, 4\], and \[260, 8\]",
    ),
    (
        pair(Q, (4, 32), (32, 4), a={"kind": "F64"}),
        UnsupportedAdapterError,
        "lora_a is of type F64",
    ),
    (
        pair(Q, (4, 32), (32, 4), b={"value": float("nan")}),
        CorruptWeightsError,
        "lora_b has values that are not finite",
    ),
    (
        pair(Q, (4, 32), (32, 4), a={"kind": "BF16", "value": float("inf")}),
        CorruptWeightsError,
        "lora_a has values that are not finite",
    ),
]
"""llama.cpp (llama-cpp-python 0.3.36) refuses 12 of these, takes 7 and computes something, and ends the process at 9."""


@pytest.mark.parametrize(("adapter", "kind", "phrase"), BAD, ids=[phrase for _, _, phrase in BAD])
def test_bad_gguf_adapter_is_named(adapter: GgufContents, kind: type[Exception], phrase: str, tmp_path: Path) -> None:
    path = adapter.write(tmp_path / "adapter.gguf")
    with pytest.raises(kind, match=phrase) as caught:
        check_gguf_adapter(path, model=model_file(tmp_path), member="chat.tuned")
    assert (caught.value.member, caught.value.source) == ("chat.tuned", str(path))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "down", "up"), [(EMBEDDINGS, (VOCAB_SIZE, 4), (32, 4)), ("output.weight", (4, 32), (260, 4))]
)
def test_gguf_adapter_on_a_tied_matrix_is_refused(
    name: str, down: tuple[int, ...], up: tuple[int, ...], tmp_path: Path
) -> None:
    path = pair(name, down, up, keys={"general.architecture": "gemma3"}).write(tmp_path / "adapter.gguf")
    with pytest.raises(UnsupportedAdapterError, match="one matrix for embeddings and output"):
        check_gguf_adapter(path, model=model_file(tmp_path, "gemma3"), member="chat.tuned")


def test_missing_and_cut_gguf_adapters_are_named(tmp_path: Path) -> None:
    path, model = tmp_path / "adapter.gguf", model_file(tmp_path)
    with pytest.raises(ModelNotFoundError):
        check_gguf_adapter(path, model=model, member="chat.tuned")
    path.write_bytes(GOOD.write(path).read_bytes()[:-200])
    with pytest.raises(CorruptWeightsError, match="cut off"):
        check_gguf_adapter(path, model=model, member="chat.tuned")


# In llama.cpp itself


@contextmanager
def llama_cpp_context(model: Path, adapter: Path | None) -> Iterator[Callable[[list[int]], torch.Tensor]]:
    """A model in llama.cpp, with or without an adapter: gives the logits behind each token of a prompt."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    with ExitStack() as stack:
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        network = llama_cpp.llama_model_load_from_file(str(model).encode(), params)
        stack.callback(llama_cpp.llama_model_free, network)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_threads, options.n_threads_batch = 64, 1, 1
        options.type_k = options.type_v = llama_cpp.GGML_TYPE_F32
        options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        context = llama_cpp.llama_init_from_model(network, options)
        stack.callback(llama_cpp.llama_free, context)
        if adapter is not None:
            lora = llama_cpp.llama_adapter_lora_init(network, str(adapter).encode())
            assert lora
            handles, scales = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(lora), (ctypes.c_float * 1)(1.0)
            assert llama_cpp.llama_set_adapters_lora(context, handles, 1, scales) == 0

        def logits(token_ids: list[int]) -> torch.Tensor:
            batch = llama_cpp.llama_batch_init(len(token_ids), 0, 1)
            batch.n_tokens = len(token_ids)
            for index, token_id in enumerate(token_ids):
                batch.token[index], batch.pos[index], batch.logits[index] = token_id, index, 1
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            assert llama_cpp.llama_decode(context, batch) == 0
            found = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), shape=(len(token_ids), VOCAB_SIZE))
            llama_cpp.llama_batch_free(batch)
            return torch.from_numpy(found.copy())

        yield logits


def assert_llama_cpp_agrees(tuned: Tuned) -> None:
    expected = tuned.merged()(torch.tensor([PROMPT])).logits[0]
    plain = tuned.model(torch.tensor([PROMPT])).logits[0]
    with llama_cpp_context(tuned.file.paths[0], None) as logits:
        torch.testing.assert_close(logits(PROMPT), plain, atol=1e-3, rtol=1e-3)
    with llama_cpp_context(tuned.file.paths[0], tuned.write()) as logits:
        torch.testing.assert_close(logits(PROMPT), expected, atol=1e-3, rtol=1e-3)
    assert (expected - plain).abs().max() > 1


@pytest.mark.parametrize("architecture", GGUF_ARCHITECTURES)
@torch.inference_mode()
def test_llama_cpp_with_the_adapter_is_transformers_with_it(architecture: str, tmp_path: Path) -> None:
    assert_llama_cpp_agrees(make_tuned(tmp_path, architecture, **CONFIGURATIONS["patterns, rslora"]))


@torch.inference_mode()
def test_llama_cpp_holds_adapters_on_embeddings_and_output(tmp_path: Path) -> None:
    assert_llama_cpp_agrees(make_tuned(tmp_path, "llama", target_modules=["embed_tokens", "lm_head", "q_proj"]))
