"""Which members one request needs, over which prompt, and with which coefficients.

A *stream* is one network reading one list of tokens. Members that would read the same tokens with the same weights are one
stream: base and reference may be one model, several pairs may share a reference. Their coefficients add up, and a stream whose
sum is 0 cannot change the result, so it is not run. That one rule gives weight 0 (only the base runs), base = reference at
weight 1 (only the tuned model runs), and shared references.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from eft_engine.config import CompositionOptions
from eft_engine.decoding.composition import member_coefficients
from eft_engine.errors import InvalidOptionError
from eft_engine.models.loading import Trio
from eft_engine.models.network import Block, KVSlot, Network
from eft_engine.text.prompt import RenderedPrompt


@dataclass(eq=False)
class Stream:
    """One network (with or without an adapter) reading one prompt and everything generated after it.

    `members` are the indices of the members it stands for, in the order of `member_names`; the first of them carries the
    sum of their coefficients. `slot` is held while the sequence runs; `num_cached` of its tokens were there from the start.
    `spelling` has kept tokens that the network does not know, each as tokens of its own, in which it reads them.
    """

    network: Network
    adapter: str | None
    prompt_ids: tuple[int, ...]
    members: tuple[int, ...]
    slot: KVSlot | None = None
    num_cached: int = 0
    spelling: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def cache_len(self) -> int:
        """Tokens of this stream that its network has read."""
        return self.slot.length if self.slot else 0

    def reserved_len(self, max_output_len: int) -> int:
        """Positions that its slot may need. Padding of a step may pass them by less than a step's length."""
        return len(self.prompt_ids) + max_output_len

    def spelled(self, output_ids: Sequence[int]) -> Sequence[int]:
        """The tokens that it reads for these."""
        if not self.spelling or self.spelling.keys().isdisjoint(output_ids):
            return output_ids
        return [piece for token_id in output_ids for piece in self.spelling.get(token_id, (token_id,))]

    def read_ids(self, output_ids: Sequence[int]) -> tuple[int, ...]:
        """The tokens that its slot holds."""
        return (*self.prompt_ids, *self.spelled(output_ids))[: self.cache_len]

    def num_pending(self, output_ids: Sequence[int]) -> int:
        """Tokens still to be read before the next one can be predicted."""
        return len(self.prompt_ids) + len(self.spelled(output_ids)) - self.cache_len

    def block(self, output_ids: Sequence[int], *, num_tokens: int, num_logits: int) -> Block:
        """Feed the next `num_tokens` of prompt and output."""
        assert self.slot is not None, "a stream is fed while it holds a slot"
        start, num_prompt = self.cache_len, len(self.prompt_ids)
        stop = start + num_tokens
        token_ids = [
            *self.prompt_ids[start:stop],
            *self.spelled(output_ids)[max(0, start - num_prompt) : max(0, stop - num_prompt)],
        ]
        return Block(self.slot, token_ids, num_logits, self.adapter)

    def pending_block(
        self, output_ids: Sequence[int], lookahead: Sequence[int], *, max_logits: int, unread: Tensor | None = None
    ) -> Block:
        """Feed everything that was not read yet, lookahead included; logits for its last tokens, at most `max_logits`.

        `unread` holds the lookahead where only the device knows it. No token of the lookahead has a spelling of its own.
        """
        fed = [*output_ids, *lookahead]
        num_tokens = self.num_pending(fed)
        block = self.block(fed, num_tokens=num_tokens, num_logits=min(num_tokens, max_logits))
        num_drafts = min(num_tokens, len(lookahead))
        unread_ids = unread[-num_drafts:] if unread is not None and num_drafts else None
        return replace(block, num_provisional=num_drafts, unread_ids=unread_ids)

    def rewind(self, output_ids: Sequence[int]) -> None:
        """Forget what was read beyond the committed tokens, and the last of these, which is read when the next is predicted; more
        where layers keep a state and none stands there, which a step that failed may leave behind.
        """
        assert self.slot is not None, "a stream is rewound while it holds a slot"
        before_last = len(self.spelled(output_ids[:-1])) if output_ids else -1
        length = min(self.slot.length, len(self.prompt_ids) + before_last)
        self.slot.truncate(self.network.kv_cache.resumable_len(self.slot, length))


@dataclass(frozen=True)
class Route:
    """A request's streams and the coefficient of every member (0 for one that is not run or that another stands for).

    `kept_shares` says by member whose word on kept tokens counts how much (see `composition.add_kept`); the shares sum to 1, or
    there are none.
    """

    streams: tuple[Stream, ...]
    coefficients: tuple[float, ...]
    kept_shares: Mapping[int, float] = field(default_factory=dict)

    @functools.cached_property
    def carrier(self) -> dict[int, int]:
        """For every member that is run the one that has its log-probabilities: the first of its stream."""
        return {member: stream.members[0] for stream in self.streams for member in stream.members}


def plan_route(
    trio: Trio,
    prompt: RenderedPrompt,
    weights: Mapping[str, float],
    composition: CompositionOptions,
    *,
    always: Collection[int] = (),
) -> Route:
    """Streams and coefficients of a request.

    Args:
        trio: the members.
        prompt: token ids per role.
        weights: effective weight per pair, in the engine's order.
        composition: amplification changes coefficients; conservative mode needs all three members of its pair.
        always: members to run whatever their coefficients (scoring reports them).

    Raises:
        InvalidOptionError: conservative mode with more than one active pair.
    """
    coefficients = member_coefficients(list(weights.values()), amplification=composition.amplification)
    members = list(trio.members.values())
    grouped: dict[tuple[Network, str | None, tuple[int, ...]], list[int]] = {}
    for index, member in enumerate(members):
        prompt_ids = prompt.of(member.name)
        grouped.setdefault((member.network, member.adapter, prompt_ids), []).append(index)
    shares, spellings = _shares(weights) if trio.vocabulary.kept_ids else {}, trio.vocabulary.spellings
    needed = _needed_anyway(weights, composition).union(shares, always)
    streams: list[Stream] = []
    merged = [0.0] * len(coefficients)
    for (network, adapter, prompt_ids), indices in grouped.items():
        total = math.fsum(coefficients[index] for index in indices)
        if total != 0.0 or needed.intersection(indices):
            spelling = spellings.get(members[indices[0]].name, {})
            streams.append(Stream(network, adapter, prompt_ids, tuple(indices), spelling=spelling))
            merged[indices[0]] = total
    if (
        not streams
    ):  # every coefficient cancelled out, which leaves the uniform distribution; the base carries it with weight 0
        base = members[0]
        streams.append(
            Stream(base.network, base.adapter, prompt.of(base.name), (0,), spelling=spellings.get(base.name, {}))
        )
    route = Route(tuple(streams), tuple(merged))
    kept_shares: dict[int, float] = {}
    for index, share in shares.items():
        carrier = route.carrier[index]
        kept_shares[carrier] = kept_shares.get(carrier, 0.0) + share
    return replace(route, kept_shares=kept_shares)


def _shares(weights: Mapping[str, float]) -> dict[int, float]:
    """Of the tuned members of all active pairs: how much of the weights is theirs."""
    total = math.fsum(abs(weight) for weight in weights.values())
    return {2 * index + 1: abs(weight) / total for index, weight in enumerate(weights.values()) if weight != 0.0}


def _needed_anyway(weights: Mapping[str, float], composition: CompositionOptions) -> set[int]:
    """Members that conservative mode reads directly: base, tuned and reference of its one active pair."""
    if composition.conservative_top_p is None:
        return set()
    active = [index for index, weight in enumerate(weights.values()) if weight != 0.0]
    if len(active) > 1:
        raise InvalidOptionError(
            "conservative_top_p needs exactly one pair with a weight other than 0, got "
            + ", ".join(f"{name}={weight}" for name, weight in weights.items()),
            option="conservative_top_p",
            value=composition.conservative_top_p,
        )
    return {2 * index + 1 for index in active}


def conservative_member(weights: Mapping[str, float], composition: CompositionOptions) -> int | None:
    """Index of the tuned member whose nucleus conservative mode uses, or None when it changes nothing."""
    needed = _needed_anyway(weights, composition)
    return needed.pop() if needed else None


def draft_route(route: Route, weights: Mapping[str, float]) -> tuple[tuple[Stream, float], ...]:
    """Streams that draft, and their coefficients: the small models' own idea of the composition.

    With one active pair the tuned model alone; with several, their composition over the first one's reference, which stands in
    for the base. Empty when a stream that is needed is not run, or when nothing would be left to verify with.
    """
    active = [index for index, weight in enumerate(weights.values()) if weight != 0.0]
    stream_of = {member: stream for stream in route.streams for member in stream.members}
    if not active:
        return ()
    wanted: dict[int, float] = {}
    if len(active) == 1:
        wanted[2 * active[0] + 1] = 1.0
    else:
        values = list(weights.values())
        wanted[2 * active[0] + 2] = 1.0
        for index in active:
            wanted[2 * index + 1] = wanted.get(2 * index + 1, 0.0) + values[index]
            wanted[2 * index + 2] = wanted.get(2 * index + 2, 0.0) - values[index]
    if any(member not in stream_of for member in wanted):
        return ()
    coefficients: dict[Stream, float] = {}
    for member, coefficient in wanted.items():
        coefficients[stream_of[member]] = coefficients.get(stream_of[member], 0.0) + coefficient
    chosen = tuple((stream, coefficient) for stream, coefficient in coefficients.items() if coefficient != 0.0)
    base = stream_of.get(0)
    drafts_with_base = any(stream is base for stream, _ in chosen)
    return () if drafts_with_base or len(chosen) == len(route.streams) else chosen
