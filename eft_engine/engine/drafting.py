"""Guessing the next tokens before they are verified together.

A draft is drawn with the same random times as the composed distribution will be at that position (see `decoding/sampling`).
Equal distributions then give equal tokens, similar ones mostly do, and verification is comparison: the text is the one that
plain decoding gives for the seed, whatever was drafted. Greedy decoding is the case of one-hot rows.

Two drafters: prompt lookup (in the text itself, then in earlier ones), which costs no forward pass, and the tuned model, whose
log-probabilities at the drafted positions are part of the target anyway and are kept for it; or a copy of it in fewer bits, which
is read more cheaply, and whose drafts the tuned model then reads in the pass that verifies them. How many tokens are
drafted is decided in `draft_policy`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from eft_engine.decoding.sampling import choose, forbid, needs_penalties, penalise
from eft_engine.decoding.text_history import SIZES, TextHistory
from eft_engine.engine.acceptance import Acceptance, AcceptanceByWeights
from eft_engine.engine.draft_policy import DraftPolicy, Proposal, Prospects
from eft_engine.engine.routing import Stream
from eft_engine.engine.running import StreamRunner, Work
from eft_engine.engine.sequence import GenerationSequence
from eft_engine.models.network import Network

PRIOR = 0.7
"""How likely a draft of the tuned model is accepted, as long as nothing is known."""

PROBE_INTERVAL = 32
"""A sequence that does not draft because it did not pay tries one token again after this many."""

EARLY_PROBE_INTERVAL = 8
"""The same while little is known about what the tuned model's drafts are worth."""


class Drafter:
    """Fills `drafts` of the sequences of a step. Belongs to the engine's thread.

    Args:
        runner: runs the models that draft.
        history_tokens: of earlier texts, from which the next ones are drafted where the drafter `learns`; 0: none.
        learns: whether how much is drafted may follow what was measured in other requests. Where it may not, a request that is
            alone is drafted the same way every time.
    """

    def __init__(self, runner: StreamRunner, *, learns: bool, history_tokens: int = 0) -> None:
        self.learns = learns
        self._history = TextHistory(max_tokens=history_tokens) if learns and history_tokens else None
        self._runner = runner
        self._policy = DraftPolicy(runner.costs)
        self._acceptance = AcceptanceByWeights(prior=PRIOR)
        self.reads_drafts = runner.device.type == "cpu"
        """Whether every draft is read as soon as it is drawn, which shows when to stop."""

    def draft(self, sequences: Seq[GenerationSequence]) -> None:
        """What a grammar forces, else prompt lookup or the tuned model: what promises more where that is asked, else the first."""
        if not sequences:
            return
        proposals = {sequence: self._propose(sequence, len(sequences)) for sequence in sequences}
        limit = self._policy.shared_limit(proposals)
        if any(proposal.is_due for proposal in proposals.values()):
            limit = max(limit, 1)
        wanted: dict[GenerationSequence, int] = {}
        for sequence, proposal in proposals.items():
            number = proposal.within(limit)
            if number and proposal.drafting:
                wanted[sequence] = number
            else:
                sequence.drafts = sequence.drafts[:number]
        if self.reads_drafts or any(sequence.needs_drafts_read for sequence in wanted):
            for sequence in wanted:
                if proposals[sequence].trimmable and not proposals[sequence].is_due:
                    wanted[sequence] = sequence.draft_limit  # it stops where more do not pay
            self._draft_with_tuned(wanted, Prospects(self._policy, proposals, limit))
        else:
            self._draft_with_tuned(wanted, None)

    def remember(self, sequence: GenerationSequence) -> None:
        """Let later texts be drafted from one that is complete."""
        if self._history is not None and sequence.lookup is not None:
            self._history.add(sequence.new_ids)

    def _propose(self, sequence: GenerationSequence, batch_size: int) -> Proposal:
        """What would pay for this sequence; tokens that need no forward pass are in its `drafts` already."""
        sequence.clear_drafts()
        sequence.found = None
        proposal = self._forced(sequence) or self._look_up(sequence, batch_size)
        if proposal is not None and not (proposal.trimmable and sequence.speculation.adaptive):
            return proposal
        tuned = self._tuned(sequence, batch_size)
        if proposal is not None and proposal.speed >= tuned.speed:
            return proposal
        sequence.clear_drafts()
        return tuned

    def _forced(self, sequence: GenerationSequence) -> Proposal | None:
        """Tokens that the grammar leaves no choice about."""
        if sequence.grammar is None or sequence.speculation.drafter == "none":
            return None
        sequence.drafts = sequence.draftable(sequence.grammar.forced()[: max(sequence.draft_limit, 0)])
        sequence.drafted_by = sequence.forced_acceptance
        if not sequence.drafts:
            return None
        return Proposal(len(sequence.drafts), sequence.forced_acceptance.rate, trimmable=False)

    def _look_up(self, sequence: GenerationSequence, batch_size: int) -> Proposal | None:
        """Tokens that followed the last ones before, in this text or in an earlier one."""
        if sequence.lookup is None:
            return None
        acceptance, proposed = sequence.lookup_acceptance, sequence.lookup.propose(sequence.draft_limit)
        if not proposed and self._history is not None:
            acceptance = sequence.history_acceptance
            proposed = self._history.propose(sequence.lookup.tail(max(SIZES)), sequence.draft_limit)
        found = sequence.draftable(proposed)
        if sequence.grammar is not None:
            found = sequence.grammar.valid_prefix(found)
        if not found:
            return None
        sequence.found = (acceptance, found)
        rate = acceptance.rate
        number, speed = self._policy.num_drafts(sequence, rate, drafting=(), batch_size=batch_size, limit=len(found))
        proposal = self._proposal(sequence, number, rate, speed)
        sequence.drafts = found[: proposal.number]
        sequence.drafted_by = acceptance
        return proposal if proposal.number else None

    def _tuned(self, sequence: GenerationSequence, batch_size: int) -> Proposal:
        """Tokens that the tuned model is to draw."""
        drafting = tuple(stream for stream, _ in sequence.drafting_streams)
        if not drafting or sequence.draft_limit == 0:
            return Proposal(speed=0.0)
        if sequence.tuned_acceptance is None:
            known = self._acceptance.start(sequence.request.weights.values()) if self.learns else Acceptance(PRIOR)
            sequence.tuned_acceptance = known
        rate = sequence.tuned_acceptance.rate
        number, speed = self._policy.num_drafts(
            sequence, rate, drafting=drafting, batch_size=batch_size, limit=sequence.draft_limit
        )
        return self._proposal(sequence, number, rate, speed, drafting)

    @staticmethod
    def _proposal(
        sequence: GenerationSequence, number: int, rate: float, speed: float, drafting: tuple[Stream, ...] = ()
    ) -> Proposal:
        acceptance = sequence.tuned_acceptance
        is_known = acceptance is None or acceptance.is_known
        interval = PROBE_INTERVAL if is_known else EARLY_PROBE_INTERVAL
        is_due = len(sequence.output_ids) - sequence.last_drafted_at >= interval
        return Proposal(
            max(number, int(is_due)),
            rate,
            drafting,
            trimmable=sequence.speculation.adaptive,
            is_due=is_due,
            speed=speed,
        )

    def _draft_with_tuned(self, wanted: dict[GenerationSequence, int], prospects: Prospects | None) -> None:
        """Token by token, for all sequences that want another one together.

        On an accelerator drafts are left there: reading one would wait for it, and the next pass takes it from where it lies.
        What a copy has read is taken back, as the network itself reads it next.
        """
        copies: dict[Stream, Network] = {}
        for sequence in wanted:
            for stream, _ in sequence.drafting_streams:
                drafter = stream.drafter(sequence.output_ids)
                if drafter is not stream.network:
                    copies[stream] = drafter
        lengths = {stream: stream.cache_len for stream in copies}
        active = list(wanted)
        try:
            while active:
                with self._runner.timing(Work.DRAW, len(active)):
                    self._draft_one(active, wanted, copies, prospects)
                active = [sequence for sequence in active if len(sequence.drafts) < wanted[sequence]]
                if prospects is not None and active:
                    active = prospects.worth_more(active)
        finally:
            for stream, length in lengths.items():
                assert stream.slot is not None, "a stream drafts while it holds a slot"
                stream.slot.truncate(length)

    def _draft_one(
        self,
        active: Seq[GenerationSequence],
        wanted: dict[GenerationSequence, int],
        copies: Mapping[Stream, Network],
        prospects: Prospects | None,
    ) -> None:
        """Another token for each of these; `copies` draft for their streams' networks. None: drafts stay where they are."""
        scores = self._next_scores(active, copies)  # [active, width]
        for row, sequence in enumerate(active):
            sequence.drafted_by = sequence.tuned_acceptance
            if needs_penalties(sequence.sampling):
                penalise(scores[row], sequence.sampling, sequence.history_after(len(sequence.drafts)))
            if sequence.grammar is not None:
                forbid(scores[row : row + 1], sequence.grammar_masks()[-1:])
        token_ids, confidences = self._draw(scores, active)
        if prospects is not None:
            self._take_read(wanted, active, token_ids.tolist(), confidences.tolist(), prospects)
        else:
            for sequence, token_id in zip(active, token_ids.unbind(), strict=True):
                sequence.add_unread_draft(token_id)

    def _take_read(
        self,
        wanted: dict[GenerationSequence, int],
        active: Seq[GenerationSequence],
        token_ids: Seq[int],
        confidences: Seq[float],
        prospects: Prospects,
    ) -> None:
        """Take a draft per sequence; one that its drafter is unsure of, or that ends a grammar's text, is the last one. None where
        nothing may come but tokens that are not drafted.
        """
        for sequence, token_id, confidence in zip(active, token_ids, confidences, strict=True):
            if math.isnan(confidence):
                wanted[sequence] = len(sequence.drafts)
                for stream, _ in sequence.drafting_streams:
                    sequence.drop_row(stream)
                continue
            sequence.drafts.append(token_id)
            prospects.note(sequence, confidence)
            unsure = sequence.speculation.adaptive and confidence < sequence.speculation.min_confidence
            if unsure or (sequence.grammar is not None and sequence.grammar.ends(token_id)):
                wanted[sequence] = len(sequence.drafts)

    def _draw(self, scores: Tensor, sequences: Seq[GenerationSequence]) -> tuple[Tensor, Tensor]:
        """One token per row, drawn with the times that the target will be drawn with, and its probability; both `[rows]`."""
        width, device = self._runner.width, self._runner.device
        times = [sequence.race_times(len(sequence.drafts), width, device) for sequence in sequences]
        token_ids = choose(scores, [sequence.sampling for sequence in sequences], times)
        return token_ids, scores.log_softmax(dim=-1).gather(-1, token_ids[:, None])[:, 0].exp()

    def _next_scores(self, sequences: Seq[GenerationSequence], copies: Mapping[Stream, Network]) -> Tensor:
        """Draft distribution of every sequence; the log-probabilities that it is made of are kept for the target, but a copy's."""
        blocks = []
        owners = {}
        for row, sequence in enumerate(sequences):
            for stream, coefficient in sequence.drafting_streams:
                block = stream.pending_block(sequence.output_ids, sequence.drafts, max_logits=1, unread=sequence.unread)
                blocks.append((copies.get(stream, stream.network), block))
                owners[block.slot] = (row, sequence, stream, coefficient)
                sequence.count_forward(stream)
        scores = torch.zeros(len(sequences), self._runner.width, device=self._runner.device)
        for group, values, normalisers in self._runner.logprobs(blocks):
            for index, block in enumerate(group):
                row, sequence, stream, coefficient = owners[block.slot]
                share = coefficient * values[index]
                # As in `compose`: with a negative coefficient a member says nothing about a token that it never gives.
                scores[row] += share if coefficient > 0 else share.masked_fill(share.isposinf(), 0.0)
                if stream not in copies:
                    sequence.keep_row(stream, values[index], normalisers[index])
        if self._runner.kept_ids is not None:  # others would read them in several tokens, see `draftable`
            scores.index_fill_(-1, self._runner.kept_ids, -torch.inf)
        return scores
