"""Tiny random models with one kind of state each, beside attention or without any."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    KimiLinearConfig,
    KimiLinearForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    ZambaConfig,
    ZambaForCausalLM,
)

from tests.toy import with_long_memory

VOCAB_SIZE = 64
SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LAYERS = ["linear_attention", "full_attention", "linear_attention"]
SMALL_MAMBA = {"mamba_d_state": 8, "mamba_dt_rank": 4}


def _falcon_h1() -> PreTrainedModel:
    """Mamba-2 beside attention in every layer."""
    mamba = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
    return FalconH1ForCausalLM(FalconH1Config(**SHAPE, **mamba, mamba_chunk_size=8, head_dim=8))


def _jamba() -> PreTrainedModel:
    """Mamba, attention and experts."""
    layers = {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1}
    return JambaForCausalLM(JambaConfig(**SHAPE, **SMALL_MAMBA, **layers))


def _kimi_linear() -> PreTrainedModel:
    """Kimi delta attention beside latent attention, and experts."""
    latent = {
        "num_key_value_heads": 4,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
    }
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    heads = {"linear_head_dim": 8, "linear_num_heads": 4, "layer_types": LAYERS}
    return KimiLinearForCausalLM(KimiLinearConfig(**SHAPE | latent | experts | heads))


def _lfm2() -> PreTrainedModel:
    """Short convolutions beside attention."""
    return Lfm2ForCausalLM(Lfm2Config(**SHAPE, layer_types=["conv", "full_attention", "conv"]))


def _mamba() -> PreTrainedModel:
    """Mamba alone."""
    shape = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3}
    return MambaForCausalLM(MambaConfig(**shape, state_size=8))


def _mamba2() -> PreTrainedModel:
    """Mamba-2 alone, whose time step has limits that bind."""
    shape = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3}
    heads = {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 8}
    return Mamba2ForCausalLM(Mamba2Config(**shape, **heads, time_step_limit=(0.3, 0.9)))


def _qwen3_next() -> PreTrainedModel:
    """A gated delta net beside attention, and experts."""
    delta_net = {
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    experts = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    }
    return Qwen3NextForCausalLM(Qwen3NextConfig(**SHAPE, **delta_net, **experts, layer_types=LAYERS, head_dim=8))


def _zamba() -> PreTrainedModel:
    """Mamba in several heads, and one attention layer that is used again and again."""
    shape = SHAPE | {"num_hidden_layers": 6}
    layers = {"attention_hidden_size": 64, "n_mamba_heads": 2, "attn_layer_period": 3, "attn_layer_offset": 1}
    return ZambaForCausalLM(ZambaConfig(**shape, **SMALL_MAMBA, **layers))


HYBRIDS: Mapping[str, Callable[[], PreTrainedModel]] = {
    "falcon_h1": _falcon_h1,
    "jamba": _jamba,
    "kimi_linear": _kimi_linear,
    "lfm2": _lfm2,
    "mamba": _mamba,
    "mamba2": _mamba2,
    "qwen3_next": _qwen3_next,
    "zamba": _zamba,
}


def make_hybrid(name: str) -> PreTrainedModel:
    """The same weights every time."""
    torch.manual_seed(0)
    return with_long_memory(HYBRIDS[name]().eval())
