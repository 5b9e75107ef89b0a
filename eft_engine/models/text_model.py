"""Which class of transformers runs the text of a checkpoint, and what of the checkpoint it leaves out.

Most folders hold a causal language model, and transformers names its class. A multimodal folder is run by its own class without the
towers (see `towers`): whatever layout its weights were published in, that class knows their names, and the logits are those of its
own forward pass over text. Where transformers names a class of the family for text alone, that one is taken.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from eft_engine.models.skeleton import build_on_meta, cannot_build
from eft_engine.models.towers import find_left_out, num_parameters, towers, without

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextModel:
    """The text of a checkpoint, before it is loaded."""

    skeleton: PreTrainedModel
    """On the meta device; what is held has these parameters."""
    config: PreTrainedConfig
    """What it was built from."""
    model_class: type[PreTrainedModel] | None = None
    """Loads it, out of `config`; None: transformers' mapping of causal language models finds the class by itself."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Parts of the checkpoint that are not read, and the parameters of each."""
    notes: tuple[str, ...] = ()


def plan_text(config: PreTrainedConfig, *, member: str, source: str, trust_remote_code: bool = False) -> TextModel:
    """What runs the text of the checkpoint that `config` describes.

    Args:
        config: of the checkpoint; it is not changed.
        member: whose it is, for messages.
        source: where it comes from, for messages.
        trust_remote_code: run modelling code that is shipped with the checkpoint.

    Raises:
        UnsupportedModelError: transformers cannot build it, it does not run over text alone, or it has no output layer.
    """
    own_code = trust_remote_code and AutoModelForCausalLM.__name__ in (getattr(config, "auto_map", None) or {})
    try:
        if type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING and not own_code:
            found = _of_multimodal(config)
        else:
            found = TextModel(build_on_meta(AutoModelForCausalLM, config, trust_remote_code=trust_remote_code), config)
        found.config.get_text_config()  # some configurations have several, and nobody says which
        _check_output_layer(found.skeleton)
    except Exception as error:  # code of any model class
        raise cannot_build(error, member=member, source=source) from error
    return found


def _of_multimodal(config: PreTrainedConfig) -> TextModel:
    """Raises whatever the code of the classes raises."""
    whole_class = MODEL_FOR_MULTIMODAL_LM_MAPPING[type(config)]
    named = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), whole_class)
    if named is not whole_class:
        return TextModel(build_on_meta(AutoModelForCausalLM, config), config, left_out=_sizes_of_towers(config))
    if config.is_encoder_decoder:
        raise TypeError(f"{whole_class.__name__} is an encoder with a decoder")
    try:
        whole = build_on_meta(AutoModelForMultimodalLM, config)
    except ImportError as error:
        return _family_text(config, whole_class, missing=error)
    _check_output_layer(whole)
    left_out = find_left_out(whole)
    return TextModel(whole, config, without(whole_class, list(left_out)), left_out)


def _check_output_layer(model: PreTrainedModel) -> None:
    if getattr(model.get_output_embeddings(), "weight", None) is None:
        raise TypeError(f"{type(model).__name__} has no output layer to read logits from")


def _sizes_of_towers(config: PreTrainedConfig) -> dict[str, int]:
    """Empty where they cannot be built: nobody needs more of them than their sizes."""
    try:
        whole = build_on_meta(AutoModelForMultimodalLM, config)
    except Exception as error:  # code of any model class
        logger.debug("the towers of %s cannot be counted: %r", type(config).__name__, error)
        return {}
    return {name: num_parameters(whole.get_submodule(name)) for name in towers(whole)}


def _family_text(config: PreTrainedConfig, whole_class: type[PreTrainedModel], *, missing: ImportError) -> TextModel:
    """A tower needs a package that is not here. A family that has a class for its text (Gemma 3n) does without the tower; another
    class would not know the names of the weights, or compute logits otherwise (Cohere 2 scales them, Aya Vision does not).
    """
    text_config = copy.deepcopy(config.get_text_config())
    text_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(text_config), None)
    if text_class is None or text_class.__module__ != whole_class.__module__:
        raise missing
    if getattr(config, "quantization_config", None) is not None:
        text_config.quantization_config = config.quantization_config
    note = f"run by {text_class.__name__}: its images and sound need a package that is not installed, its text does not"
    return TextModel(build_on_meta(AutoModelForCausalLM, text_config), text_config, text_class, notes=(note,))
