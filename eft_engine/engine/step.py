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
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from eft_engine.decoding.sampling import choose, forbid, needs_penalties, penalise
from eft_engine.engine.composing import Evaluation
from eft_engine.engine.drafting import Drafter
from eft_engine.engine.metrics import EngineTotals
from eft_engine.engine.routing import BASE, Rows
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

IMPOSSIBLE = -1
"""Stands for a token where none was drawn."""

logger = logging.getLogger(__name__)


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
    """Runs steps over the networks of one trio. Belongs to the engine's thread.

    Args:
        vocabulary, device, totals, unknown_ids: see `StreamRunner`.
        tokenizer: reads generated tokens.
        learns, history_tokens: see `Drafter`.
    """

    def __init__(
        self,
        vocabulary: SharedVocabulary,
        tokenizer: Tokenizer,
        *,
        device: torch.device,
        totals: EngineTotals,
        unknown_ids: Mapping[tuple[Network, str | None], frozenset[int]] | None = None,
        learns: bool = True,
        history_tokens: int = 0,
    ) -> None:
        self._runner = StreamRunner(vocabulary, device=device, totals=totals, unknown_ids=unknown_ids)
        self._drafter = Drafter(self._runner, learns=learns, history_tokens=history_tokens)
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
        """See `StreamRunner.calibrate`, or `StreamRunner.settle_costs` where nothing is learnt later."""
        if self._drafter.learns:
            self._runner.calibrate(networks)
        else:
            self._runner.settle_costs(networks)

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
            if sequence.finished:
                self._drafter.remember(sequence)
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
