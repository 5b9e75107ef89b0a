"""Guessing the next tokens before they are verified together.

A draft is drawn with the same random times as the composed distribution will be at that position (see `decoding/sampling`).
Equal distributions then give equal tokens, similar ones mostly do, and verification is comparison: the text is the one that
plain decoding gives for the seed, whatever was drafted. Greedy decoding is the case of one-hot rows.

Two drafters: prompt lookup, which costs no forward pass, and the tuned model, whose log-probabilities at the drafted positions
are part of the target anyway and are kept for it. How many tokens to draft is decided per sequence from its measured acceptance
and the measured times of forward passes.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from eft_engine.decoding.sampling import choose, forbid, needs_penalties, penalise
from eft_engine.engine.acceptance import expected_tokens
from eft_engine.engine.routing import Stream
from eft_engine.engine.running import ForwardCosts, StreamRunner
from eft_engine.engine.sequence import GenerationSequence

MARGIN = 1.05
"""Drafting must promise this much more speed than plain decoding; below, estimates are noise."""

PROBE_INTERVAL = 32
"""A sequence that does not draft because it did not pay tries one token again after this many."""


class DraftPolicy:
    """How many tokens to draft: the number that maximises expected tokens per second."""

    def __init__(self, costs: ForwardCosts) -> None:
        self._costs = costs

    def num_drafts(
        self, sequence: GenerationSequence, rate: float, *, drafting: Seq[Stream], batch_size: int, limit: int
    ) -> int:
        """The best number in 0..limit for a sequence that steps together with `batch_size - 1` others like it."""
        if limit <= 0 or not sequence.speculation.adaptive:
            return max(limit, 0)
        plain = self._seconds(sequence, 0, drafting, batch_size)
        if plain == 0.0:
            return limit
        speeds = [
            expected_tokens(rate, number) / self._seconds(sequence, number, drafting, batch_size)
            for number in range(limit + 1)
        ]
        best = max(range(limit + 1), key=speeds.__getitem__)
        return best if speeds[best] > MARGIN * speeds[0] else 0

    def _seconds(self, sequence: GenerationSequence, number: int, drafting: Seq[Stream], batch_size: int) -> float:
        """Seconds of a step with `number` drafts: small models draft one by one, the others read the block."""
        total = 0.0
        networks = {stream.network for stream in sequence.streams}
        for network in networks:
            streams = [stream for stream in sequence.streams if stream.network is network]
            own = [stream for stream in streams if stream in drafting]
            if own:
                total += number * self._costs.estimate(network, batch_size * len(own))
            num_tokens = len(own) + (len(streams) - len(own)) * (number + 1)
            total += self._costs.estimate(network, batch_size * num_tokens)
        return total


class Drafter:
    """Fills `drafts` of the sequences of a step. Belongs to the engine's thread."""

    def __init__(self, runner: StreamRunner) -> None:
        self._runner = runner
        self._policy = DraftPolicy(runner.costs)
        self.reads_drafts = runner.device.type == "cpu"
        """Whether every draft is read as soon as it is drawn, which shows when to stop."""

    def draft(self, sequences: Seq[GenerationSequence]) -> None:
        """What a grammar forces, else prompt lookup where it finds something, else the tuned model."""
        wanted: dict[GenerationSequence, int] = {}
        for sequence in sequences:
            sequence.clear_drafts()
            if not self._take_forced(sequence) and not self._look_up(sequence, len(sequences)):
                number = self._num_tuned_drafts(sequence, len(sequences))
                if number:
                    wanted[sequence] = number
        self._draft_with_tuned(wanted)

    def _take_forced(self, sequence: GenerationSequence) -> bool:
        """Tokens that the grammar leaves no choice about need no forward pass to be guessed."""
        if sequence.grammar is None or sequence.speculation.drafter == "none":
            return False
        sequence.drafts = sequence.grammar.forced()[: max(sequence.draft_limit, 0)]
        sequence.drafted_by = sequence.forced_acceptance
        return bool(sequence.drafts)

    def _look_up(self, sequence: GenerationSequence, batch_size: int) -> bool:
        if sequence.lookup is None:
            return False
        found = sequence.lookup.propose(sequence.draft_limit)
        if sequence.grammar is not None:
            found = sequence.grammar.valid_prefix(found)
        if not found:
            return False
        number = self._policy.num_drafts(
            sequence, sequence.lookup_acceptance.rate, drafting=(), batch_size=batch_size, limit=len(found)
        )
        number = number or self._probe(sequence)
        sequence.drafts = found[:number]
        sequence.drafted_by = sequence.lookup_acceptance
        return number > 0

    def _num_tuned_drafts(self, sequence: GenerationSequence, batch_size: int) -> int:
        drafting = sequence.drafting_streams
        if not drafting or sequence.draft_limit == 0:
            return 0
        number = self._policy.num_drafts(
            sequence,
            sequence.tuned_acceptance.rate,
            drafting=[stream for stream, _ in drafting],
            batch_size=batch_size,
            limit=sequence.draft_limit,
        )
        return number or self._probe(sequence)

    def _probe(self, sequence: GenerationSequence) -> int:
        since = len(sequence.output_ids) - sequence.last_drafted_at
        return 1 if since >= PROBE_INTERVAL and sequence.draft_limit else 0

    def _draft_with_tuned(self, wanted: dict[GenerationSequence, int]) -> None:
        """Token by token, for all sequences that want another one together.

        On an accelerator drafts are left there: reading one would wait for it, and the next pass takes it from where it lies.
        """
        reads = self.reads_drafts or any(sequence.needs_drafts_read for sequence in wanted)
        active = list(wanted)
        while active:
            scores = self._next_scores(active)  # [active, width]
            for row, sequence in enumerate(active):
                sequence.drafted_by = sequence.tuned_acceptance
                if needs_penalties(sequence.sampling):
                    penalise(scores[row], sequence.sampling, sequence.history_after(len(sequence.drafts)))
                if sequence.grammar is not None:
                    forbid(scores[row : row + 1], sequence.grammar_masks()[-1:])
            token_ids, confidences = self._draw(scores, active)
            if reads:
                self._take_read(wanted, active, token_ids.tolist(), confidences.tolist())
            else:
                for sequence, token_id in zip(active, token_ids.unbind(), strict=True):
                    sequence.add_unread_draft(token_id)
            active = [sequence for sequence in active if len(sequence.drafts) < wanted[sequence]]

    def _take_read(
        self,
        wanted: dict[GenerationSequence, int],
        active: Seq[GenerationSequence],
        token_ids: Seq[int],
        confidences: Seq[float],
    ) -> None:
        """Take a draft per sequence; one that its drafter is unsure of, or that ends a grammar's text, is the last one."""
        for sequence, token_id, confidence in zip(active, token_ids, confidences, strict=True):
            sequence.drafts.append(token_id)
            unsure = sequence.speculation.adaptive and confidence < sequence.speculation.min_confidence
            if unsure or (sequence.grammar is not None and sequence.grammar.ends(token_id)):
                wanted[sequence] = len(sequence.drafts)

    def _draw(self, scores: Tensor, sequences: Seq[GenerationSequence]) -> tuple[Tensor, Tensor]:
        """One token per row, drawn with the times that the target will be drawn with, and its probability; both `[rows]`."""
        width, device = self._runner.width, self._runner.device
        times = [sequence.race_times(len(sequence.drafts), width, device) for sequence in sequences]
        token_ids = choose(scores, [sequence.sampling for sequence in sequences], times)
        return token_ids, scores.log_softmax(dim=-1).gather(-1, token_ids[:, None])[:, 0].exp()

    def _next_scores(self, sequences: Seq[GenerationSequence]) -> Tensor:
        """Draft distribution of every sequence; the log-probabilities that it is made of are kept for the target."""
        blocks = []
        owners = {}
        for row, sequence in enumerate(sequences):
            for stream, coefficient in sequence.drafting_streams:
                block = stream.pending_block(sequence.output_ids, sequence.drafts, max_logits=1, unread=sequence.unread)
                blocks.append((stream.network, block))
                owners[block.slot] = (row, sequence, stream, coefficient)
                sequence.count_forward(stream)
        scores = torch.zeros(len(sequences), self._runner.width, device=self._runner.device)
        for group, values, normalisers in self._runner.logprobs(blocks):
            for index, block in enumerate(group):
                row, sequence, stream, coefficient = owners[block.slot]
                scores[row] += coefficient * values[index]
                sequence.keep_row(stream, values[index], normalisers[index])
        return scores
