"""Adapter files of every kind that PEFT writes, on tiny models, and what is to become of each.

shared   on the network of members without it, switched per row
merged   in a network of its own, as a model with the layers of its class
kept     in a network of its own, as layers of PEFT: it has no way to merge them
an error with a phrase of its message: while planning, before any weight is read
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from eft_engine.errors import CorruptWeightsError, LoadError, UnsafeWeightsError, UnsupportedAdapterError
from tests.toy import END_ID, VOCAB_SIZE, make_model, shape_of

WEIGHTS = "adapter_model.safetensors"


def _opt() -> PreTrainedModel:
    """Its two linear layers of a feed-forward block see all tokens in one list."""
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=256,
            init_std=0.3,
            bos_token_id=END_ID,
            eos_token_id=END_ID,
            pad_token_id=None,
        )
    )


def _moe() -> PreTrainedModel:
    """Experts that are one parameter, and a shared one that sees all tokens in one list."""
    return Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            **shape_of(32),
            moe_intermediate_size=16,
            shared_expert_intermediate_size=32,
            num_experts=4,
            num_experts_per_tok=2,
        )
    )


def _mixtral() -> PreTrainedModel:
    """Experts that are one parameter here, and were layers in transformers 4."""
    return MixtralForCausalLM(MixtralConfig(**shape_of(32), num_local_experts=3, num_experts_per_tok=2))


MODELS: Mapping[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: make_model("llama"),
    "qwen2": lambda: make_model("qwen2"),
    "gpt2": lambda: make_model("gpt2"),
    "opt": _opt,
    "moe": _moe,
    "mixtral": _mixtral,
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**shape_of(32), tie_word_embeddings=True)),
}


def model_named(name: str) -> PreTrainedModel:
    """One of `MODELS`, the same every time."""
    torch.manual_seed(0)
    return MODELS[name]().eval()


Build = Callable[[PreTrainedModel, Path], None]


@dataclass(frozen=True)
class AdapterFile:
    """`build` writes the file for a model called `model`; `words` are of the reason or the message."""

    name: str
    build: Build
    expected: str | type[LoadError]
    words: str = ""
    model: str = "llama"


def save_trained(
    model: PreTrainedModel, config: PeftConfig, folder: Path, *, scale: float = 0.3, **saving: Any
) -> None:
    """Put an adapter onto a copy of `model`, move its weights as training would, and save it."""
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = get_peft_model(copy.deepcopy(model), config)
        with torch.no_grad():
            for parameter in tuned.parameters():
                if parameter.requires_grad:
                    parameter.add_(scale * torch.randn_like(parameter))
        tuned.save_pretrained(folder, **saving)


def lora(**settings: Any) -> Build:
    """A LoRA of rank 4 on q and v, but for what is given."""
    return lambda model, folder: save_trained(
        model, LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], **settings}), folder
    )


def kind(name: str, **settings: Any) -> Build:
    """An adapter of another type, on q and v where it has a choice."""

    def build(model: PreTrainedModel, folder: Path) -> None:
        config_type = getattr(peft, name)
        if "target_modules" in config_type.__dataclass_fields__:
            settings.setdefault("target_modules", ["q_proj", "v_proj"])
        save_trained(model, config_type(task_type="CAUSAL_LM", **settings), folder)

    return build


def changed(
    build: Build,
    *,
    keys: Callable[[str], str | None] = lambda key: key,
    values: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    added: Mapping[str, Tensor] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Build:
    """A file whose keys are renamed (None: left out), whose values are changed, and whose configuration says something else."""

    def build_and_change(model: PreTrainedModel, folder: Path) -> None:
        build(model, folder)
        tensors = load_file(folder / WEIGHTS)
        renamed = {keys(key): values(tensor).contiguous() for key, tensor in tensors.items()}
        kept = {key: tensor for key, tensor in renamed.items() if key is not None}
        save_file({**kept, **(added or {})}, folder / WEIGHTS)
        _change_config(folder, config or {})

    return build_and_change


def _change_config(folder: Path, settings: Mapping[str, Any]) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | settings), encoding="utf-8")


def of_another_model(build: Build, **shape: Any) -> Build:
    """An adapter that was trained on a Llama of another shape."""
    return lambda model, folder: build(make_model("llama", **shape), folder)


def on_more_tokens(model: PreTrainedModel, folder: Path) -> None:
    """As trainers do who add tokens: embeddings and head are in the file, with the new rows."""
    larger = copy.deepcopy(model)
    larger.resize_token_embeddings(VOCAB_SIZE + 4, mean_resizing=False)
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    save_trained(larger, config, folder)


def rows_without_embeddings(model: PreTrainedModel, folder: Path) -> None:
    """LoRA on a head that has more rows, which are nowhere."""
    larger = copy.deepcopy(model)
    larger.resize_token_embeddings(VOCAB_SIZE + 4, mean_resizing=False)
    save_trained(larger, LoraConfig(r=4, target_modules=["lm_head"]), folder, save_embedding_layers=False)


def saved_embeddings(model: PreTrainedModel, folder: Path) -> None:
    """Plain LoRA with the embeddings, which somebody has changed too."""
    larger = copy.deepcopy(model)
    with torch.no_grad():
        larger.get_input_embeddings().weight.mul_(1.5)
    save_trained(larger, LoraConfig(r=4, target_modules=["q_proj"]), folder, save_embedding_layers=True)


def experts_of_before(model: PreTrainedModel, folder: Path) -> None:
    """As transformers 4 named experts, each with layers of its own."""
    save_trained(model, LoraConfig(r=4, target_modules=["q_proj"]), folder)
    tensors = load_file(folder / WEIGHTS)
    hidden, inner = model.config.hidden_size, model.config.intermediate_size
    for layer in range(model.config.num_hidden_layers):
        for expert in range(model.config.num_local_experts):
            for name, (rows, columns) in {"w1": (inner, hidden), "w2": (hidden, inner), "w3": (inner, hidden)}.items():
                module = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}"
                tensors[f"{module}.lora_A.weight"] = 0.3 * torch.randn(4, columns)
                tensors[f"{module}.lora_B.weight"] = 0.3 * torch.randn(rows, 4)
    save_file(tensors, folder / WEIGHTS)
    _change_config(folder, {"target_modules": ["q_proj", "w1", "w2", "w3"]})


def only_a_pickle(model: PreTrainedModel, folder: Path) -> None:
    """As old versions of PEFT saved it."""
    lora()(model, folder)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def under_another_name(model: PreTrainedModel, folder: Path) -> None:
    """A part of a file, as nobody reads it."""
    lora()(model, folder)
    (folder / WEIGHTS).rename(folder / "adapter_model-00001-of-00002.safetensors")


def not_finite(tensor: Tensor) -> Tensor:
    """A tensor with one NaN in it."""
    tensor = tensor.clone()
    tensor.view(-1)[0] = torch.nan
    return tensor


SHARED = (
    AdapterFile("lora", lora(), "shared"),
    AdapterFile("all linear", lora(target_modules="all-linear"), "shared"),
    AdapterFile("regular expression", lora(target_modules=r".*\.1\..*(up|o)_proj"), "shared"),
    AdapterFile("patterns", lora(rank_pattern={"v_proj": 2}, alpha_pattern={"q_proj": 3}, use_rslora=True), "shared"),
    AdapterFile("one layer, without v", lora(layers_to_transform=[1], exclude_modules=["v_proj"]), "shared"),
    AdapterFile("bias of B", lora(lora_bias=True, target_modules=["q_proj", "k_proj"]), "shared", model="qwen2"),
    AdapterFile("Conv1D", lora(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True), "shared", model="gpt2"),
    AdapterFile("layers that see a list", lora(target_modules=["fc1", "fc2", "q_proj"]), "shared", model="opt"),
    AdapterFile("shared experts", lora(target_modules=r".*shared_expert\..*_proj|.*q_proj"), "shared", model="moe"),
    AdapterFile("bfloat16", changed(lora(), values=lambda tensor: tensor.bfloat16()), "shared"),
    AdapterFile("orthogonal", lora(init_lora_weights="orthogonal"), "shared"),
    AdapterFile(
        "bare state_dict", changed(lora(), keys=lambda key: key.replace(".weight", ".default.weight")), "shared"
    ),
    AdapterFile(
        "newer settings",
        changed(lora(), config={"base_model_name_or_path": "some/other-model", "of_tomorrow": {"much": 1}}),
        "shared",
    ),
)

MERGED = (
    AdapterFile("PiSSA", lora(init_lora_weights="pissa"), "merged", "taken out of the model's own weights"),
    AdapterFile(
        "fast PiSSA", lora(init_lora_weights="pissa_niter_8"), "merged", "taken out of the model's own weights"
    ),
    AdapterFile("OLoRA", lora(init_lora_weights="olora"), "merged", "taken out of the model's own weights"),
    AdapterFile("DoRA", lora(use_dora=True), "merged", "DoRA"),
    AdapterFile("biases", lora(bias="all"), "merged", "biases", model="qwen2"),
    AdapterFile("whole modules", lora(modules_to_save=["lm_head", "norm"]), "merged", "whole modules"),
    AdapterFile("embeddings", lora(target_modules=["embed_tokens", "q_proj"]), "merged", "embeddings"),
    AdapterFile("head by expression", lora(target_modules=r"lm_head|.*q_proj"), "merged", "output layer"),
    AdapterFile("tied head", lora(target_modules=["lm_head", "q_proj"]), "merged", "output layer", model="tied"),
    AdapterFile("tied embeddings", lora(target_modules=["embed_tokens"]), "merged", "embeddings", model="tied"),
    AdapterFile("tokens", lora(trainable_token_indices=[1, 5, 7]), "merged", "single tokens"),
    AdapterFile("tokens, tied", lora(trainable_token_indices=[1, 5, 7]), "merged", "single tokens", model="tied"),
    AdapterFile("saved embeddings", saved_embeddings, "merged", "whole weights"),
    AdapterFile("more tokens", on_more_tokens, "merged", "whole modules"),
    AdapterFile(
        "experts", lora(target_parameters=["mlp.experts.gate_up_proj"]), "merged", "outside of layers", model="moe"
    ),
    AdapterFile("experts of before", experts_of_before, "merged", "ParamWrapper", model="mixtral"),
    AdapterFile("IA3", kind("IA3Config", target_modules=["k_proj"], feedforward_modules=[]), "merged", "IA3"),
    AdapterFile("LoHa", kind("LoHaConfig", r=4), "merged", "LOHA"),
    AdapterFile("LoKr", kind("LoKrConfig", r=4), "merged", "LOKR"),
    AdapterFile("AdaLoRA", kind("AdaLoraConfig", total_step=10), "merged", "ADALORA"),
    AdapterFile("VeRA", kind("VeraConfig", r=8), "merged", "VERA"),
    AdapterFile("OFT", kind("OFTConfig", oft_block_size=8), "merged", "OFT"),
    AdapterFile("BOFT", kind("BOFTConfig", boft_block_size=4), "merged", "BOFT"),
    AdapterFile("HRA", kind("HRAConfig", r=4), "merged", "HRA"),
    AdapterFile("FourierFT", kind("FourierFTConfig", n_frequency=50), "merged", "FOURIERFT"),
    AdapterFile("norms", kind("LNTuningConfig", target_modules=["input_layernorm"]), "merged", "LN_TUNING"),
    AdapterFile("VB-LoRA", kind("VBLoRAConfig", vector_length=8, num_vectors=16), "merged", "VBLORA"),
    AdapterFile("RandLora", kind("RandLoraConfig", r=4), "merged", "RANDLORA"),
    AdapterFile("SHiRA", kind("ShiraConfig", r=4), "merged", "SHIRA"),
    AdapterFile(
        "token rows",
        kind("TrainableTokensConfig", token_indices=[1, 5], target_modules=["embed_tokens"]),
        "merged",
        "TRAINABLE",
    ),
    AdapterFile("biases of layers without", kind("BeftConfig"), "kept", "BEFT"),
    AdapterFile("repeated layers", lora(layer_replication=[(0, 2), (1, 2)]), "merged", "repeats layers"),
)

REFUSED = (
    AdapterFile(
        "prompt tuning", kind("PromptTuningConfig", num_virtual_tokens=3), UnsupportedAdapterError, "PROMPT_TUNING"
    ),
    AdapterFile(
        "prefix tuning", kind("PrefixTuningConfig", num_virtual_tokens=3), UnsupportedAdapterError, "PREFIX_TUNING"
    ),
    AdapterFile(
        "aLoRA", lora(alora_invocation_tokens=[5], task_type="CAUSAL_LM"), UnsupportedAdapterError, "invocation tokens"
    ),
    AdapterFile("Lily", kind("LilyConfig", r=4), UnsupportedAdapterError, "LILY: it weighs its parts by the mean"),
    AdapterFile("CorDA", changed(lora(), config={"init_lora_weights": "corda"}), UnsupportedAdapterError, "conversion"),
    AdapterFile(
        "LoftQ",
        changed(lora(), config={"init_lora_weights": "loftq"}),
        UnsupportedAdapterError,
        "missing: bitsandbytes",
    ),
    AdapterFile(
        "of tomorrow", changed(lora(), config={"peft_type": "MARVEL"}), UnsupportedAdapterError, "no type MARVEL"
    ),
    AdapterFile("rows that are nowhere", rows_without_embeddings, UnsupportedAdapterError, "vocabulary of 264 tokens"),
    AdapterFile(
        "unknown keys",
        changed(lora(), added={"base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight": torch.ones(4, 32)}),
        CorruptWeightsError,
        r"1 keys for which there is no layer \(model.layers.0.self_attn.k_proj",
    ),
    AdapterFile(
        "missing layers",
        changed(lora(), keys=lambda key: None if ".layers.1." in key else key),
        CorruptWeightsError,
        r"the file has nothing \(model.layers.1.self_attn.q_proj.lora_A.weight",
    ),
    AdapterFile(
        "another prefix",
        changed(lora(), keys=lambda key: key.replace("model.layers", "decoder.layers")),
        CorruptWeightsError,
        "for which there is no layer .*of which the file has nothing",
    ),
    AdapterFile("deeper", of_another_model(lora(), num_layers=3), CorruptWeightsError, r"no layer \(model.layers.2"),
    AdapterFile(
        "shallower", of_another_model(lora(), num_layers=1), CorruptWeightsError, r"has nothing \(model.layers.1"
    ),
    AdapterFile(
        "wider",
        of_another_model(lora(), hidden_size=64),
        CorruptWeightsError,
        r"shape \[4, 64\] in the file and \[4, 32\]",
    ),
    AdapterFile(
        "targets of others",
        changed(lora(), config={"target_modules": ["query"]}),
        CorruptWeightsError,
        "query.* not found",
    ),
    AdapterFile(
        "another rank",
        changed(lora(), config={"r": 7}),
        CorruptWeightsError,
        r"shape \[4, 32\] in the file and \[7, 32\]",
    ),
    AdapterFile(
        "a head of classes",
        changed(lora(), added={"base_model.model.score.weight": torch.ones(2, 32)}),
        CorruptWeightsError,
        "score.weight",
    ),
    AdapterFile("nothing inside", changed(lora(), keys=lambda key: None), CorruptWeightsError, "no weights at all"),
    AdapterFile("pickled", only_a_pickle, UnsafeWeightsError, "a pickle"),
    AdapterFile(
        "in parts",
        under_another_name,
        CorruptWeightsError,
        "has no adapter_model.safetensors; it has adapter_model-00001",
    ),
)

ADAPTER_FILES = (*SHARED, *MERGED, *REFUSED)
