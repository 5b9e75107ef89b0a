"""What cannot be run, told from class and configuration alone, before any weight is read.

The rules look for what an engine cannot do with a model's memory: it has slots, in which rows of any length lie side by side,
each of which goes on from its own last token, and tokens can be taken back. Where code has no trait to look for, a table names
the family. What no rule sees is seen by the self-check.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from transformers import PreTrainedModel

from eft_engine.models.layers import cache_argument, calls, unknown_layer
from eft_engine.models.model_files import files_of
from eft_engine.models.scans import FAMILIES

BY_TYPE: Mapping[str, str] = {
    "blt": "reads bytes in patches whose length depends on the text",
    "cpmant": "reads the prompt in both directions, behind trained prompt tokens",
    "diffusion_gemma": "writes blocks by diffusion, not token by token",
    "gemma4_assistant": "drafts from the keys and values of another model",
    "gemma4_unified_assistant": "drafts from the keys and values of another model",
    "git": "answers about an image, and its text has no cache of its own",
    "paligemma": "reads the prompt in both directions",
    "xlstm": "keeps its states in a cache class of its own",
}
"""Model types that no rule recognises, and what they are."""


def why_refused(model: PreTrainedModel) -> str | None:
    """One sentence on why an engine cannot run a model; None: nothing is known against it.

    Args:
        model: with numbers or without (on the meta device). It is not run.
    """
    reason = BY_TYPE.get(model.config.model_type) or next(filter(None, (rule(model) for rule in RULES)), None)
    return None if reason is None else f"{type(model).__name__} {reason}"


def notes_on(model: PreTrainedModel) -> tuple[str, ...]:
    """Sentences on what is not offered of a model that runs."""
    config = model.config.get_text_config()
    kinds = [getattr(module, "rope_type", None) for module in model.modules()]
    if not any(kind == "dynamic" or (isinstance(kind, dict) and "dynamic" in kind.values()) for kind in kinds):
        return ()
    limit = getattr(config, "max_position_embeddings", None) or 0
    return (
        f"texts up to {limit:,} tokens: beyond, its rotary factors (dynamic NTK) would follow the longest text of a batch",
    )


def _has_no_output_layer(model: PreTrainedModel) -> str | None:
    if getattr(model.get_output_embeddings(), "weight", None) is not None:
        return None
    return "has no output layer to read logits from; give a causal language model"


def _is_encoder_decoder(model: PreTrainedModel) -> str | None:
    if not getattr(model.config, "is_encoder_decoder", False):
        return None
    return "is an encoder with a decoder; give a decoder that generates text by itself"


def _has_no_layers(model: PreTrainedModel) -> str | None:
    if getattr(model.config.get_text_config(), "num_hidden_layers", None):
        return None
    return "does not say in its configuration how many layers a token passes (num_hidden_layers)"


def _takes_no_cache(model: PreTrainedModel) -> str | None:
    if cache_argument(model):
        return None
    return "takes no cache of keys, values and states, so that every token would be computed from the beginning of its text"


def _brings_a_cache(model: PreTrainedModel) -> str | None:
    for file in files_of(model):
        for name, kind in vars(file).items():
            if inspect.isclass(kind) and kind.__module__ == file.__name__ and _is_cache(kind):
                return f"runs over a cache class of its own alone ({name})"
    return None


def _is_cache(kind: type) -> bool:
    return any(base.__module__ == "transformers.cache_utils" and base.__name__ == "Cache" for base in kind.__mro__)


def _keeps_an_index(model: PreTrainedModel) -> str | None:
    unknown = unknown_layer(model)
    if unknown is None:
        return None
    return f"chooses by an index which tokens it reads, and keeps that beside keys and values ({unknown})"


def _reads_in_both_directions(model: PreTrainedModel) -> str | None:
    is_masked = getattr(model.config, "is_decoder", True) is False
    if not is_masked or not any(hasattr(file, "create_bidirectional_mask") for file in files_of(model)):
        return None
    return "reads in both directions, as it was not trained as a decoder (is_decoder=False)"


def _chooses_by_later_tokens(model: PreTrainedModel) -> str | None:
    """Doge: the keys that are kept are the best of a whole text, and tokens compete for experts."""
    config = model.config
    if config.model_type != "doge":
        return None
    if config.is_moe:
        return "gives tokens experts by what the whole text wants, later tokens among it (is_moe)"
    if config.keep_window_size < config.max_position_embeddings:
        return "keeps the keys that score best in the whole text, later ones among them (keep_window_size)"
    return None


def _counts_behind_padding(model: PreTrainedModel) -> str | None:
    if not any(hasattr(module, "create_position_ids_from_input_ids") for module in model.modules()):
        return None
    return "counts positions from behind its padding id, and the engine's positions are counted from 0"


def _counts_by_cache(model: PreTrainedModel) -> str | None:
    decoder = model.get_decoder()
    forwards = [model.forward, *([] if decoder is None else [decoder.forward])]
    if any("position_ids" in inspect.signature(forward).parameters for forward in forwards):
        return None
    if not any("Positional" in type(module).__name__ for module in model.modules()):
        return None
    return (
        "counts positions by the length of its cache, which is one for all texts of a batch, and here each has its own"
    )


def _measures_by_cache(model: PreTrainedModel) -> str | None:
    if not calls(model, "get_query_offset"):
        return None
    return "measures distances by the length of its cache, which is one for all texts of a batch, and here each has its own"


def _scans_unknown(model: PreTrainedModel) -> str | None:
    known = any(hasattr(file, family.chunk_name) for file in files_of(model) for family in FAMILIES)
    if known or not calls(model, "update_recurrent_state"):
        return None
    return "keeps a state that is made by no recurrence that the engine knows, so that tokens could not be taken back"


RULES: tuple[Callable[[PreTrainedModel], str | None], ...] = (
    _has_no_output_layer,
    _is_encoder_decoder,
    _has_no_layers,
    _takes_no_cache,
    _brings_a_cache,
    _keeps_an_index,
    _reads_in_both_directions,
    _chooses_by_later_tokens,
    _counts_behind_padding,
    _counts_by_cache,
    _measures_by_cache,
    _scans_unknown,
)
