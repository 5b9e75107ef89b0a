"""What comes of the members' log-probabilities: weights are measured where they ask for it, distributions composed, and tokens
ruled out or kept as composition options say.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from eft_engine.decoding.composition import (
    add_kept,
    bound_implausible,
    by_row,
    compose,
    keep_plausible,
    keep_tuned_outside_nuclei,
)
from eft_engine.decoding.measures import OF_BASE, OF_PAIR
from eft_engine.engine.routing import BASE, Rows, measure_of
from eft_engine.engine.sequence import GenerationSequence, Sequence
from eft_engine.transfer import upload
from eft_engine.weights import Gate, Measure, MeasuredWeight, Proportional


@dataclass(frozen=True)
class Evaluation:
    """Log-probabilities of the evaluated sequences.

    `rows` says which rows belong to which sequence, in order, and `forms` what is composed there. `logprobs` and `normalisers` are
    `[rows, members, width]` and `[rows, members]` (zeros for members that were not run), `coefficients` `[rows, members]` and
    `weights` `[rows, pairs]`. `kept_ids` are tokens that only tuned members have, `[kept]`; None: there are none.
    """

    rows: tuple[tuple[Sequence, range], ...]
    forms: tuple[Rows, ...]
    logprobs: Tensor
    normalisers: Tensor
    coefficients: Tensor
    weights: Tensor
    kept_ids: Tensor | None = None

    def active(self, sequence: Sequence) -> dict[int, int]:
        """By member that was run for this sequence the one that has its log-probabilities."""
        form = next(form for (own, _), form in zip(self.rows, self.forms, strict=True) if own is sequence)
        return {member: stream.members[0] for stream in form.active for member in stream.members}

    def settle_weights(self) -> None:
        """Measure what weights ask for, and add what comes of it to weights and coefficients."""
        asked: dict[tuple[Measure, tuple[int, ...]], list[_Measured]] = defaultdict(list)
        for (sequence, rows), form in zip(self.rows, self.forms, strict=True):
            route = sequence.request.route
            for row, pair, weight in form.measured:
                measure = measure_of(weight)
                own = _Measured(rows.start + row, pair, weight, route.directions[pair])
                asked[measure, route.measured_members(pair, measure)].append(own)
        device = self.logprobs.device
        for (measure, members), found in asked.items():
            places = upload([own.row for own in found], device)
            sides = [self._of_member(places, member) for member in members]
            values = by_row(OF_BASE[measure] if measure in OF_BASE else OF_PAIR[measure], *sides)
            weights = _weights_of(values, upload([_bounds(own.weight) for own in found], device))
            self.weights[places, upload([own.pair for own in found], device)] = weights
            width = self.coefficients.shape[1]
            changes = upload([[*own.change, *[0.0] * (width - len(own.change))] for own in found], device)
            self.coefficients.index_add_(0, places, weights[:, None] * changes)

    def _of_member(self, rows: Tensor, member: int) -> Tensor:
        """Log-probabilities over the tokens that all members have, `[rows, width]`."""
        own = self.logprobs[rows, member]
        return own if self.kept_ids is None else own.index_fill_(-1, self.kept_ids, -torch.inf)

    def composed(self) -> Tensor:
        """Composed scores `[rows, width]`, not normalised; with what composition options ask for, and kept tokens."""
        scores = compose(self.logprobs, self.coefficients)
        for (sequence, rows), form in zip(self.rows, self.forms, strict=True):
            self._bound_implausible(scores[rows.start : rows.stop], sequence, rows, form)
            self._keep_tuned(scores[rows.start : rows.stop], sequence, rows)
            if not isinstance(sequence, GenerationSequence) or not sequence.narrows:
                self.keep_plausible(scores[rows.start : rows.stop], sequence, rows)
        if self.kept_ids is not None:
            self._add_kept(scores, self.kept_ids)
        return scores

    def _bound_implausible(self, scores: Tensor, sequence: Sequence, rows: range, form: Rows) -> None:
        """Bound what pairs with a weight above 1 lift, in place; `scores` are of these rows."""
        route = sequence.request.route
        asked = {pair for _, pair, weight in form.measured if route.bounds(pair, weight)}
        asked.update(pair for pair in route.bounded if any(route.bounds(pair, own[pair]) for own in form.weights))
        for pair in sorted(asked):
            places = torch.arange(rows.start, rows.stop, device=scores.device)
            own = self.logprobs[rows.start : rows.stop, : len(route.bounded[pair])]
            differences = compose(own, upload([list(route.bounded[pair])] * len(rows), scores.device))
            tuned = self._of_member(places, route.carrier[route.pairs[pair].tuned])
            share = sequence.request.composition.tuned_plausibility
            bound_implausible(scores, differences, tuned, self.weights[places, pair], share)

    def _keep_tuned(self, scores: Tensor, sequence: Sequence, rows: range) -> None:
        """Conservative mode where it is asked for, in place; `scores` are of these rows."""
        top_p, route = sequence.request.composition.conservative_top_p, sequence.request.route
        if top_p is not None and route.read_by:
            pairs, places = list(route.read_by), torch.arange(rows.start, rows.stop, device=scores.device)
            tuned = [self._of_member(places, route.carrier[route.pairs[pair].tuned]) for pair in pairs]
            sizes = torch.full((len(rows),), top_p, device=scores.device)
            shares = self._shares(places, pairs)
            scores.copy_(keep_tuned_outside_nuclei(scores, torch.stack(tuned, dim=1), shares, sizes))

    def keep_plausible(self, scores: Tensor, sequence: Sequence, rows: range) -> None:
        """Forbid, in place, what the base finds implausible among the tokens that are possible; `scores` are of these rows."""
        share = sequence.request.composition.min_plausibility
        if share > 0.0:
            base = self.logprobs[rows.start : rows.stop, sequence.request.route.carrier[BASE]]
            shares = torch.full((len(rows),), share, device=scores.device)
            if self.kept_ids is None:
                keep_plausible(scores, base, shares)
            else:  # of tokens that the base does not have it says nothing
                kept = scores.index_select(-1, self.kept_ids)
                keep_plausible(scores, base.index_fill(-1, self.kept_ids, -torch.inf), shares)
                scores.index_copy_(-1, self.kept_ids, kept)

    def _shares(self, rows: Tensor, pairs: Seq[int]) -> Tensor:
        """How much of all weights of these pairs is each one's, `[rows, pairs]`; 0 where all are."""
        own = self.weights[rows][:, upload(list(pairs), rows.device)].abs()
        total = own.sum(dim=-1, keepdim=True)
        return torch.where(total > 0, own / total.clamp_min(torch.finfo(own.dtype).tiny), 0.0)

    def _add_kept(self, scores: Tensor, kept_ids: Tensor) -> None:
        """For all sequences together whose tuned members are the same."""
        alike: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
        for sequence, own in self.rows:
            alike[tuple(sequence.request.route.kept_by.items())] += own
        for kept_by, places in alike.items():
            if kept_by:
                rows = upload(places, scores.device)
                members = upload([member for _, member in kept_by], scores.device)
                kept = self.logprobs[rows[:, None, None], members[:, None], kept_ids]  # [rows, models, kept]
                with_kept = scores[rows]
                add_kept(with_kept, kept, self._shares(rows, [pair for pair, _ in kept_by]), kept_ids)
                scores[rows] = with_kept

    def own_logprobs(self, rows: slice, token_ids: Tensor) -> Tensor:
        """What members give one token per row, of all tokens that they have: log-probabilities `[rows, members]`."""
        own = self.logprobs[rows]
        wanted = token_ids[:, None, None].expand(-1, own.shape[1], 1)
        values = own.gather(-1, wanted)[:, :, 0]
        if self.kept_ids is None:
            return values
        return values - torch.nn.functional.softplus(own[:, :, self.kept_ids].logsumexp(dim=-1))


@dataclass(frozen=True)
class _Measured:
    """A weight that is measured: at which row, of which pair, and what weight 1 of it adds to the coefficients."""

    row: int
    pair: int
    weight: MeasuredWeight
    change: tuple[float, ...]


def _weights_of(values: Tensor, bounds: Tensor) -> Tensor:
    """Weights `[rows]` for measured values `[rows]` and what `_bounds` says of each."""
    above, below, weight, factor, most, otherwise = bounds.unbind(dim=-1)
    inside = (values > above) & ((values < below) | below.isposinf())  # a divergence may be infinite
    in_proportion = torch.minimum(torch.maximum(factor * values, -most), most)
    return torch.where(inside, torch.where(factor == 0.0, weight, in_proportion), otherwise)


def _bounds(weight: MeasuredWeight) -> list[float]:
    """The measure's bounds; the weight between them, or factor and bound of one in proportion; and the weight elsewhere."""
    match weight:
        case Gate(above=above, below=below, weight=inside, otherwise=outside):
            return [
                -math.inf if above is None else above,
                math.inf if below is None else below,
                inside,
                0.0,
                math.inf,
                outside,
            ]
        case Proportional(factor=factor, most=most):
            return [-math.inf, math.inf, 0.0, factor, most, 0.0]
