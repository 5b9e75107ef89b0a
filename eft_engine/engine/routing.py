"""Which members one request needs, over which prompt, and with which coefficients.

A *stream* is one network reading one list of tokens. Members that would read the same tokens with the same weights are one
stream: base and reference may be one model, several pairs may share a reference. Their coefficients add up, and a stream whose
sum is 0 cannot change the result, so it is not run. That one rule gives weight 0 (only the base runs), base = reference at
weight 1 (only the tuned model runs), and shared references.

Where a weight follows the token, a stream that matters at some position is held, and is run at the steps at which it matters; what
it has missed by then it reads at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from eft_engine.config import CompositionOptions
from eft_engine.decoding.composition import PairMembers, direction
from eft_engine.decoding.measures import OF_BASE
from eft_engine.engine.steering import Settled
from eft_engine.models.network import Block, KVSlot, Network
from eft_engine.weights import (
    Gate,
    Measure,
    MeasuredWeight,
    Proportional,
    Weight,
    is_off,
    numbers_of,
    parts,
    peak,
)

MAX_READ_TWICE = 8
"""Tokens that a copy which drafts may read before the network itself does."""


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

    def drafter(self, output_ids: Sequence[int]) -> Network:
        """Who drafts for it: its network, or a copy, where what is read twice then is little."""
        copy = self.network.drafter
        return copy if copy is not None and self.num_pending(output_ids) <= MAX_READ_TWICE else self.network

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


BASE = 0
"""The base's place among the members."""


@dataclass(frozen=True)
class Reader:
    """A member of a request: a network, an adapter on it, the prompt that it reads, and how it reads kept tokens."""

    name: str
    network: Network
    adapter: str | None
    prompt_ids: tuple[int, ...]
    spelling: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Route:
    """A request's streams, and the linear form of their log-probabilities.

    A member that another stands for has coefficient 0 everywhere, as has one that is not run.

    Attributes:
        streams: what may be run.
        pairs: members of each pair, in the order of the weights.
        fixed: coefficient of every member without the weights that follow the token.
        numbers: by pair the weight that is in `fixed`; 0 where it follows the token.
        directions: by pair of which the weight follows the token, what weight 1 adds to every member.
        needed: members whose stream is run at every position.
        read_by: by pair, members that are read directly wherever its weight is not 0.
        kept_by: by pair, the member whose word on kept tokens counts (see `composition.add_kept`); of those that have one.
        bounded: by pair that lifts implausible tokens with weight 1 at most (see `composition.bound_implausible`), what weight 1 of
            it adds to every member; of those whose weight may be more.
    """

    streams: tuple[Stream, ...]
    pairs: tuple[PairMembers, ...]
    fixed: tuple[float, ...]
    numbers: tuple[float, ...]
    directions: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    needed: frozenset[int] = frozenset()
    read_by: Mapping[int, frozenset[int]] = field(default_factory=dict)
    kept_by: Mapping[int, int] = field(default_factory=dict)
    bounded: Mapping[int, tuple[float, ...]] = field(default_factory=dict)

    @functools.cached_property
    def carrier(self) -> dict[int, int]:
        """For every member that is run the one that has its log-probabilities: the first of its stream."""
        return {member: stream.members[0] for stream in self.streams for member in stream.members}

    def measured_members(self, pair: int, measure: Measure) -> tuple[int, ...]:
        """Whose log-probabilities a measure of a pair asks for: the base, or the pair's two sides."""
        if measure in OF_BASE:
            return (self.carrier[BASE],)
        own = self.pairs[pair]
        return self.carrier[own.tuned], self.carrier[BASE if own.reference is None else own.reference]

    def bounds(self, pair: int, weight: Settled) -> bool:
        """Whether a pair's bound may matter where its weight is this one."""
        return pair in self.bounded and _exceeds_one(weight)

    def bounding_members(self, pair: int) -> frozenset[int]:
        """Who is read where a pair's bound may matter: its tuned model, and all that its difference is made of."""
        return frozenset(
            {self.carrier[self.pairs[pair].tuned]}
            | {member for member, by in enumerate(self.bounded[pair]) if by != 0.0}
        )

    def rows(self, weights: Sequence[Sequence[Settled]]) -> Rows:
        """What is to be composed at rows with these weights by pair."""
        coefficients: list[list[float]] = []
        numbers: list[list[float]] = []
        measured: list[tuple[int, int, MeasuredWeight]] = []
        needed = set(self.needed)
        for row, own in enumerate(weights):
            coefficient = list(self.fixed)
            for pair, change in self.directions.items():
                weight = own[pair]
                if isinstance(weight, float):
                    coefficient = [value + weight * by for value, by in zip(coefficient, change, strict=True)]
                else:
                    measured.append((row, pair, weight))
                    needed.update(self.measured_members(pair, measure_of(weight)))
                    needed.update(member for member, by in enumerate(change) if by != 0.0)
                if not isinstance(weight, float) or weight != 0.0:
                    needed |= self.read_by[pair]
                if self.bounds(pair, weight):
                    needed |= self.bounding_members(pair)
            needed.update(member for member, value in enumerate(coefficient) if value != 0.0)
            coefficients.append(coefficient)
            numbers.append(list(map(_number, own)))
        active = tuple(stream for stream in self.streams if stream.members[0] in needed)
        return Rows(coefficients, numbers, measured, active or self.streams[:1])


@dataclass(frozen=True)
class Rows:
    """Rows of one request in an evaluation.

    Attributes:
        coefficients: by row and member; what measured weights add is not in it.
        weights: by row and pair; 0 where it is measured.
        measured: row, pair and weight, of those that are.
        active: streams that matter in some row.
    """

    coefficients: list[list[float]]
    weights: list[list[float]]
    measured: list[tuple[int, int, MeasuredWeight]]
    active: tuple[Stream, ...]


def _number(weight: Settled) -> float:
    return weight if isinstance(weight, float) else 0.0


def _exceeds_one(weight: Weight) -> bool:
    """Whether it is more than 1 for some token."""
    return max(numbers_of(weight)) > 1.0


def measure_of(weight: MeasuredWeight) -> Measure:
    """What it measures."""
    match weight:
        case Gate(by=measure) | Proportional(to=measure):
            return measure


def plan_route(
    readers: Sequence[Reader],
    pairs: Sequence[PairMembers],
    weights: Sequence[Mapping[str, Weight]],
    composition: CompositionOptions,
    *,
    keeps: Collection[int] = (),
    always: Collection[int] = (),
    origin: int = BASE,
) -> Route:
    """Streams and coefficients of a request.

    Args:
        readers: its members, the base first.
        pairs: places of each pair's members.
        weights: effective weights by pair, in the order of `pairs`; several where it is open which of them will hold.
        composition: amplification changes coefficients, conservative mode and bounds need tuned members, plausibility the base.
        keeps: pairs whose tuned members have tokens that only they have.
        always: members to run whatever their coefficients (scoring reports them).
        origin: the member that pairs change; another than the base where it answers alone.
    """
    columns = list(zip(*(own.values() for own in weights), strict=True))
    changes = [direction(pair, len(readers), amplification=composition.amplification) for pair in pairs]
    follows = [not _is_one_number(own) for own in columns]
    matters = [any(not is_off(weight) for weight in own) for own in columns]
    fixed_terms = [[1.0 if index == origin else 0.0] for index in range(len(readers))]
    for own, change, following in zip(columns, changes, follows, strict=True):
        if not following:
            for terms, by in zip(fixed_terms, change, strict=True):
                terms.append(peak(own[0]) * by)

    places: dict[tuple[Network, str | None, tuple[int, ...]], list[int]] = {}
    for index, reader in enumerate(readers):
        places.setdefault((reader.network, reader.adapter, reader.prompt_ids), []).append(index)
    first_of = {index: indices[0] for indices in places.values() for index in indices}

    def merged(values: Iterable[Sequence[float]]) -> tuple[float, ...]:
        gathered: list[list[float]] = [[] for _ in readers]
        for index, terms in enumerate(values):
            gathered[first_of[index]] += terms
        return tuple(math.fsum(terms) for terms in gathered)

    fixed = merged(fixed_terms)
    directions = {
        pair: merged([value] for value in changes[pair])
        for pair in range(len(pairs))
        if follows[pair] and matters[pair]
    }
    is_read = composition.conservative_top_p is not None
    read_by = {
        pair: frozenset({first_of[own.tuned]} if is_read or pair in keeps else ())
        for pair, own in enumerate(pairs)
        if matters[pair]
    }
    kept_by = {pair: first_of[own.tuned] for pair, own in enumerate(pairs) if matters[pair] and pair in keeps}
    bounded = {
        pair: merged([value] for value in changes[pair])
        for pair, own in enumerate(pairs)
        if composition.tuned_plausibility and own.reference is not None and any(map(_exceeds_one, columns[pair]))
    }
    bounded = {pair: change for pair, change in bounded.items() if any(change)}
    bounding = {
        pair: {first_of[pairs[pair].tuned]} | {index for index, value in enumerate(change) if value != 0.0}
        for pair, change in bounded.items()
    }
    needed = {first_of[index] for index in always} | ({first_of[BASE]} if composition.min_plausibility else set())
    needed.update(*(read for pair, read in (*read_by.items(), *bounding.items()) if pair not in directions))
    held = needed | {index for index, value in enumerate(fixed) if value != 0.0}
    held.update(index for change in directions.values() for index, value in enumerate(change) if value != 0.0)
    held.update(*read_by.values(), *bounding.values())
    for pair in directions:
        sides = pairs[pair]
        measures = {
            measure_of(part) for weight in columns[pair] for part in parts(weight) if isinstance(part, MeasuredWeight)
        }
        if measures & OF_BASE.keys() or (measures and sides.reference is None):
            held.add(first_of[BASE])
        if measures - OF_BASE.keys():
            held.add(first_of[sides.tuned])
            if sides.reference is not None:
                held.add(first_of[sides.reference])
    if not held:  # every coefficient cancelled out, which leaves the uniform distribution; the base carries it with 0
        held.add(BASE)
    streams = [
        Stream(network, adapter, prompt_ids, tuple(indices), spelling=readers[indices[0]].spelling)
        for (network, adapter, prompt_ids), indices in places.items()
        if indices[0] in held
    ]
    numbers = tuple(0.0 if following else peak(own[0]) for own, following in zip(columns, follows, strict=True))
    return Route(tuple(streams), tuple(pairs), fixed, numbers, directions, frozenset(needed), read_by, kept_by, bounded)


def _is_one_number(weights: Sequence[Weight]) -> bool:
    return all(isinstance(weight, float) and weight == weights[0] for weight in weights)


def draft_route(route: Route, weights: Sequence[Weight]) -> tuple[tuple[Stream, float], ...]:
    """Streams that draft, and their coefficients: the small models' own idea of the composition.

    With one active pair the tuned model alone; with several, their composition over the first one's reference, which stands in
    for the base. Empty when a stream that is needed is not run, or when nothing would be left to verify with.

    Args:
        route: the request's.
        weights: of the pairs of small models, the first of the route's pairs. Of one that follows the token the largest counts.
    """
    active = [index for index, weight in enumerate(weights) if not is_off(weight)]
    stream_of = {member: stream for stream in route.streams for member in stream.members}
    if not active:
        return ()
    wanted: dict[int, float] = {}
    if len(active) == 1:
        wanted[route.pairs[active[0]].tuned] = 1.0
    else:
        references = [own for index in active if (own := route.pairs[index].reference) is not None]
        if not references:
            return ()
        wanted[references[0]] = 1.0
        for index in active:
            pair, weight = route.pairs[index], peak(weights[index])
            wanted[pair.tuned] = wanted.get(pair.tuned, 0.0) + weight
            if pair.reference is not None:
                wanted[pair.reference] = wanted.get(pair.reference, 0.0) - weight
    if any(member not in stream_of for member in wanted):
        return ()
    coefficients: dict[Stream, float] = {}
    for member, coefficient in wanted.items():
        coefficients[stream_of[member]] = coefficients.get(stream_of[member], 0.0) + coefficient
    chosen = tuple((stream, coefficient) for stream, coefficient in coefficients.items() if coefficient != 0.0)
    base = stream_of.get(BASE)
    drafts_with_base = any(stream is base for stream, _ in chosen)
    return () if drafts_with_base or len(chosen) == len(route.streams) else chosen
