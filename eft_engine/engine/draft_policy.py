"""How many tokens to draft: as many as promise most tokens per second.

Decided from measured acceptance and the measured times of a step's parts (`running.StepCosts`): first per sequence, then for the
step as a whole, since the rows of a pass are padded to the longest. Where each draft is read as soon as it is drawn, a sequence
then goes on for as long as its drafter is sure enough that all of its drafts are right.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

from eft_engine.engine.acceptance import expected_tokens
from eft_engine.engine.routing import Stream
from eft_engine.engine.running import StepCosts, Work
from eft_engine.engine.sequence import GenerationSequence
from eft_engine.models.network import Network

MARGIN = 1.02
"""Drafting must promise this much more speed than plain decoding; below, estimates are noise."""


@dataclass(frozen=True)
class Proposal:
    """What one sequence would draft in the next step.

    `rate` is how likely each draft is accepted, `drafting` the streams whose models draw them (none: they cost nothing to guess).
    Those that a grammar forces, and those of a sequence that is not adaptive, are not `trimmable`. One that `is_due` drafts a token
    whether that pays or not, to see what its acceptance is now. `speed` is how many tokens a second it promises.
    """

    number: int = 0
    rate: float = 0.0
    drafting: tuple[Stream, ...] = ()
    trimmable: bool = True
    is_due: bool = False
    speed: float = math.inf

    def within(self, limit: int) -> int:
        """How many are left when each sequence may have `limit`."""
        return min(self.number, limit) if self.trimmable else self.number


class DraftPolicy:
    """How many tokens to draft: the number that maximises expected tokens per second."""

    def __init__(self, costs: StepCosts) -> None:
        self._costs = costs

    def num_drafts(
        self, sequence: GenerationSequence, rate: float, *, drafting: Seq[Stream], batch_size: int, limit: int
    ) -> tuple[int, float]:
        """The best number in 0..limit for a sequence that steps together with `batch_size - 1` others like it, and its tokens per
        second; infinite where nothing is known or asked.
        """
        if limit <= 0 or not sequence.speculation.adaptive:
            return max(limit, 0), math.inf
        proposal = Proposal(limit, rate, drafting=tuple(drafting))
        return self._best_limit({sequence: proposal}, num_alike=batch_size)

    def shared_limit(self, proposals: Mapping[GenerationSequence, Proposal]) -> int:
        """Most drafts of each sequence in a step of all of these: the number that maximises their tokens per second together.

        One sequence's drafts make the pass longer for all, so what would pay for each, were all like it, may not pay for a few.
        """
        return self._best_limit(proposals, num_alike=1)[0]

    def speed(self, proposals: Mapping[GenerationSequence, Proposal], limit: int) -> float:
        """Expected tokens per second of a step with drafts within `limit`; infinite while times are not known."""
        streams = {sequence: sequence.next_streams for sequence in proposals}
        return self._speed(proposals, streams, limit, 1)

    def seconds_by_number(self, proposals: Mapping[GenerationSequence, Proposal], most: int) -> list[float]:
        """Seconds of a step of these sequences with 0, 1, ... `most` drafts each."""
        streams = {sequence: sequence.next_streams for sequence in proposals}
        longest = {sequence: replace(own, number=most) for sequence, own in proposals.items()}
        return [self._seconds(longest, streams, number, 1) for number in range(most + 1)]

    def _best_limit(self, proposals: Mapping[GenerationSequence, Proposal], *, num_alike: int) -> tuple[int, float]:
        """The limit with most expected tokens per second in a step that has every sequence `num_alike` times, and how many."""
        longest = max(proposal.number for proposal in proposals.values())
        streams = {sequence: sequence.next_streams for sequence in proposals}
        if longest == 0 or self._seconds(proposals, streams, 0, num_alike) == 0.0:
            return longest, math.inf
        speeds = [self._speed(proposals, streams, limit, num_alike) for limit in range(longest + 1)]
        best = max(range(longest + 1), key=speeds.__getitem__)
        best = best if speeds[best] > MARGIN * speeds[0] else 0
        return best, speeds[best]

    def _speed(
        self,
        proposals: Mapping[GenerationSequence, Proposal],
        streams: Mapping[GenerationSequence, Seq[Stream]],
        limit: int,
        num_alike: int,
    ) -> float:
        """Expected tokens of these sequences by the seconds of a step that has each of them `num_alike` times."""
        seconds = self._seconds(proposals, streams, limit, num_alike)
        tokens = sum(expected_tokens(own.rate, own.within(limit)) for own in proposals.values())
        return tokens / seconds if seconds else math.inf

    def _seconds(
        self,
        proposals: Mapping[GenerationSequence, Proposal],
        streams: Mapping[GenerationSequence, Seq[Stream]],
        limit: int,
        num_alike: int,
    ) -> float:
        """Seconds of a step with drafts within `limit`: small models draft one by one, the others read the block, padded."""
        num_rows: Counter[Network] = Counter()
        num_columns: dict[Network, int] = {}
        drawing: Counter[tuple[Network | Work, int]] = Counter()  # rows of the first, second, ... draft
        for sequence, proposal in proposals.items():
            number = proposal.within(limit)
            for stream in streams[sequence]:
                drafter = stream.drafter(sequence.output_ids) if stream in proposal.drafting else None
                num_rows[stream.network] += 1
                has_predicted = drafter is stream.network
                num_columns[stream.network] = max(
                    num_columns.get(stream.network, 1), 1 if has_predicted else number + 1
                )
                if drafter is not None:
                    drawing.update((drafter, position) for position in range(number))
            drawing.update((Work.DRAW, position) for position in range(number if proposal.drafting else 0))
        parts: list[tuple[Network | Work, int]] = [(part, rows) for (part, _), rows in drawing.items()]
        parts.append((Work.VERIFY, sum(proposal.within(limit) + 1 for proposal in proposals.values())))
        passes = {network: num_alike * rows * num_columns[network] for network, rows in num_rows.items()}
        beside = sum(self._costs.estimate(part, num_alike * size) for part, size in parts)
        return beside + self._costs.estimate_passes(passes)


class Prospects:
    """How sure drafters are of their drafts in one step, and for whom more of them pay.

    More pay where all of a sequence's drafts, and the next ones, are right often enough: the time that they take would give the
    step as a whole other tokens. One that does not pay by itself may do with those that follow it, since passes of some sizes
    cost little more than those of the sizes below.

    Args:
        policy: knows what steps take.
        proposals: of all sequences of the step.
        limit: with which it was planned.
    """

    def __init__(self, policy: DraftPolicy, proposals: Mapping[GenerationSequence, Proposal], limit: int) -> None:
        self._policy, self._proposals, self._limit = policy, proposals, limit
        self._chances: dict[GenerationSequence, float] = {}
        self._speed: float | None = None
        self._seconds: dict[tuple[GenerationSequence, ...], list[float]] = {}

    def note(self, sequence: GenerationSequence, confidence: float) -> None:
        """The sequence has another draft, of which its drafter is so sure."""
        self._chances[sequence] = self._chances.get(sequence, 1.0) * confidence

    def worth_more(self, active: Seq[GenerationSequence]) -> list[GenerationSequence]:
        """Those of the active sequences, which have the same number of drafts, that are to draft on."""
        choosing = tuple(own for own in active if own.speculation.adaptive)
        if not choosing:
            return list(active)
        if self._speed is None:
            self._speed = self._policy.speed(self._proposals, self._limit)
        if math.isinf(self._speed):
            return list(active)
        if choosing not in self._seconds:
            most = max(own.draft_limit for own in choosing)
            own_proposals = {own: self._proposals[own] for own in choosing}
            self._seconds[choosing] = self._policy.seconds_by_number(own_proposals, most)
        num_drafts = len(active[0].drafts)
        costs = [self._speed * seconds / len(choosing) for seconds in self._seconds[choosing][num_drafts:]]
        return [
            own
            for own in active
            if not own.speculation.adaptive or self._pays(own, costs[: own.draft_limit - num_drafts + 1])
        ]

    def _pays(self, sequence: GenerationSequence, costs: Seq[float]) -> bool:
        """Whether some number of further drafts promises more tokens than its time is worth: `costs`, in tokens, from none on."""
        chance, rate = self._chances[sequence], self._proposals[sequence].rate
        return any(
            chance * (expected_tokens(rate, more) - 1.0) >= cost - costs[0] for more, cost in enumerate(costs) if more
        )
