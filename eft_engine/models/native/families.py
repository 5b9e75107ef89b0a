"""Which models the kernels can compute, and what these consist of.

A model is taken only if all of its parts are exactly those of its family, nobody has hooks in it, and small trials of its parts
give what the kernels would: anything else is computed by torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.gemma3 import modeling_gemma3 as gemma3
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3

ROTARY_TYPES = ("default", "linear", "llama3", "yarn")
"""Those whose factors do not follow the length of a text."""


@dataclass(frozen=True)
class Family:
    """The classes that a model of the family is made of, and how they differ from Llama's."""

    model: type[nn.Module]
    decoder: type[nn.Module]
    layer: type[nn.Module]
    attention: type[nn.Module]
    gated: type[nn.Module]
    norm: type[nn.Module]
    rotary: type[nn.Module]
    embedding: type[nn.Module] = nn.Embedding
    norm_adds_one: bool = False
    """Whether norms multiply with 1 + weight."""
    norms_behind: bool = False
    """Whether what attention and the gated layer say is normalised before it is added."""


FAMILIES = (
    Family(
        llama.LlamaForCausalLM,
        llama.LlamaModel,
        llama.LlamaDecoderLayer,
        llama.LlamaAttention,
        llama.LlamaMLP,
        llama.LlamaRMSNorm,
        llama.LlamaRotaryEmbedding,
    ),
    Family(
        mistral.MistralForCausalLM,
        mistral.MistralModel,
        mistral.MistralDecoderLayer,
        mistral.MistralAttention,
        mistral.MistralMLP,
        mistral.MistralRMSNorm,
        mistral.MistralRotaryEmbedding,
    ),
    Family(
        qwen2.Qwen2ForCausalLM,
        qwen2.Qwen2Model,
        qwen2.Qwen2DecoderLayer,
        qwen2.Qwen2Attention,
        qwen2.Qwen2MLP,
        qwen2.Qwen2RMSNorm,
        qwen2.Qwen2RotaryEmbedding,
    ),
    Family(
        qwen3.Qwen3ForCausalLM,
        qwen3.Qwen3Model,
        qwen3.Qwen3DecoderLayer,
        qwen3.Qwen3Attention,
        qwen3.Qwen3MLP,
        qwen3.Qwen3RMSNorm,
        qwen3.Qwen3RotaryEmbedding,
    ),
    Family(
        gemma3.Gemma3ForCausalLM,
        gemma3.Gemma3TextModel,
        gemma3.Gemma3DecoderLayer,
        gemma3.Gemma3Attention,
        gemma3.Gemma3MLP,
        gemma3.Gemma3RMSNorm,
        gemma3.Gemma3RotaryEmbedding,
        embedding=gemma3.Gemma3TextScaledWordEmbedding,
        norm_adds_one=True,
        norms_behind=True,
    ),
)


class NotForKernelsError(Exception):
    """The kernels cannot compute this model; the message says why."""


def family_of(model: PreTrainedModel) -> Family:
    """The model's family.

    Raises:
        NotForKernelsError: it has none, or is not exactly what its family is.
    """
    family = next((family for family in FAMILIES if type(model) is family.model), None)
    if family is None:
        raise NotForKernelsError(f"{type(model).__name__} is no family of the kernels")
    _check_parts(model, family)
    _check_numbers(model)
    return family


def _check_parts(model: PreTrainedModel, family: Family) -> None:
    decoder: Any = model.model
    expected: list[tuple[object, type[nn.Module]]] = [
        (decoder, family.decoder),
        (decoder.embed_tokens, family.embedding),
        (decoder.norm, family.norm),
        (decoder.rotary_emb, family.rotary),
        (model.lm_head, nn.Linear),
    ]
    for layer in decoder.layers:
        attention, gated = layer.self_attn, layer.mlp
        expected += [(layer, family.layer), (attention, family.attention), (gated, family.gated)]
        linear = ("q_proj", "k_proj", "v_proj", "o_proj")
        expected += [(getattr(attention, name), nn.Linear) for name in linear]
        expected += [(getattr(gated, name), nn.Linear) for name in ("gate_proj", "up_proj", "down_proj")]
        norms = ["input_layernorm", "post_attention_layernorm"]
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if family.norms_behind else []
        expected += [(getattr(layer, name), family.norm) for name in norms]
        expected += [
            (getattr(attention, name), family.norm) for name in ("q_norm", "k_norm") if hasattr(attention, name)
        ]
    for part, wanted in expected:
        if type(part) is not wanted:
            raise NotForKernelsError(f"{type(part).__name__} stands where {wanted.__name__} is expected")
    if len({id(part) for part, _ in expected}) < len(expected):
        raise NotForKernelsError("layers share their parts")
    for name, module in model.named_modules():
        if "forward" in vars(module) or any(
            getattr(module, hooks, None) for hooks in ("_forward_hooks", "_forward_pre_hooks")
        ):
            raise NotForKernelsError(f"{name or type(module).__name__} has a forward pass or hooks of its own")


def _check_numbers(model: PreTrainedModel) -> None:
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.bfloat16}:
        raise NotForKernelsError(f"its weights are of {', '.join(sorted(map(str, dtypes)))}")
    uses = Counter(id(own) for module in model.modules() for own in module.parameters(recurse=False))
    held: Any = model
    if any(number > 1 for own, number in uses.items() if own != id(held.lm_head.weight)):
        raise NotForKernelsError("layers share weights")
    for name, parameter in model.named_parameters():
        if type(parameter) is not nn.Parameter or parameter.device.type != "cpu":
            raise NotForKernelsError(f"{name} is no plain tensor on a CPU")


def rotary_type(config: Any, layer_type: str | None) -> str:
    """What the configuration calls its rotary positions; by the kind of layer where there are several."""
    parameters = config.rope_parameters
    if layer_type is not None and layer_type in parameters:
        parameters = parameters[layer_type]
    return str(parameters.get("rope_type", "default"))


ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    functional.silu,
    lambda numbers: functional.gelu(numbers, approximate="tanh"),
    functional.gelu,
)
"""Those that the kernels know, in their order there."""


def activation_of(act_fn: Callable[[Tensor], Tensor]) -> int:
    """Which of `ACTIVATIONS` a layer's function is, by what it does.

    Raises:
        NotForKernelsError: it is none of them.
    """
    numbers = torch.linspace(-6, 6, 97)
    said = act_fn(numbers)
    for index, known in enumerate(ACTIVATIONS):
        if torch.allclose(known(numbers), said, rtol=0, atol=1e-6):
            return index
    raise NotForKernelsError(f"{type(act_fn).__name__} is no activation of the kernels")


@torch.inference_mode()
def norm_weights(norm: nn.Module, family: Family) -> tuple[Tensor, float]:
    """What a norm multiplies with `[size]`, in float32, and its epsilon.

    Raises:
        NotForKernelsError: it does something else.
    """
    held: Any = norm
    epsilon = float(getattr(held, "variance_epsilon", getattr(held, "eps", 0.0)))
    weights = held.weight.float() + (1.0 if family.norm_adds_one else 0.0)
    numbers = torch.linspace(-2, 3, len(weights)).to(held.weight.dtype)
    own = numbers.float() * torch.rsqrt(numbers.float().square().mean() + epsilon) * weights
    tolerance = 1e-4 if held.weight.dtype == torch.float32 else 0.02
    if not torch.allclose(norm(numbers).float(), own, rtol=tolerance, atol=tolerance, equal_nan=True):
        raise NotForKernelsError(f"{type(norm).__name__} does something else than its family's")
    return weights.contiguous(), epsilon
