"""A transformers model without numbers: the names and shapes of all parameters, on the meta device."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from eft_engine.errors import UnsupportedModelError


def build_skeleton(
    config: PreTrainedConfig, *, member: str, source: str, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model that `config` describes.

    Args:
        config: it is not changed.
        member: whose it is, for messages.
        source: where it comes from, for messages.
        trust_remote_code: run modelling code that is shipped with the checkpoint.

    Raises:
        UnsupportedModelError: transformers cannot build it.
    """
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"{member}: {source} is not a causal language model that transformers can build: {error}",
            member=member,
            source=source,
        ) from error
    return model
