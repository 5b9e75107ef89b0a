"""Any configuration class of transformers at the size of a toy: known attributes become small, kinds of layers all stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from transformers import PreTrainedConfig

from tests.toy import END_ID, VOCAB_SIZE

NUM_HEADS, NUM_KV_HEADS, NUM_EXPERTS, WINDOW, ORIGINAL_LEN = 4, 2, 4, 8, 24
"""Prompts of the survey are longer than `WINDOW`, and some than `ORIGINAL_LEN`, the length before long rotary factors."""

KEEP: Final = object()
"""As an option: the class's own default."""

# Names of attributes by what they become; several families call the same thing differently.
WIDTHS = (
    "hidden_size d_model n_embd embed_dim dim emb_dim word_embed_proj_dim lru_width embedding_dim projection_dim proj_dim "
    "out_hidden_size text_hidden_size output_proj_dims adapter_in_dim adapter_out_dim adapter_input_size "
    "moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size "
    "moe_hidden_size vision_output_dim projector_hidden_size projector_input_dim projector_output_dim "
    "shape_embed_dim pronunciation_embed_dim downsample_hidden_size "
    "moe_shared_expert_intermediate_size expert_ffn_hidden_size share_expert_dim"
)
DOUBLE_WIDTHS = (
    "intermediate_size ffn_dim n_inner ffn_hidden_size dim_ff dff d_inner feed_forward_size encoder_ffn_dim decoder_ffn_dim "
    "dense_intermediate_size intermediate_size_mlp shared_intermediate_size mlp_dim"
)
HEAD_WIDTHS = "head_dim global_head_dim attention_head_dim kv_channels dim_head attention_head_size d_head d_kv"
LAYERS = "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers layers num_blocks depth"
HEADS = (
    "num_attention_heads n_head n_heads num_heads attention_heads encoder_attention_heads decoder_attention_heads "
    "swa_num_attention_heads num_sliding_attention_heads num_query_groups linear_num_heads linear_num_value_heads "
    "mamba_n_heads mamba_num_heads n_mamba_heads index_n_heads"
)
KV_HEADS = "num_key_value_heads num_kv_heads swa_num_key_value_heads linear_num_key_heads linear_num_key_value_heads"
EXPERTS = "num_experts num_local_experts n_routed_experts moe_num_experts"
EXPERTS_USED = "num_experts_per_tok num_experts_per_token moe_topk moe_k top_k_experts"
WINDOWS = (
    "sliding_window attention_chunk_size attention_window_size window_size sliding_window_size keep_window_size "
    "log_scaling_n_floor rel_extent"
)
CONTEXTS = "max_position_embeddings n_positions n_ctx max_seq_len context_length model_max_length max_target_positions"
EIGHTS = (
    "qk_rope_head_dim qk_nope_head_dim v_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim "
    "mamba_d_state ssm_state_size index_block_size state_size hidden_size_per_layer_input laurel_rank rotary_dim "
    "mamba_d_head mamba_head_dim swa_head_dim swa_v_head_dim index_head_dim mamba_headdim"
)
SIXTEENS = (
    "q_lora_rank kv_lora_rank o_lora_rank gated_norm_rank chunk_size mamba_chunk_size adapter_rank local_attention"
)
ONES = "first_k_dense_replace num_dense_layers topk_group n_shared_experts num_shared_experts moe_num_shared_experts"
TWOS = "n_group num_expert_group n_groups mamba_n_groups mamba_ngroups index_topk_blocks"
OTHERS: Mapping[str, object] = {
    "vocab_size": VOCAB_SIZE,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "shape_vocab_size": VOCAB_SIZE,
    "pronunciation_vocab_size": VOCAB_SIZE,
    "base_channels": 32,
    "initializer_range": 0.3,
    "init_std": 0.3,
    "mlp_only_layers": [1],
    "num_nextn_predict_layers": 0,
    "index_topk": 4,
    "logit_scale": 1.0,
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.2,
    "logits_scaling": 0.5,
    "image_size": 28,
    "patch_size": 14,
}
ALWAYS = frozenset(f"{EXPERTS} {EXPERTS_USED} moe_intermediate_size head_dim mlp_only_layers".split())
"""Attributes that are set where the class leaves them open too."""

Option = object | Callable[[int], object]


def _sizes(hidden_size: int) -> dict[str, object]:
    groups: dict[str, object] = {
        WIDTHS: hidden_size,
        DOUBLE_WIDTHS: 2 * hidden_size,
        HEAD_WIDTHS: hidden_size // NUM_HEADS,
        LAYERS: 2,
        HEADS: NUM_HEADS,
        KV_HEADS: NUM_KV_HEADS,
        EXPERTS: NUM_EXPERTS,
        EXPERTS_USED: 2,
        WINDOWS: WINDOW,
        CONTEXTS: 320,
        EIGHTS: 8,
        SIXTEENS: 16,
        ONES: 1,
        TWOS: 2,
    }
    return {name: size for names, size in groups.items() for name in names.split()} | dict(OTHERS)


def sections(half: int) -> list[int]:
    """How many of a head's pairs of dimensions turn with time, height and width."""
    return [half - 2 * (half // 3), half // 3, half // 3]


def kinds_of_layers(kinds: list[str]) -> list[str]:
    """Each kind of a list once, in the order of the list, and all once more where that makes at most four layers."""
    found = list(dict.fromkeys(kinds))
    return found * 2 if len(found) <= 2 else found


def shrunk(
    config_class: type[PreTrainedConfig], *, hidden_size: int, options: Mapping[str, Option] | None = None
) -> PreTrainedConfig:
    """A configuration of this class whose model is tiny.

    Args:
        hidden_size: a multiple of 16.
        options: attributes that are not to be what the tables say; for a part (`text_config`) a mapping of the same kind, a
            configuration that stands in for it, or None. A function gets the hidden size; `KEEP` leaves the class's default.
    """
    options = options or {}
    default = config_class()
    types = {field.name: str(field.type) for field in dataclasses.fields(config_class)}
    own = {
        name: value(hidden_size) if callable(value) else value
        for name, value in options.items()
        if name not in config_class.sub_configs
    }
    values: dict[str, Any] = dict(_from_tables(default, types, hidden_size)) | own
    if "layer_types" in values and "num_hidden_layers" in types and "num_hidden_layers" not in own:
        values["num_hidden_layers"] = len(values["layer_types"])
    mlp_kinds = list(dict.fromkeys(getattr(default, "mlp_layer_types", None) or ()))
    if "mlp_layer_types" in types and mlp_kinds and "mlp_layer_types" not in own:
        values["mlp_layer_types"] = (mlp_kinds + mlp_kinds[-1:] * 8)[: values.get("num_hidden_layers", 2)]
    stand_ins: dict[str, PreTrainedConfig] = {}
    for name, part_class in config_class.sub_configs.items():
        part, wanted = getattr(default, name, None), options.get(name, {})
        if isinstance(wanted, PreTrainedConfig):
            stand_ins[name] = wanted
        elif wanted is None or (part is None and not hasattr(part_class, "sub_configs")):
            values[name] = None
        else:
            real_class = type(part) if isinstance(part, PreTrainedConfig) else part_class
            assert isinstance(wanted, Mapping), f"{name} is a part of {config_class.__name__}"
            values[name] = shrunk(real_class, hidden_size=hidden_size, options=wanted)
    config = config_class(**{name: value for name, value in values.items() if value is not KEEP})
    vars(config).update(stand_ins)  # a class may accept only its own kind of part
    return config


def _from_tables(default: PreTrainedConfig, types: Mapping[str, str], hidden_size: int) -> Iterator[tuple[str, object]]:
    """The attributes of a class that the tables know."""
    defaults = default.to_dict()
    latent = "kv_lora_rank" in types
    for name, size in _sizes(hidden_size).items():
        present = name in types and (defaults.get(name) is not None or name in ALWAYS)
        if present and not isinstance(defaults.get(name), str) and not (latent and name == "head_dim"):
            many = types[name].startswith(("list", "tuple")) and not isinstance(size, list)
            yield name, [size, size] if many else size
    if latent and "num_key_value_heads" in types:
        yield "num_key_value_heads", NUM_HEADS  # each head has keys of its own, made from the latent ones
    for name in ("bos_token_id", "pad_token_id"):  # never in a prompt, and a text ends there
        if name in types:
            yield name, None if defaults.get(name) is None else END_ID
    if "eos_token_id" in types:
        yield "eos_token_id", END_ID
    rope = defaults.get("rope_parameters")
    if "rope_parameters" in types and isinstance(rope, dict) and "mrope_section" in rope:
        half = int(hidden_size // NUM_HEADS * rope.get("partial_rotary_factor", 1.0)) // 2
        yield "rope_parameters", rope | {"mrope_section": sections(half)}
    if "layer_types" in types and defaults.get("layer_types"):
        yield "layer_types", kinds_of_layers(list(default.layer_types))
