"""Whether a network says in the engine's hands what it says by itself, tried on the network before anybody relies on it.

A short text is read as engines read: in chunks, beside another of another length, with drafts that are taken back. Windows,
chunks and the lengths at which rotary factors change are made short while it is read, for both sides, so that the text goes
beyond all of them. After an adapter was added, rows with it and without it are read side by side.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from eft_engine.errors import CorruptWeightsError, UnsupportedAdapterError, UnsupportedModelError
from eft_engine.models.network import Block

if TYPE_CHECKING:
    from eft_engine.models.language_model import LanguageModel

logger = logging.getLogger(__name__)

TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Largest allowed difference of logits, relative to the largest logit; other dtypes: 0.1, as their rounding differs by path."""

ROUNDED_ROWS = 0.01
"""The same where rows are rounded before they are multiplied."""

TEXT_LEN, FIRST_LEN, MATE_LEN, ADAPTER_TEXT_LEN = 36, 16, 11, 6
"""Tokens of a text, of its part before drafts are taken back, of the text beside it, and of the one for adapters."""

SPANS = {
    "sliding_window": 8,
    "attention_chunk_size": 8,
    "attention_window_size": 8,
    "window_size": 8,
    "keep_window_size": 8,
    "floor_scale": 8,
    "original_max_position_embeddings": 18,
}
"""What configurations and modules call the lengths at which something changes, and how long these are while a network is
checked.
"""

WHAT_TO_DO = (
    "docs/models.md lists the families that run; llama.cpp may run this one from a .gguf file (runtime='llama.cpp')"
)


ITS_OWN = "Let it have a network of its own, with MemberConfig(merge=True)"


@torch.inference_mode()
def check_network(network: LanguageModel) -> None:
    """Read two texts over slots, and compare with the model's own forward pass.

    Raises:
        CorruptWeightsError: its logits are not finite.
        UnsupportedModelError: it cannot be read that way, or says something else.
    """
    limit = min(network.logits_width, 1000)
    text = _text(network, TEXT_LEN)
    mate = [(11 * index + 5) % limit for index in range(MATE_LEN)]
    with _short_spans(network):
        try:
            said = _read(network, text, mate)
        except (TypeError, RuntimeError, AttributeError, IndexError, KeyError, ValueError, AssertionError) as error:
            raise UnsupportedModelError(
                f"{network.name}: {type(network.model).__name__} cannot be run over the engine's slots: {error}; {WHAT_TO_DO}",
                member=network.name,
            ) from error
        whole, beginning, beside = (
            network.own_logits(text),
            network.own_logits(text[:FIRST_LEN]),
            network.own_logits(mate),
        )
    if not all(logits.isfinite().all() for logits in (whole, beginning, beside)):
        raise CorruptWeightsError(
            f"{network.name}: the logits of {type(network.model).__name__} are not finite, also without the engine; its weights "
            "are damaged, or too large for their dtype",
            member=network.name,
        )
    if not network.turns_long_texts and not _difference(whole[:FIRST_LEN], beginning) <= _tolerance(network, beginning):
        raise UnsupportedModelError(
            f"{network.name}: what {type(network.model).__name__} says behind a token changes with tokens that come later, so that "
            f"no text can be written token by token; {WHAT_TO_DO}",
            member=network.name,
        )
    for row, own in zip(said, (beginning[-1], beside[4], beside[9], whole[-1], beside[-1]), strict=True):
        difference, allowed = _difference(row, own), _tolerance(network, own)
        if not difference <= allowed:
            raise UnsupportedModelError(
                f"{network.name}: the logits of {type(network.model).__name__} change by {difference:.2g} of their size (allowed "
                f"{allowed:.2g}) when it is run over the engine's slots, so it cannot be composed exactly; {WHAT_TO_DO}",
                member=network.name,
            )


def _read(network: LanguageModel, text: list[int], mate: list[int]) -> list[Tensor]:
    """Logits behind the first part of the text, behind 5 and 10 tokens of its mate, and behind the whole of both."""
    cache = network.kv_cache
    slots = [cache.allocate(), cache.allocate()]
    first, second = slots
    second.least_len = len(mate)
    try:
        network.forward([Block(second, mate[:4], 0), Block(first, text[:10], 0)])
        drafts = [token_id ^ 1 for token_id in text[FIRST_LEN : FIRST_LEN + 3]]
        rows = network.forward(
            [Block(first, [*text[10:FIRST_LEN], *drafts], 4, num_provisional=3), Block(second, mate[4:5], 1)]
        )
        said = [rows[0], rows[4]]
        first.truncate(FIRST_LEN)
        said += network.forward([Block(first, text[FIRST_LEN:-1], 0), Block(second, mate[5:10], 1)])
        said += network.forward([Block(first, text[-1:], 1), Block(second, mate[10:], 1)])
    finally:
        for slot in slots:
            cache.release(slot)
    return said


def _difference(row: Tensor, own: Tensor) -> float:
    """Largest difference relative to the largest logit; NaN where anything is."""
    return float((row - own).abs().max() / own.abs().max())


def _tolerance(network: LanguageModel, row: Tensor) -> float:
    return max(TOLERANCES.get(row.dtype, 0.1), ROUNDED_ROWS if network.rounds_rows else 0.0)


@contextmanager
def _short_spans(network: LanguageModel) -> Iterator[None]:
    """Windows and the like of the network's configurations and modules are short inside the block."""
    changed: list[tuple[Any, str, Any]] = []
    holders: dict[int, Any] = {id(network.model.config): network.model.config}
    for module in network.model.modules():
        holders[id(module)] = module
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            holders[id(config)] = config
    try:
        for holder in holders.values():
            for owner in (holder, *_rope_parameters(holder)):
                held = owner if isinstance(owner, dict) else vars(owner)
                for name, length in SPANS.items():
                    if isinstance(held.get(name), (int, float)) and held[name] > length:
                        changed.append((held, name, held[name]))
                        held[name] = length
        network.spans_changed()
        yield
    finally:
        for held, name, value in reversed(changed):
            held[name] = value
        network.spans_changed()


def _rope_parameters(holder: Any) -> list[dict[str, Any]]:
    """The rotary parameters of a configuration with two sets of factors, by kind of layer where there are several."""
    parameters = getattr(holder, "rope_parameters", None) if isinstance(holder, PreTrainedConfig) else None
    kinds = [parameters, *parameters.values()] if isinstance(parameters, dict) else []
    return [kind for kind in kinds if isinstance(kind, dict) and kind.get("rope_type") == "longrope"]


@torch.inference_mode()
def before_adapter(network: LanguageModel) -> Tensor:
    """What two equal rows say, to be compared with what they say when an adapter was added."""
    return _two_rows(network, None)


def _two_rows(network: LanguageModel, adapter: str | None) -> Tensor:
    """Logits `[2, width]` behind one text: without an adapter, and with this one."""
    slots = [network.kv_cache.allocate(), network.kv_cache.allocate()]
    try:
        return network.forward(
            [
                Block(slot, _text(network, ADAPTER_TEXT_LEN), 1, own)
                for slot, own in zip(slots, (None, adapter), strict=True)
            ]
        )
    finally:
        for slot in slots:
            network.kv_cache.release(slot)


def _text(network: LanguageModel, length: int) -> list[int]:
    return [(7 * index + 3) % min(network.logits_width, 1000) for index in range(length)]


@torch.inference_mode()
def check_adapter_rows(network: LanguageModel, adapter: str, *, before: Tensor, member: str, source: str) -> None:
    """Compare a row with the adapter and one without it with PEFT's own forward pass, and with what was said before it was added.

    Raises:
        UnsupportedAdapterError: the other row has changed, or the adapter says something else than in PEFT's hands.
    """
    try:
        alone, after = _two_rows(network, None), _two_rows(network, adapter)
    except (RuntimeError, ValueError) as error:
        raise UnsupportedAdapterError(
            f"{member}: the adapter in {source} cannot be added to some rows of a pass alone ({error}). {ITS_OWN}",
            member=member,
            source=source,
        ) from error
    # Rows of a pass share their experts, where there are some, and with other mates they are rounded otherwise.
    if not torch.equal(alone, before) or not _difference(after[0], before[0]) <= _tolerance(network, before):
        raise UnsupportedAdapterError(
            f"{member}: with the adapter in {source} beside it, {network.name} itself says something else than before. {ITS_OWN}",
            member=member,
            source=source,
        )
    own = network.own_logits(_text(network, ADAPTER_TEXT_LEN), adapter=adapter)[-1]
    difference = _difference(after[1], own)
    if not difference <= _tolerance(network, own):
        raise UnsupportedAdapterError(
            f"{member}: the adapter in {source} changes logits otherwise in a row of its own than in PEFT's hands, by "
            f"{difference:.2g} of their size. {ITS_OWN}",
            member=member,
            source=source,
        )
    if torch.equal(after[1], after[0]):
        logger.warning("%s: the adapter in %s changes nothing in a short text; was it trained?", member, source)
