"""Tiny multimodal models with random weights: a language model with towers for images, and for sound where the family has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMultimodalLM,
    AyaVisionConfig,
    Gemma3Config,
    Gemma3nConfig,
    Gemma3nForCausalLM,
    Gemma4Config,
    Glm4vConfig,
    Idefics3Config,
    InternVLConfig,
    Lfm2VlConfig,
    Llama4Config,
    LlavaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    Mistral3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3_5Config,
    Qwen3_5MoeConfig,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
    SmolVLMConfig,
)

from tests.toy import VOCAB_SIZE, make_tokenizer, shape_of

MEDIA_TOKENS = [f"<media {number}>" for number in range(6)]
"""Placeholders of images and sound; every family names some of them."""
IMAGE, VIDEO, START, END, START_2, END_2 = range(VOCAB_SIZE, VOCAB_SIZE + len(MEDIA_TOKENS))
WIDTH = VOCAB_SIZE + len(MEDIA_TOKENS)


def text(**more: Any) -> dict[str, Any]:
    """The configuration of a small language model."""
    return {**shape_of(32, vocab_size=WIDTH), "head_dim": 8, **more}


TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
SIGLIP, CLIP = {**TOWER, "model_type": "siglip_vision_model"}, {**TOWER, "model_type": "clip_vision_model"}
PIXTRAL = {**TOWER, "model_type": "pixtral", "head_dim": 8}
QWEN_TOWER = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}
QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
AXES = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0, "partial_rotary_factor": 1.0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
DELTA_NET = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
GEMMA_4_TEXT = text(
    **WINDOWS,
    pad_token_id=0,
    hidden_size_per_layer_input=8,
    vocab_size_per_layer_input=WIDTH,
    global_head_dim=8,
    final_logit_softcapping=5.0,
)
GEMMA_4_TOKENS = {
    "image_token_id": IMAGE,
    "audio_token_id": VIDEO,
    "boi_token_id": START,
    "eoi_token_id": END,
    "boa_token_id": START_2,
    "video_token_id": END_2,
}

CONFIGS: Mapping[str, Callable[[], PreTrainedConfig]] = {
    "gemma3": lambda: Gemma3Config(
        text_config=text(**WINDOWS, query_pre_attn_scalar=8),
        vision_config=SIGLIP,
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        eos_token_id=None,
    ),
    "gemma4": lambda: Gemma4Config(
        text_config=GEMMA_4_TEXT,
        vision_config={**TOWER, "num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 16},
        audio_config={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "subsampling_conv_channels": [4, 4],
            "output_proj_dims": 16,
        },
        **GEMMA_4_TOKENS,
    ),
    "mistral3": lambda: Mistral3Config(
        text_config=text(model_type="mistral", sliding_window=None), vision_config=PIXTRAL, image_token_index=IMAGE
    ),
    "ministral3": lambda: Mistral3Config(
        text_config=text(model_type="ministral3"), vision_config=PIXTRAL, image_token_index=IMAGE
    ),
    "qwen2_vl": lambda: Qwen2VLConfig(
        text_config=text(rope_parameters=AXES),
        vision_config={**QWEN_TOWER, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
        **QWEN_TOKENS,
    ),
    "qwen2_5_vl": lambda: Qwen2_5_VLConfig(
        text_config=text(rope_parameters=AXES),
        vision_config={**QWEN_TOWER, "fullatt_block_indexes": [0]},
        **QWEN_TOKENS,
    ),
    "qwen3_vl": lambda: Qwen3VLConfig(
        text_config=text(rope_parameters=AXES),
        vision_config={**QWEN_TOWER, "deepstack_visual_indexes": [0]},
        **QWEN_TOKENS,
    ),
    "qwen3_vl_moe": lambda: Qwen3VLMoeConfig(
        text_config=text(rope_parameters=AXES, **EXPERTS),
        vision_config={**QWEN_TOWER, "deepstack_visual_indexes": [0]},
        **QWEN_TOKENS,
    ),
    "qwen3_5": lambda: Qwen3_5Config(
        text_config=text(rope_parameters=AXES, **DELTA_NET), vision_config=QWEN_TOWER, **QWEN_TOKENS
    ),
    "qwen3_5_moe": lambda: Qwen3_5MoeConfig(
        text_config=text(rope_parameters=AXES, shared_expert_intermediate_size=16, **EXPERTS, **DELTA_NET),
        vision_config=QWEN_TOWER,
        **QWEN_TOKENS,
    ),
    "llava": lambda: LlavaConfig(
        text_config=text(model_type="llama"), vision_config=CLIP, image_token_index=IMAGE, image_seq_length=4
    ),
    "llava_next": lambda: (
        LlavaNextConfig(  # as Granite Vision, whose language model divides its logits when it is alone
            text_config=text(model_type="granite", logits_scaling=4.0),
            vision_config=SIGLIP,
            image_token_index=IMAGE,
            image_grid_pinpoints=[[16, 16]],
        )
    ),
    "llava_onevision": lambda: LlavaOnevisionConfig(
        text_config=text(model_type="qwen2"),
        vision_config=SIGLIP,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[16, 16]],
    ),
    "internvl": lambda: InternVLConfig(
        text_config=text(model_type="qwen2"),
        vision_config={**TOWER, "image_size": [16, 16], "patch_size": [8, 8]},
        image_token_id=IMAGE,
    ),
    "idefics3": lambda: Idefics3Config(text_config=text(model_type="llama"), vision_config=TOWER, image_token_id=IMAGE),
    "smolvlm": lambda: SmolVLMConfig(text_config=text(model_type="llama"), vision_config=TOWER, image_token_id=IMAGE),
    "aya_vision": lambda: AyaVisionConfig(
        text_config=text(model_type="cohere2", logit_scale=0.25, **WINDOWS),
        vision_config=SIGLIP,
        image_token_index=IMAGE,
    ),
    "llama4": lambda: Llama4Config(
        text_config=text(num_local_experts=2, intermediate_size_mlp=48, interleave_moe_layer_step=1),
        vision_config={
            **TOWER,
            "intermediate_size": 64,
            "vision_output_dim": 16,
            "projector_input_dim": 16,
            "projector_output_dim": 16,
        },
        image_token_index=IMAGE,
    ),
    "lfm2_vl": lambda: Lfm2VlConfig(
        text_config=text(model_type="lfm2", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
        vision_config={**TOWER, "num_patches": 4, "model_type": "siglip2_vision_model"},
        image_token_id=IMAGE,
    ),
    "glm4v": lambda: Glm4vConfig(
        text_config=text(rope_parameters=AXES),
        vision_config={**QWEN_TOWER, "image_size": 16},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_start_token_id=START,
        image_end_token_id=END,
        video_start_token_id=START_2,
        video_end_token_id=END_2,
    ),
}


def media_tokenizer() -> PreTrainedTokenizerFast:
    """The toy tokenizer, with the placeholders of images and sound."""
    return make_tokenizer(extra_tokens=MEDIA_TOKENS)


def make_multimodal(family: str, *, seed: int = 0) -> PreTrainedModel:
    """A random model of its own class, with all towers, in float32."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForMultimodalLM.from_config(CONFIGS[family]()).eval()
    return model


def save_multimodal(model: PreTrainedModel, folder: Path, *, published: bool = True) -> str:
    """A folder of it.

    Args:
        model: what is saved.
        folder: where.
        published: name the weights as published folders of the family do, and not as transformers' classes do today.
    """
    model.save_pretrained(folder, save_original_format=published)
    media_tokenizer().save_pretrained(folder)
    return str(folder)


def save_gemma3n(folder: Path) -> PreTrainedModel:
    """A Gemma 3n folder as it is published, whose image tower is of a class of another package. Returns a model of its text."""
    own = text(
        **WINDOWS,
        pad_token_id=0,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=WIDTH,
        num_kv_shared_layers=0,
        laurel_rank=4,
        intermediate_size=[48, 48],
        activation_sparsity_pattern=[0.5, 0.0],
        altup_num_inputs=2,
    )
    config = Gemma3nConfig(text_config=own, vision_config={"hidden_size": 16}, audio_config={"hidden_size": 16})
    torch.manual_seed(0)
    model: PreTrainedModel = Gemma3nForCausalLM(config.text_config).eval()
    model.save_pretrained(folder)
    tensors = {
        f"model.language_model.{name.removeprefix('model.')}": tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    tensors["model.vision_tower.timm_model.conv.weight"] = torch.ones(4)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    media_tokenizer().save_pretrained(folder)
    return model
