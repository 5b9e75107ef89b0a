"""Tiny random models of any family of transformers."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.survey.cases import case_of
from tests.survey.shrink import shrunk
from tests.toy import END_ID


def tiny_config(name: str, *, hidden_size: int = 32) -> PreTrainedConfig:
    """The configuration of a case (`llama`, `phi3: long rope`) at this width."""
    case = case_of(name)
    return shrunk(CONFIG_MAPPING[case.model_type], hidden_size=hidden_size, options=case.options)


def tiny_model(name: str, *, seed: int, hidden_size: int = 32) -> PreTrainedModel:
    """A random model in float32 of a case, whose logits depend on every token in reach, every layer and every parameter."""
    config = tiny_config(name, hidden_size=hidden_size)
    torch.manual_seed(seed)
    auto = AutoModelForImageTextToText if case_of(name).images else AutoModelForCausalLM
    model = auto.from_config(config, dtype=torch.float32).eval()
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.eos_token_id = END_ID  # as checkpoints have it beside configurations that know no end
    _vary(model, seed=seed)
    return model


@torch.no_grad()
def _vary(model: PreTrainedModel, *, seed: int) -> None:
    """Parameters that begin as constants (norms, gates, sinks, decays) or nearly so get values of their own.

    States decay slower than in a new model, so that what was read long ago still counts.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("A_log"):
            parameter.add_(0.2 * noise - 2.0)
        elif parameter.ndim < 2:
            parameter.add_(0.2 * noise)
        elif parameter.numel() > 1 and parameter.std() < 0.05:
            parameter.add_(0.3 * noise)
    for name, buffer in model.named_buffers():
        if name.endswith("bias") and buffer.is_floating_point() and not buffer.any():
            buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
