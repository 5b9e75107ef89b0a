"""What the general tables of `shrink` do not know: attributes that make a case's model tiny, bind its windows, or let it be built.

A value that is a function gets the hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from transformers import SiglipVisionConfig

from tests.survey.shrink import NUM_HEADS, ORIGINAL_LEN, WINDOW, Option, sections
from tests.toy import END_ID

Options = Mapping[str, Option]

FULL, SLIDING, LINEAR, CHUNKED = "full_attention", "sliding_attention", "linear_attention", "chunked_attention"
HALF_SLIDING = [FULL, SLIDING, FULL, SLIDING]
IMAGE_TOKENS = {
    "<image>": END_ID + 1,
    "<|image token|>": END_ID + 1,
    "<|extra_200|>": END_ID + 1,
    "IMGIMG0A": END_ID + 2,
}


def share(numerator: int, denominator: int) -> Callable[[int], int]:
    """A fraction of the hidden size."""
    return lambda hidden_size: hidden_size * numerator // denominator


def per_head(partial: float = 1.0, **parameters: object) -> Callable[[int], dict[str, object]]:
    """Rotary parameters whose three sections fit a head."""

    def made(hidden_size: int) -> dict[str, object]:
        half = int(hidden_size // NUM_HEADS * partial) // 2
        base = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections(half)}
        return base | ({"partial_rotary_factor": partial} if partial != 1.0 else {}) | parameters

    return made


def long_rope(head_dim: Callable[[int], int], **parameters: object) -> Callable[[int], dict[str, object]]:
    """Two lists of rotary factors, and the length at which a text changes from the one to the other."""

    def made(hidden_size: int) -> dict[str, object]:
        half = head_dim(hidden_size) // 2
        return {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0 + 0.1 * index for index in range(half)],
            "long_factor": [2.0 + 1.5 * index for index in range(half)],
            "original_max_position_embeddings": ORIGINAL_LEN,
            "factor": 8.0,
            **parameters,
        }

    return made


GEMMA_4_SHARED: Options = {
    "global_head_dim": share(1, 2),
    "layer_types": [SLIDING, FULL, SLIDING, FULL],
    "num_kv_shared_layers": 2,
    "num_experts": None,
    "moe_intermediate_size": None,
    "top_k_experts": None,
}
GEMMA_4_EXPERTS: Options = {
    "global_head_dim": share(1, 2),
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
    "enable_moe_block": True,
}
GEMMA_3N: Options = {
    "layer_types": [SLIDING, FULL, SLIDING, FULL],
    "num_kv_shared_layers": 2,
    "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
}
MAMBA_2: Options = {"mamba_n_heads": NUM_HEADS, "mamba_d_head": share(1, 2)}
LFM_2: Options = {"layer_types": ["conv", FULL, "conv", FULL]}
LLAMA_4: Options = {"no_rope_layers": [1, 0, 1, 0], "moe_layers": [1, 2], "floor_scale": 8, "attn_scale": 0.5}
QWEN_4: Options = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
    "hc_lowrank": 8,
}
DOTS_3: Options = {
    "swa_num_attention_heads": NUM_HEADS,
    "swa_num_key_value_heads": NUM_HEADS,
    "swa_qk_nope_head_dim": 8,
    "swa_qk_rope_head_dim": 8,
    "swa_v_head_dim": 8,
    "swa_head_dim": 16,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16,
    "head_dim": 16,
}
COMPASS: Options = {"rope_parameters": lambda hidden_size: {FULL: per_head()(hidden_size)}}
DECODER: Options = {"is_decoder": True}
MROPE: Options = {"text_config": {"rope_parameters": per_head()}}
STAND_IN: Options = {
    "vision_config": SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
        rms_norm_eps=1e-6,
        vocab_size=4,
        vocab_offset=256,
        model_args={"embed_dim": 32},
    )
}
"""A tower in place of one that needs a package. Text never runs it."""

OPTIONS: Mapping[str, Options] = {
    "bailing_hybrid": {"n_group": 2, "linear_head_dim": 8},
    "axk2": {"n_group": None, "topk_group": None},
    "bamba": {**MAMBA_2, "attn_layer_indices": [1], "num_hidden_layers": 3},
    "blt": {
        "encoder_hash_byte_group_vocab": 260,
        "local_attention_window_len": WINDOW,
        "encoder_config": {"hidden_size_global": share(1, 1)},
        "decoder_config": {"hidden_size_global": share(1, 1)},
    },
    "chameleon": {"vocabulary_map": IMAGE_TOKENS},
    "cohere_compass": {"text_config": COMPASS},
    "cohere_compass_text": COMPASS,
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"moe_top_k": 2},
    },
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse"], "n_group": None, "topk_group": None}},
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}},
    "diffusion_gemma": {"text_config": {"global_head_dim": share(1, 2)}},
    "doge": {"keep_window_size": 2048},
    "dots1": {"n_shared_experts": 1},
    "dots3_note": {"text_config": DOTS_3},
    "dots3_note (images)": {"text_config": DOTS_3},
    "dots3_note_text": DOTS_3,
    "emu3": {"vocabulary_map": IMAGE_TOKENS},
    "emu3 (images)": {"vocabulary_map": IMAGE_TOKENS},
    "ernie4_5_vl_moe": {
        "text_config": {
            "rope_parameters": lambda hidden_size: {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [hidden_size // 32, hidden_size // 32, hidden_size // 16],
            }
        }
    },
    "falcon_h1": {"mamba_d_ssm": share(1, 1), "mamba_d_head": share(1, 4), "mamba_n_heads": NUM_HEADS},
    "fast_vlm": STAND_IN,
    "gemma3n": {"text_config": GEMMA_3N, **STAND_IN},
    "gemma3n_text": GEMMA_3N,
    "gemma4": {"text_config": GEMMA_4_SHARED},
    "gemma4_text": GEMMA_4_SHARED,
    "gemma4_unified": {"text_config": {"global_head_dim": share(1, 2)}},
    "gemma4_unified_text": {"global_head_dim": share(1, 2)},
    "glm4v": MROPE,
    "glm46v": MROPE,
    "glmga": MROPE,
    "glm4v_moe": {"text_config": {"rope_parameters": per_head(0.5)}},
    "glm_ocr": MROPE,
    "glm5_next": {"text_config": {"qk_rope_head_dim": 0, "index_kpool": 2, "index_topk": 4}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granite4_vision": {
        "vision_config": {"hidden_size": 64},
        "deepstack_layer_map": [[0, 0]],
        "spatial_target_layers": [1],
        "downsample_rate": "1/2",
    },
    "granite_docling": {"vision_config": {"deepstack_visual_indexes": [0]}},
    "granitemoehybrid": {**MAMBA_2, "layer_types": [LINEAR, FULL, LINEAR]},
    "hrm_text": {"initializer_range": 0.1},  # its loops over two stacks multiply rounding
    "hunyuan_vl": {"text_config": {"rope_parameters": per_head()}},
    "idefics": {"use_resampler": False},
    "inkling_mm_model": {
        "vision_config": {"patch_size": 4, "num_hidden_layers": 4},
        "text_config": {"logits_mup_width_multiplier": 1.0},
    },
    "inkling_text": {"logits_mup_width_multiplier": 1.0},
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "lfm2": LFM_2,
    "lfm2_moe": LFM_2,
    "lfm2_vl": {"text_config": LFM_2},
    "llama4": {"text_config": LLAMA_4},
    "llama4 (images)": {"text_config": LLAMA_4},
    "llama4_text": LLAMA_4,
    "longcat_flash": {"head_dim": 8, "zero_expert_num": 2},
    "mamba2": {"head_dim": share(1, 2)},
    "minimax": {"block_size": WINDOW},
    "minimax_m3_vl": {
        "text_config": {"layer_types": [FULL, "minimax_m3_sparse"], "mlp_layer_types": ["dense", "sparse"]},
    },
    "minimax_m3_vl_text": {"layer_types": [FULL, "minimax_m3_sparse"], "mlp_layer_types": ["dense", "sparse"]},
    "mllama": {"text_config": {"num_hidden_layers": 3, "cross_attention_layers": [1]}},
    "mllama (images)": {"text_config": {"num_hidden_layers": 3, "cross_attention_layers": [1]}},
    "molmo2": {"adapter_config": {"vision_feature_layer": [0, 1]}},
    "muse_spark": {
        "audio_config": {"patch_sizes": [16, 6], "hidden_sizes": [16, 32], "depths": [1, 1]},
    },
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "nemotron": {
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    },
    "paddleocr_vl": MROPE,
    "perception_lm": STAND_IN,
    "qwen2_5_omni_thinker": MROPE,
    "qwen2_5_vl": MROPE,
    "qwen2_vl": MROPE,
    "qwen4_exp": {"text_config": QWEN_4},
    "qwen4_exp (images)": {"text_config": QWEN_4},
    "qwen4_exp_text": QWEN_4,
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": [16, 20],
        "axial_pos_embds_dim": lambda hidden_size: [hidden_size // 4, hidden_size * 3 // 4],
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": WINDOW,
        "lsh_attn_chunk_length": WINDOW,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 0], "layer_types": [FULL] * 4},
    "step3p7": {
        "text_config": {
            "layer_types": HALF_SLIDING,
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
            "sliding_window": WINDOW,
            "num_sliding_attention_heads": 8,
        }
    },
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": [LINEAR, "hybrid", LINEAR, "hybrid"],
        "attention_head_dim": share(1, 2),
        "num_key_value_heads": NUM_HEADS,
        "use_mamba_kernels": False,
    },
    "zamba2": {
        "num_hidden_layers": 5,
        "layers_block_type": [LINEAR, "hybrid", LINEAR, "hybrid", LINEAR],
        "num_mem_blocks": 2,
        "use_shared_attention_adapter": True,
        "use_mem_rope": True,
        "n_mamba_heads": NUM_HEADS,
        "num_key_value_heads": NUM_HEADS,
        "adapter_rank": 8,
    },
    "zaya": {
        "num_experts_per_tok": 1,
        "layer_types": ["hybrid", "hybrid_sliding"] * 2,
        "sliding_window": WINDOW,
        "router_hidden_size": 16,
    },
    **dict.fromkeys(
        (
            *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
            *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta"),
            *("xlm-roberta-xl", "git"),
        ),
        DECODER,
    ),
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
}
