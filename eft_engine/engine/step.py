"""One step of the engine: prefill, evaluate, choose, commit.

prefill    prompts that are too long for this step's evaluation read their next chunk
evaluate   every ready sequence: all its streams read what they have not, and give logits for their last token(s)
choose     compose each row, sample the next token
commit     tokens become text, finished sequences tell their callers
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from eft_engine.decoding.composition import compose, keep_tuned_outside_nucleus, member_logprobs
from eft_engine.decoding.sampling import SALT_TARGET, choose, needs_penalties, penalise, uniform
from eft_engine.engine.scheduler import PrefillWork, StepPlan
from eft_engine.engine.sequence import GenerationSequence, ScoringSequence, Sequence
from eft_engine.errors import NonFiniteLogitsError
from eft_engine.models.language_model import Block, LanguageModel
from eft_engine.outputs import PairScore, TokenLogprobs, TokenScore, TopToken
from eft_engine.text.tokenizer import Tokenizer
from eft_engine.text.vocabulary import SharedVocabulary

PADDING_FREE_LEN = 16
"""Blocks up to this long share a forward pass whatever their lengths: reading the weights costs more than padding."""


@dataclass(frozen=True)
class Evaluation:
    """Log-probabilities of the evaluated sequences.

    `rows` says which rows belong to which sequence, in order. `logprobs` and `normalisers` are `[rows, members, width]` and
    `[rows, members]` (zeros for members that were not run), `coefficients` `[rows, members]`.
    """

    rows: tuple[tuple[Sequence, range], ...]
    logprobs: Tensor
    normalisers: Tensor
    coefficients: Tensor

    def composed(self) -> Tensor:
        """Composed scores `[rows, width]`, not normalised, conservative mode applied where asked."""
        scores = compose(self.logprobs, self.coefficients)
        for sequence, rows in self.rows:
            member = sequence.conservative_member
            if member is not None:
                span = slice(rows.start, rows.stop)
                top_p = torch.full((len(rows),), sequence.request.composition.conservative_top_p or 1.0)
                scores[span] = keep_tuned_outside_nucleus(
                    scores[span], self.logprobs[span, member], top_p.to(scores.device)
                )
        return scores


class Stepper:
    """Runs steps over the networks of one trio. Belongs to the engine's thread."""

    def __init__(self, vocabulary: SharedVocabulary, tokenizer: Tokenizer, *, device: torch.device) -> None:
        self._width = vocabulary.width
        self._masked_ids = torch.tensor(vocabulary.masked_ids, dtype=torch.long, device=device)
        self._device = device
        self._tokenizer = tokenizer

    @torch.inference_mode()
    def step(self, plan: StepPlan) -> None:
        """Run one step. Sequences that end in it are marked finished (or failed) and have told their callers."""
        self._prefill(plan.prefill)
        if not plan.ready:
            return
        evaluation = self._evaluate(plan.ready)
        scores = evaluation.composed()
        usable = self._usable_rows(evaluation, scores)
        self._choose_and_commit(evaluation, scores, usable)
        self._score_and_commit(evaluation, scores, usable)

    def _prefill(self, works: Seq[PrefillWork]) -> None:
        blocks: dict[LanguageModel, list[Block]] = defaultdict(list)
        for work in works:
            block = work.stream.block(work.sequence.output_ids, num_tokens=work.num_tokens, num_logits=0)
            blocks[work.stream.network].append(block)
            work.sequence.count_forward(work.stream)
        for network, own in blocks.items():
            for group in group_by_length(own):
                network.forward(group)

    def _evaluate(self, sequences: Seq[Sequence]) -> Evaluation:
        """Run all streams of these sequences, and normalise every member's logits over the shared vocabulary."""
        rows: list[tuple[Sequence, range]] = []
        blocks: dict[LanguageModel, list[tuple[Block, int, int]]] = defaultdict(list)  # with first row and member
        num_rows = 0
        for sequence in sequences:
            lookahead = sequence.lookahead()
            fed = [*sequence.output_ids, *lookahead]
            num_logits = 1 + len(lookahead)
            for stream in sequence.streams:
                num_tokens = stream.num_pending(sequence.output_ids) + len(lookahead)
                block = stream.block(fed, num_tokens=num_tokens, num_logits=num_logits)
                blocks[stream.network].append((block, num_rows, stream.members[0]))
                sequence.count_forward(stream)
            rows.append((sequence, range(num_rows, num_rows + num_logits)))
            num_rows += num_logits

        coefficients = torch.tensor(
            [sequence.request.route.coefficients for sequence, own in rows for _ in own], device=self._device
        )
        normalisers = torch.zeros(coefficients.shape, device=self._device)
        logprobs = torch.zeros(*coefficients.shape, self._width, device=self._device)  # [rows, members, width]
        for network, placed in blocks.items():
            places = {block.slot: (row, member) for block, row, member in placed}
            for group in group_by_length(block for block, _, _ in placed):
                logits = network.forward(group)[:, : self._width].to(self._device)
                row_ids = [places[block.slot][0] + offset for block in group for offset in range(block.num_logits)]
                member_ids = [places[block.slot][1] for block in group for _ in range(block.num_logits)]
                values, norms = member_logprobs(logits, self._masked_ids)
                logprobs[row_ids, member_ids] = values
                normalisers[row_ids, member_ids] = norms
        return Evaluation(tuple(rows), logprobs, normalisers, coefficients)

    def _usable_rows(self, evaluation: Evaluation, scores: Tensor) -> list[bool]:
        """Which rows are proper distributions. A maximum that is finite rules out NaN, +inf and "everything forbidden"."""
        scores.index_fill_(-1, self._masked_ids, -torch.inf)
        best = scores.amax(dim=-1) + 0.0 * evaluation.normalisers.sum(dim=-1)
        usable: list[bool] = best.isfinite().tolist()
        for sequence, rows in evaluation.rows:
            if not all(usable[row] for row in rows):
                members = [
                    sequence.request.member_names[index]
                    for index in range(evaluation.normalisers.shape[1])
                    if not bool(evaluation.normalisers[rows.start : rows.stop, index].isfinite().all())
                ]
                reason = f"{', '.join(members)} returned NaN or infinite logits" if members else "no token is possible"
                position = len(sequence.output_ids)
                sequence.fail(NonFiniteLogitsError(f"at output position {position}: {reason}", position=position))
        return usable

    def _choose_and_commit(self, evaluation: Evaluation, scores: Tensor, usable: list[bool]) -> None:
        """Sample one token for every generating sequence."""
        generating = [
            (sequence, rows.start)
            for sequence, rows in evaluation.rows
            if isinstance(sequence, GenerationSequence) and usable[rows.start]
        ]
        if not generating:
            return
        own = scores[[row for _, row in generating]]  # [generating, width], a copy
        for index, (sequence, row) in enumerate(generating):
            if needs_penalties(sequence.sampling):
                # The repetition penalty depends on the sign of a score, so it wants the scale of the logits back.
                own[index] += (evaluation.coefficients[row] * evaluation.normalisers[row]).sum()
                penalise(own[index], sequence.sampling, sequence.history)
        params = [sequence.sampling for sequence, _ in generating]
        uniforms = [
            uniform(sequence.seed, len(sequence.output_ids), SALT_TARGET) if sequence.sampling.temperature else 0.0
            for sequence, _ in generating
        ]
        token_ids: list[int] = choose(own, params, uniforms).tolist()
        for (sequence, row), token_id in zip(generating, token_ids, strict=True):
            sequence.append(token_id, self._token_logprobs(evaluation, scores, sequence, row, token_id))

    def _token_logprobs(
        self, evaluation: Evaluation, scores: Tensor, sequence: GenerationSequence, row: int, token_id: int
    ) -> TokenLogprobs | None:
        num_top = sequence.sampling.logprobs
        if num_top is None:
            return None
        composed = scores[row].log_softmax(dim=-1)
        values, ids = composed.topk(min(num_top, self._width))
        ran = [member for stream in sequence.streams for member in stream.members]
        owner = {member: stream.members[0] for stream in sequence.streams for member in stream.members}
        return TokenLogprobs(
            token_id=token_id,
            token=self._token_text(token_id),
            logprob=float(composed[token_id]),
            top=tuple(
                TopToken(top_id, self._token_text(top_id), value)
                for top_id, value in zip(ids.tolist(), values.tolist(), strict=True)
            ),
            members={
                sequence.request.member_names[member]: float(evaluation.logprobs[row, owner[member], token_id])
                for member in sorted(ran)
            },
        )

    def _token_text(self, token_id: int) -> str:
        return str(self._tokenizer.decode([token_id], skip_special_tokens=False))

    def _score_and_commit(self, evaluation: Evaluation, scores: Tensor, usable: list[bool]) -> None:
        """Read off the log-probabilities of given tokens."""
        for sequence, rows in evaluation.rows:
            if not isinstance(sequence, ScoringSequence) or sequence.finished:
                continue
            token_ids = sequence.next_ids()
            span = slice(rows.start, rows.stop)
            wanted = torch.tensor(token_ids, device=self._device)[:, None]  # [rows, 1]
            composed = scores[span].log_softmax(dim=-1).gather(-1, wanted)[:, 0].tolist()
            by_member = evaluation.logprobs[span].gather(
                -1, wanted[:, None].expand(-1, evaluation.logprobs.shape[1], -1)
            )
            owner = {member: stream.members[0] for stream in sequence.streams for member in stream.members}
            values = [[row[owner[member]] for member in sorted(owner)] for row in by_member[:, :, 0].tolist()]
            pairs = list(sequence.request.weights)
            sequence.extend(
                [
                    TokenScore(
                        token_id=token_id,
                        token=self._token_text(token_id),
                        base=member[0],
                        composed=composed[index],
                        pairs={
                            name: PairScore(tuned=member[1 + 2 * pair], reference=member[2 + 2 * pair])
                            for pair, name in enumerate(pairs)
                        },
                    )
                    for index, (token_id, member) in enumerate(zip(token_ids, values, strict=True))
                ]
            )


def group_by_length(blocks: Iterable[Block]) -> list[list[Block]]:
    """Blocks that share a forward pass: rows are padded to the longest, so a long one is not mixed with much shorter ones."""
    groups: list[list[Block]] = []
    for block in sorted(blocks, key=lambda block: -len(block.token_ids)):
        if groups:
            longest = len(groups[-1][0].token_ids)
            if longest <= PADDING_FREE_LEN or 2 * len(block.token_ids) > longest:
                groups[-1].append(block)
                continue
        groups.append([block])
    return groups
