"""What the files of a member, or its model, name as ends of its texts.

    generation_config.json    of the model, and of its adapter
    config.json               of the model, and of its text where it is multimodal
    tokenizer                 the member's own: an adapter's, where it brought one
    .gguf file                in place of the first two, whoever computes it

All of it is known before a weight is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from eft_engine.errors import CorruptWeightsError
from eft_engine.models.gguf_file import GGUFFile
from eft_engine.models.gguf_tokenizer import named_end_tokens
from eft_engine.models.planned_network import PlannedNetwork
from eft_engine.models.sources import ResolvedMember
from eft_engine.text.ends import MemberEnds, NamedEnd, ends_of_tokenizer
from eft_engine.text.tokenizer import Tokenizer

GENERATION_CONFIG = "generation_config.json"
DERIVED = "_from_model_config"
"""Is set where transformers made a generation configuration out of the configuration, defaults of its class included."""


def planned_ends(role: str, member: ResolvedMember, network: PlannedNetwork, tokenizer: Tokenizer) -> MemberEnds:
    """What a member's files name.

    Raises:
        CorruptWeightsError: a file cannot be read, or names something that is no token id.
    """
    named = [*(_of_folder(role, member, network) if network.gguf is None else _of_gguf(network.gguf))]
    if member.adapter is not None:
        named += _of_file(role, member.adapter / GENERATION_CONFIG, f"{GENERATION_CONFIG} of the adapter", ())
    return MemberEnds((*named, *ends_of_tokenizer(tokenizer)), tokenizer)


def loaded_ends(role: str, model: PreTrainedModel, tokenizer: Tokenizer) -> MemberEnds:
    """What a loaded model and its tokenizer name.

    Raises:
        CorruptWeightsError: something that is no token id.
    """
    of_config = tuple(_of_config(role, model.config, "configuration"))
    generation = getattr(model, "generation_config", None)
    derived = of_config if getattr(generation, DERIVED, False) else ()
    named = _named(role, getattr(generation, "eos_token_id", None), "generation configuration", doubtful=derived)
    return MemberEnds((*named, *of_config, *ends_of_tokenizer(tokenizer)), tokenizer)


def _of_gguf(file: GGUFFile) -> Iterator[NamedEnd]:
    for token_id, named_by in named_end_tokens(file).items():
        yield NamedEnd(token_id, named_by)


def _of_folder(role: str, member: ResolvedMember, network: PlannedNetwork) -> Iterator[NamedEnd]:
    assert network.config is not None, "torch has a configuration"
    of_config = tuple(_of_config(role, network.config, "config.json"))
    path = cached_file(
        member.source.location,
        GENERATION_CONFIG,
        revision=member.config.revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is not None:
        yield from _of_file(role, Path(path), GENERATION_CONFIG, of_config)
    yield from of_config


def _of_config(role: str, config: PreTrainedConfig, named_by: str) -> Iterator[NamedEnd]:
    """Of the configuration, and of its text's where it is multimodal. A single id may be a default of its class."""
    text = config.get_text_config()
    for own in (config,) if text is config else (config, text):
        eos = getattr(own, "eos_token_id", None)
        for end in _named(role, eos, named_by):
            yield replace(end, is_sure=isinstance(eos, list))


def _of_file(role: str, path: Path, named_by: str, of_config: Sequence[NamedEnd]) -> Iterator[NamedEnd]:
    """Of a generation configuration; what was made out of the configuration is no surer than that."""
    if not path.is_file():
        return
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        eos, is_derived = values.get("eos_token_id"), bool(values.get(DERIVED))
    except (ValueError, AttributeError) as error:
        raise CorruptWeightsError(
            f"{role}: {path} is damaged ({error}); download or save it again", member=role, source=str(path)
        ) from error
    yield from _named(role, eos, named_by, doubtful=of_config if is_derived else ())


def _named(role: str, eos: object, named_by: str, *, doubtful: Sequence[NamedEnd] = ()) -> Iterator[NamedEnd]:
    """Ids as configurations have them: one, a list, or none; a negative one stands for none."""
    doubtful_ids = {end.token_id for end in doubtful if not end.is_sure}
    ids = eos if isinstance(eos, list | tuple) else [] if eos is None else [eos]
    for token_id in ids:
        if not isinstance(token_id, int) or isinstance(token_id, bool):
            raise CorruptWeightsError(
                f"{role}: eos_token_id is {eos!r} in its {named_by}, and has to be a token id or a list of them",
                member=role,
            )
        if token_id >= 0:
            yield NamedEnd(token_id, named_by, is_sure=token_id not in doubtful_ids)
