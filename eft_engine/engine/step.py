"""One step of the engine: prefill, draft, evaluate, verify, commit.

prefill    prompts that are too long for this step's evaluation read their next chunk
draft      the next tokens are guessed, where that pays
evaluate   every ready sequence: all its streams read what they have not, and give logits for their last token(s)
verify     compose each row, draw the target's tokens, compare the drafts with them
commit     tokens become text, finished sequences tell their callers

On an accelerator everything up to the draws is queued; the host reads once, what `verify` found. Beyond that it reads only for
sequences that ask for log-probabilities, and for drafts under a grammar or penalties.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from eft_engine.decoding.composition import add_kept, compose, keep_plausible, keep_tuned_outside_nuclei
from eft_engine.decoding.measures import OF_BASE, OF_PAIR
from eft_engine.decoding.sampling import choose, forbid, needs_penalties, penalise
from eft_engine.engine.drafting import Drafter
from eft_engine.engine.metrics import EngineTotals
from eft_engine.engine.routing import BASE, Rows, measure_of
from eft_engine.engine.running import StreamRunner, Work
from eft_engine.engine.scheduler import PrefillWork, StepPlan
from eft_engine.engine.sequence import GenerationSequence, ScoringSequence, Sequence
from eft_engine.errors import NonFiniteLogitsError
from eft_engine.models.network import Block, KVSlot, Network
from eft_engine.outputs import PairScore, TokenLogprobs, TokenScore, TopToken
from eft_engine.text.token_bytes import TokenBytes
from eft_engine.text.tokenizer import Tokenizer
from eft_engine.text.vocabulary import SharedVocabulary
from eft_engine.transfer import upload
from eft_engine.weights import Gate, Measure, MeasuredWeight, Proportional

IMPOSSIBLE = -1
"""Stands for a token where none was drawn."""

logger = logging.getLogger(__name__)


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
            values = OF_BASE[measure](sides[0]) if measure in OF_BASE else OF_PAIR[measure](sides[0], sides[1])
            bounds = upload(
                [_bounds(own.weight) for own in found], device
            )  # above, below, weight, factor, most, otherwise
            inside = (values > bounds[:, 0]) & (values < bounds[:, 1])
            most = bounds[:, 4]
            open_ = torch.minimum(torch.maximum(bounds[:, 2] + bounds[:, 3] * values, -most), most)
            weights = torch.where(inside, torch.where(bounds[:, 3] == 0.0, bounds[:, 2], open_), bounds[:, 5])
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
        for sequence, rows in self.rows:
            top_p = sequence.request.composition.conservative_top_p
            pairs = list(sequence.request.route.read_by)
            if top_p is not None and pairs:
                span = slice(rows.start, rows.stop)
                where = torch.arange(rows.start, rows.stop, device=scores.device)
                carrier = sequence.request.route.carrier
                tuned = [self._of_member(where, carrier[sequence.request.route.pairs[pair].tuned]) for pair in pairs]
                sizes = torch.full((len(rows),), top_p, device=scores.device)
                shares = self._shares(where, pairs)
                scores[span] = keep_tuned_outside_nuclei(scores[span], torch.stack(tuned, dim=1), shares, sizes)
        for sequence, rows in self.rows:
            if not isinstance(sequence, GenerationSequence) or not sequence.narrows:
                self.keep_plausible(scores[rows.start : rows.stop], sequence, rows)
        if self.kept_ids is not None:
            self._add_kept(scores, self.kept_ids)
        return scores

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


def _bounds(weight: MeasuredWeight) -> list[float]:
    """Of the measure `above` and `below`; between them `weight + factor * measure`, `most` at most, and `otherwise` elsewhere."""
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
            return [-math.inf, math.inf, 0.0, factor, most, math.copysign(most, factor)]


@dataclass(frozen=True)
class Verdict:
    """What the host reads of a step: for every row whether it is a proper distribution, the target's token there, and whether some
    weight was not 0.

    `token_ids` has None where nothing was drawn or no token is possible.
    """

    usable: list[bool]
    token_ids: list[int | None]
    steered: list[bool]


class Stepper:
    """Runs steps over the networks of one trio. Belongs to the engine's thread."""

    def __init__(
        self,
        vocabulary: SharedVocabulary,
        tokenizer: Tokenizer,
        *,
        device: torch.device,
        totals: EngineTotals,
        unknown_ids: Mapping[tuple[Network, str | None], frozenset[int]] | None = None,
    ) -> None:
        self._runner = StreamRunner(vocabulary, device=device, totals=totals, unknown_ids=unknown_ids)
        self._drafter = Drafter(self._runner)
        self._token_bytes = TokenBytes(tokenizer)
        self._totals = totals

    @property
    def last_pass(self) -> float:
        """When the last pass of a network ended, by `time.monotonic`; 0 before the first."""
        return self._totals.last_pass

    def check_device(self) -> None:
        """Raise what the device raises if it is lost; after some errors of a GPU everything that comes later fails too."""
        if self._runner.device.type == "cuda":
            torch.cuda.synchronize(self._runner.device)

    def calibrate(self, networks: Seq[Network]) -> None:
        """See `StreamRunner.calibrate`."""
        self._runner.calibrate(networks)

    @torch.inference_mode()
    def step(self, plan: StepPlan) -> None:
        """Run one step. Sequences that end in it are marked finished (or failed) and have told their callers."""
        self._prefill(plan.prefill)
        if not plan.ready:
            return
        self._drafter.draft([sequence for sequence in plan.ready if isinstance(sequence, GenerationSequence)])
        scoring = [sequence for sequence in plan.ready if isinstance(sequence, ScoringSequence)]
        for sequence in scoring:
            sequence.share(len(scoring))
        num_rows = sum(1 + len(sequence.lookahead()) for sequence in plan.ready)
        with self._runner.timing(Work.VERIFY, num_rows):
            evaluation = self._evaluate(plan.ready)
            scores = evaluation.composed()
            verdict = self._verify(evaluation, scores)
            self._commit(evaluation, scores, verdict)

    def _prefill(self, works: Seq[PrefillWork]) -> None:
        blocks = []
        for work in works:
            block = work.stream.block(work.sequence.output_ids, num_tokens=work.num_tokens, num_logits=0)
            blocks.append((work.stream.network, block))
            work.sequence.count_forward(work.stream)
        self._runner.read(blocks)

    def _evaluate(self, sequences: Seq[Sequence]) -> Evaluation:
        """Run the streams of these sequences that matter, over their drafts; what drafting has predicted is not run again."""
        rows: list[tuple[Sequence, range]] = []
        forms: list[Rows] = []
        blocks: list[tuple[Network, Block]] = []
        places: dict[KVSlot, tuple[int, int]] = {}  # first row and member of a block's logits
        kept: list[tuple[int, int, Tensor, Tensor]] = []
        num_rows = 0
        for sequence in sequences:
            form = sequence.rows_in_reach()
            lookahead, unread = sequence.lookahead(), sequence.unread
            own = range(num_rows, num_rows + 1 + len(lookahead))
            for stream in form.active:
                member = stream.members[0]
                known = sequence.kept_rows(stream)
                kept += [(own.start + index, member, *row) for index, row in enumerate(known)]
                block = stream.pending_block(
                    sequence.output_ids, lookahead, max_logits=len(own) - len(known), unread=unread
                )
                assert block.num_logits == len(own) - len(known), "a stream predicts what it has not predicted yet"
                blocks.append((stream.network, block))
                places[block.slot] = (own.stop - block.num_logits, member)
                sequence.count_forward(stream)
            rows.append((sequence, own))
            forms.append(form)
            num_rows = own.stop

        device, width = self._runner.device, self._runner.width
        coefficients = upload(_padded([own for form in forms for own in form.coefficients]), device)
        weights = upload(_padded([own for form in forms for own in form.weights]), device)
        normalisers = torch.zeros(coefficients.shape, device=device)
        logprobs = torch.zeros(*coefficients.shape, width, device=device)  # [rows, members, width]
        for group, values, norms in self._runner.logprobs(blocks):
            row_ids = [places[block.slot][0] + offset for block in group for offset in range(block.num_logits)]
            member_ids = [places[block.slot][1] for block in group for _ in range(block.num_logits)]
            at = upload([row_ids, member_ids], device, dtype=torch.long)
            logprobs[at[0], at[1]] = values
            normalisers[at[0], at[1]] = norms
        for row, member, known_values, known_norm in kept:
            logprobs[row, member] = known_values
            normalisers[row, member] = known_norm
        evaluation = Evaluation(
            tuple(rows), tuple(forms), logprobs, normalisers, coefficients, weights, self._runner.kept_ids
        )
        evaluation.settle_weights()
        return evaluation

    def _verify(self, evaluation: Evaluation, scores: Tensor) -> Verdict:
        """Draw the target's token at every row that generates, and read the draws, together with drafts that are still unread."""
        scores.index_fill_(-1, self._runner.masked_ids, -torch.inf)
        # A maximum that is finite rules out NaN, +inf and "everything forbidden".
        usable = (scores.amax(dim=-1) + 0.0 * evaluation.normalisers.sum(dim=-1)).isfinite()
        generating = [
            (sequence, rows) for sequence, rows in evaluation.rows if isinstance(sequence, GenerationSequence)
        ]
        wanted = [(sequence, row, row - rows.start) for sequence, rows in generating for row in rows]
        token_ids = torch.full((len(scores),), IMPOSSIBLE, device=scores.device)
        if wanted:
            own_rows = upload([row for _, row, _ in wanted], scores.device)
            token_ids[own_rows] = self._draw(evaluation, scores[own_rows], generating, wanted)
        unread = [(sequence, drafts) for sequence, _ in generating if (drafts := sequence.unread) is not None]
        steered = (evaluation.weights != 0.0).any(dim=-1)
        parts = [usable.long(), token_ids, steered.long(), *(drafts for _, drafts in unread)]
        read = torch.cat(parts).tolist()
        start = 3 * len(scores)
        for sequence, drafts in unread:
            sequence.read_drafts(read[start : start + len(drafts)])
            start += len(drafts)
        drawn = read[len(scores) : 2 * len(scores)]
        return Verdict(
            usable=[bool(row) for row in read[: len(scores)]],
            token_ids=[None if token_id == IMPOSSIBLE else token_id for token_id in drawn],
            steered=[bool(row) for row in read[2 * len(scores) : 3 * len(scores)]],
        )

    def _draw(
        self,
        evaluation: Evaluation,
        own: Tensor,
        generating: Seq[tuple[GenerationSequence, range]],
        wanted: Seq[tuple[GenerationSequence, int, int]],
    ) -> Tensor:
        """Token ids `[rows]` for composed scores `own` `[rows, width]`, which are changed in place; see `_verify`."""
        for index, (sequence, row, offset) in enumerate(wanted):
            if needs_penalties(sequence.sampling):
                # The repetition penalty depends on the sign of a score, so it wants the scale of the logits back.
                own[index] += (evaluation.coefficients[row] * evaluation.normalisers[row]).sum()
                penalise(own[index], sequence.sampling, sequence.history_after(offset))
        start = 0
        for sequence, rows in generating:
            if sequence.grammar is not None:
                forbid(own[start : start + len(rows)], sequence.grammar_masks())
            if sequence.narrows:
                evaluation.keep_plausible(own[start : start + len(rows)], sequence, rows)
            start += len(rows)
        params = [sequence.sampling for sequence, _, _ in wanted]
        times = [sequence.race_times(offset, self._runner.width, own.device) for sequence, _, offset in wanted]
        possible = own.amax(dim=-1).isfinite()  # a logit bias or a grammar may have forbidden everything
        return choose(own, params, times).masked_fill(~possible, IMPOSSIBLE)

    def _commit(self, evaluation: Evaluation, scores: Tensor, verdict: Verdict) -> None:
        """Tell every sequence what came of its rows.

        A sequence whose next token has no distribution fails; a bad row after a draft only means that the draft leads nowhere.
        """
        for sequence, rows in evaluation.rows:
            if isinstance(sequence, ScoringSequence):
                if all(verdict.usable[row] for row in rows):
                    self._commit_scores(evaluation, scores, sequence, rows)
                else:
                    self._fail_unusable(evaluation, sequence, rows)
            elif isinstance(sequence, GenerationSequence):
                if verdict.usable[rows.start]:
                    self._commit_tokens(evaluation, scores, sequence, rows, verdict)
                else:
                    self._fail_unusable(evaluation, sequence, rows[:1])

    def _commit_tokens(
        self, evaluation: Evaluation, scores: Tensor, sequence: GenerationSequence, rows: range, verdict: Verdict
    ) -> None:
        """Commit the target's tokens up to the first one that a draft did not lead to."""
        token_ids: list[int] = []
        for row in rows:
            token_id = verdict.token_ids[row]
            if token_id is None or not verdict.usable[row]:
                break
            token_ids.append(token_id)
        if not token_ids:
            self._fail(sequence, "no token is possible, the logit bias or the grammar forbids all of them")
            return
        token_ids = sequence.in_time(token_ids)
        token_ids = token_ids[: sequence.num_verified(token_ids)]
        logprobs = [
            self._token_logprobs(
                evaluation, scores, sequence, row, token_id, is_first=not sequence.output_ids and not place
            )
            for place, (row, token_id) in enumerate(zip(rows, token_ids, strict=False))
        ]
        try:
            sequence.commit(token_ids, logprobs, verdict.steered[rows.start : rows.start + len(token_ids)])
        except Exception as error:
            request_id = sequence.request.request_id
            logger.exception(
                "request %s could not take its tokens; it fails, the others go on",
                request_id,
                extra={"request_id": request_id},
            )
            sequence.fail_step(error)

    def _fail_unusable(self, evaluation: Evaluation, sequence: Sequence, rows: range) -> None:
        names = sequence.request.member_names
        finite = evaluation.normalisers[rows.start : rows.stop, : len(names)].isfinite().all(dim=0).tolist()
        members = [name for name, fine in zip(names, finite, strict=True) if not fine]
        reason = f"{', '.join(members)} returned NaN or infinite logits" if members else "no token is possible"
        self._fail(sequence, reason)

    def _fail(self, sequence: Sequence, reason: str) -> None:
        position = len(sequence.output_ids)
        sequence.fail(NonFiniteLogitsError(f"at output position {position}: {reason}", position=position))

    def _token_logprobs(
        self,
        evaluation: Evaluation,
        scores: Tensor,
        sequence: GenerationSequence,
        row: int,
        token_id: int,
        *,
        is_first: bool,
    ) -> TokenLogprobs | None:
        num_top = sequence.sampling.logprobs
        if num_top is None:
            return None
        composed = scores[row].log_softmax(dim=-1)
        values, ids = composed.topk(min(num_top, self._runner.width))
        carrier = evaluation.active(sequence)
        own = evaluation.own_logprobs(slice(row, row + 1), upload([token_id], scores.device))[0].tolist()
        text_of, bytes_of = self._token_bytes.text_of, self._token_bytes.of
        return TokenLogprobs(
            token_id=token_id,
            token=text_of(token_id, is_first=is_first),
            logprob=float(composed[token_id]),
            utf8=bytes_of(token_id, is_first=is_first),
            top=tuple(
                TopToken(top_id, text_of(top_id, is_first=is_first), value, bytes_of(top_id, is_first=is_first))
                for top_id, value in zip(ids.tolist(), values.tolist(), strict=True)
            ),
            members={sequence.request.member_names[member]: own[carrier[member]] for member in sorted(carrier)},
        )

    def _commit_scores(self, evaluation: Evaluation, scores: Tensor, sequence: ScoringSequence, rows: range) -> None:
        """Read off the log-probabilities of the given tokens."""
        token_ids = sequence.next_ids()
        span = slice(rows.start, rows.stop)
        wanted = upload(token_ids, scores.device)
        logprobs = scores[span].log_softmax(dim=-1)
        composed = logprobs.gather(-1, wanted[:, None])[:, 0].tolist()
        highest, top_ids = logprobs.topk(min(max(1, sequence.num_top), self._runner.width))
        highest_values, top_rows = highest.tolist(), top_ids[:, : sequence.num_top].tolist()
        carrier = evaluation.active(sequence)
        values = [
            {member: row[own] for member, own in carrier.items()}
            for row in evaluation.own_logprobs(span, wanted).tolist()
        ]
        base = evaluation.logprobs[span, carrier[BASE]].argmax(dim=-1).tolist()
        names = list(sequence.request.weights)
        weights = evaluation.weights[span, : len(names)].tolist()
        pairs = {
            name: own
            for name, own in zip(names, sequence.request.route.pairs, strict=True)
            if own.tuned in carrier and (own.reference is None or own.reference in carrier)
        }
        text_of, bytes_of = self._token_bytes.text_of, self._token_bytes.of
        sequence.extend(
            [
                TokenScore(
                    token_id=token_id,
                    token=text_of(token_id),
                    utf8=bytes_of(token_id),
                    base=member[0],
                    composed=composed[index],
                    is_greedy=composed[index] == highest_values[index][0],
                    top=tuple(
                        TopToken(top_id, text_of(top_id), value, bytes_of(top_id))
                        for top_id, value in zip(top_rows[index], highest_values[index], strict=False)
                    ),
                    pairs={
                        name: PairScore(member[own.tuned], None if own.reference is None else member[own.reference])
                        for name, own in pairs.items()
                    },
                    weights=dict(zip(names, weights[index], strict=True)),
                    is_base_greedy=base[index] == token_id,
                )
                for index, (token_id, member) in enumerate(zip(token_ids, values, strict=True))
            ]
        )


def _padded(rows: list[list[float]]) -> list[list[float]]:
    """As long as the longest, with zeros."""
    longest = max(map(len, rows))
    return [[*row, *[0.0] * (longest - len(row))] for row in rows]
