"""Each member of the trio as vLLM's own model: any family that vLLM has, with its own configuration, layers, caches and
quantisation.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

from torch import nn
from vllm.compilation.backends import set_model_tag
from vllm.config import ModelConfig, VllmConfig
from vllm.config.utils import replace
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.utils import initialize_model

from eft_integrations.vllm.trio_options import OPTION, TrioOptions

BASE = "base"


def member_configs(trio: ModelConfig, *, max_model_len: int | None) -> Iterator[tuple[str, ModelConfig]]:
    """The configuration of every member, by key: the base's as if it were served alone, then those of `small_members`.

    Args:
        trio: the configuration that vLLM was started with.
        max_model_len: for the members; None: what each of them was made for.

    Raises:
        ValueError: a member's folder cannot be read, or vLLM has no such architecture.
    """
    own = {key: value for key, value in (trio.hf_overrides or {}).items() if key not in ("architectures", OPTION)}
    shared = {
        "tokenizer": trio.tokenizer,
        "tokenizer_mode": trio.tokenizer_mode,
        "trust_remote_code": trio.trust_remote_code,
        "dtype": trio.dtype,
        "seed": trio.seed,
        "enforce_eager": trio.enforce_eager,
        "max_model_len": max_model_len,
        "hf_token": trio.hf_token,
    }
    yield (
        BASE,
        ModelConfig(
            model=trio.model,
            revision=trio.revision,
            code_revision=trio.code_revision,
            config_format=trio.config_format,
            quantization=trio.quantization,
            hf_overrides=own,
            **shared,
        ),
    )
    head = {"head_dtype": trio.hf_config.head_dtype}
    for key, source, revision in TrioOptions.of(trio.hf_config).small_members():
        yield key, ModelConfig(model=source, revision=revision, hf_overrides=head, **shared)


def build_member(vllm_config: VllmConfig, model_config: ModelConfig, *, prefix: str) -> nn.Module:
    """The member's model, without weights.

    Its layers are known to vLLM by names that begin with `prefix`, so each has its own key/value cache, and what is compiled
    for one member is never taken for another.
    """
    model_config = copy.copy(model_config)
    model_config.is_submodel_config = True  # a part of a configuration that has been checked as a whole
    cache_config = copy.copy(vllm_config.cache_config)
    cache_config.sliding_window = _window_of_all_layers(model_config)
    config = replace(
        vllm_config,
        model_config=model_config,
        cache_config=cache_config,
        quant_config=VllmConfig.get_quantization_config(model_config, vllm_config.load_config),
    )
    with set_model_tag(f"eft_{prefix}"):
        member: nn.Module = initialize_model(vllm_config=config, model_config=model_config, prefix=prefix)
    return member


def _window_of_all_layers(model_config: ModelConfig) -> int | None:
    """The window of layers that name none themselves: the model's, unless some of its layers have none."""
    kinds = getattr(model_config.hf_text_config, "layer_types", None) or ()
    return model_config.get_sliding_window() if all(kind == "sliding_attention" for kind in kinds) else None


def prepare_head(member: nn.Module, *, skip_gather: bool) -> bool:
    """Let a member's logits be its own part of the vocabulary; a quantised head keeps the type that it computes in.

    Returns:
        Whether the member computes its logits with vLLM's layer for that, and so obeys.
    """
    heads = [module for module in member.modules() if isinstance(module, LogitsProcessor)]
    method = getattr(getattr(member, "lm_head", None), "quant_method", None)
    for head in heads:
        if method is not None and not isinstance(method, UnquantizedEmbeddingMethod | UnquantizedLinearMethod):
            head.head_dtype = None
        if skip_gather:
            head.register_forward_pre_hook(_skip_gather, with_kwargs=True)
    return bool(heads)


def _skip_gather(
    head: nn.Module, args: tuple[object, ...], keywords: dict[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    return args, {**keywords, "skip_gather": True}
