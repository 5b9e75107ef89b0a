"""Further cases of families: what their checkpoints switch on and the class leaves off, or the other way round."""

from __future__ import annotations

from collections.abc import Mapping

from tests.survey.options import FULL, GEMMA_4_EXPERTS, HALF_SLIDING, MAMBA_2, Options, long_rope, share
from tests.survey.shrink import NUM_HEADS, ORIGINAL_LEN, WINDOW

WINDOWED: Options = {
    "use_sliding_window": True,
    "sliding_window": WINDOW,
    "layer_types": HALF_SLIDING,
    "num_hidden_layers": 4,
    "max_window_layers": 2,
}
LAYERED: Options = {"layer_types": HALF_SLIDING, "num_hidden_layers": 4, "sliding_window": WINDOW}
ONLY_WINDOW: Options = {"sliding_window": WINDOW}


def rope(rope_type: str, **parameters: object) -> Options:
    """Scaled rotary embeddings of a kind."""
    scaled = {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 8.0, **parameters}
    return {"rope_parameters": scaled}


YARN = rope("yarn", original_max_position_embeddings=ORIGINAL_LEN, beta_fast=32.0, beta_slow=1.0)
LLAMA_3 = rope("llama3", original_max_position_embeddings=ORIGINAL_LEN, low_freq_factor=1.0, high_freq_factor=4.0)
TEMPERED = rope(
    "yarn",
    original_max_position_embeddings=WINDOW,
    beta_fast=32.0,
    beta_slow=1.0,
    mscale=1.0,
    mscale_all_dim=1.0,
    llama_4_scaling_beta=0.5,
)
"""Queries get larger with every `WINDOW` positions, as with Ministral 3."""

VARIANTS: Mapping[str, Mapping[str, Options]] = {
    "cohere": {"normed queries": {"use_qk_norm": True}},
    "deepseek_v3": {"yarn": YARN},
    "doge": {
        "windows": {**ONLY_WINDOW, "keep_window_size": 2048},
        "few keys": {"keep_window_size": WINDOW},
        "experts": {"is_moe": True, "num_experts": 16},
    },
    "dots1": {"windows": {**LAYERED, "n_shared_experts": 1, "max_window_layers": 2}},
    "falcon": {
        "alibi": {"alibi": True, "multi_query": False, "num_kv_heads": NUM_HEADS, "parallel_attn": False, "bias": True},
        "new decoder": {"new_decoder_architecture": True, "num_kv_heads": 2},
    },
    "gemma4_text": {"experts": GEMMA_4_EXPERTS},
    "gpt_bigcode": {"multi-head": {"multi_query": False}},
    "gpt_neox": {"sequential": {"use_parallel_residual": False}},
    "granitemoehybrid": {
        "rope": {**MAMBA_2, "layer_types": ["linear_attention", FULL] * 2, "position_embedding_type": "rope"},
        "dense": {**MAMBA_2, "layer_types": ["linear_attention", FULL] * 2, "num_local_experts": 0},
    },
    "laguna": {"windows": LAYERED},
    "llama": {"llama3 rope": LLAMA_3, "linear rope": rope("linear"), "yarn": YARN, "dynamic rope": rope("dynamic")},
    "mellum": {"windows": LAYERED},
    "minicpm3": {
        "long rope": {
            "rope_parameters": long_rope(lambda hidden_size: 8),
            "original_max_position_embeddings": ORIGINAL_LEN,
        }
    },
    "ministral3": {"tempered": TEMPERED},
    "mistral": {"no window": {"sliding_window": None}},
    "mixtral": {"windows": ONLY_WINDOW},
    "opt": {"layer norm behind": {"do_layer_norm_before": False, "word_embed_proj_dim": share(1, 2)}},
    "phi": {"normed queries": {"qk_layernorm": True}},
    "phi3": {
        "long rope": {
            "rope_parameters": long_rope(share(1, NUM_HEADS)),
            "original_max_position_embeddings": ORIGINAL_LEN,
        },
        "windows": ONLY_WINDOW,
    },
    "phi4_multimodal": {
        "long rope": {
            "rope_parameters": long_rope(share(1, NUM_HEADS)),
            "original_max_position_embeddings": ORIGINAL_LEN,
        }
    },
    "phimoe": {
        "long rope": {
            "rope_parameters": long_rope(share(1, NUM_HEADS), short_mscale=1.2, long_mscale=1.5),
            "original_max_position_embeddings": ORIGINAL_LEN,
        },
        "windows": ONLY_WINDOW,
    },
    "qwen2": {"windows": WINDOWED, "yarn": YARN},
    "qwen2_moe": {"windows": WINDOWED},
    "qwen3": {"windows": WINDOWED},
    "qwen3_moe": {"windows": WINDOWED},
    "smollm3": {"windows": {**WINDOWED, "no_rope_layers": [1, 0, 1, 0]}},
    "stablelm": {
        "2": {"qk_layernorm": True, "use_parallel_residual": True},
        "biased": {"use_qkv_bias": True},
    },
    "starcoder2": {"windows": ONLY_WINDOW},
}
