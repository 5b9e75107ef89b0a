"""How many tokens to draft: what pays for one sequence alone, and for the step in which it is padded together with others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from eft_engine.engine.acceptance import Acceptance
from eft_engine.engine.draft_policy import DraftPolicy, Proposal, Prospects
from eft_engine.engine.drafting import Drafter
from eft_engine.engine.running import StepCosts, Work
from eft_engine.engine.sequence import GenerationSequence


@dataclass(frozen=True)
class Toy:
    """As much of a network as costs are kept by."""

    name: str
    num_threads: int = 0


@dataclass(frozen=True)
class ToyStream:
    """A network, and who drafts for it."""

    network: Toy
    copy: Toy | None = None

    def drafter(self, output_ids: Sequence[int]) -> Toy:
        """As of `Stream`."""
        return self.copy or self.network


BASE, SMALL, COPY = Toy("base"), Toy("small"), Toy("copy")


def policy(*, per_pass: float, per_token: float) -> DraftPolicy:
    """A pass of any network takes `per_pass` and `per_token` for each of its tokens, padding included."""
    costs: Any = StepCosts()
    for network in (BASE, SMALL):
        for num_tokens in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            costs.note(network, num_tokens, per_pass + per_token * num_tokens)
    return DraftPolicy(costs)


class ToySequence:
    """A base, and a small model that may draft, itself or by a copy."""

    def __init__(self, copy: Toy | None = None) -> None:
        self.streams = (ToyStream(BASE), ToyStream(SMALL, copy))
        self.next_streams = self.streams
        self.speculation = SimpleNamespace(adaptive=True, drafter="auto")
        self.output_ids: list[int] = []


def proposals(*given: Proposal) -> Any:
    """One sequence for each."""
    return {ToySequence(): proposal for proposal in given}


LIKELY = Proposal(number=4, rate=0.9)
NOTHING = Proposal()


@pytest.mark.parametrize(
    ("others", "limit"),
    [
        pytest.param([], 4, id="alone it pays"),
        pytest.param([LIKELY] * 15, 2, id="it pays for all, so far as it goes"),
        pytest.param([NOTHING] * 15, 0, id="one of sixteen makes the pass longer for all"),
    ],
)
def test_drafts_are_paid_by_the_whole_step(others: list[Proposal], limit: int) -> None:
    costly_tokens = policy(per_pass=0.01, per_token=0.001)
    assert costly_tokens.shared_limit(proposals(LIKELY, *others)) == limit


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("draws", [False, True])
def test_one_among_others_like_it_is_all_of_them_together(batch_size: int, draws: bool) -> None:
    own: Any = ToySequence()
    drafting = own.streams[1:] if draws else ()
    costly_tokens = policy(per_pass=0.01, per_token=0.001)
    alone, speed = costly_tokens.num_drafts(own, 0.9, drafting=drafting, batch_size=batch_size, limit=4)
    all_of_them: Any = {}
    for _ in range(batch_size):
        each: Any = ToySequence()
        all_of_them[each] = Proposal(4, 0.9, each.streams[1:] if draws else ())
    assert alone == costly_tokens.shared_limit(all_of_them)
    assert alone > 0 or batch_size == 16
    assert 0.0 < speed < 5 / 0.02, "what five tokens in the passes of one would be"


def test_where_only_passes_cost_one_sequence_may_draft_for_itself() -> None:
    assert policy(per_pass=1.0, per_token=0.0).shared_limit(proposals(LIKELY, *[NOTHING] * 3)) == 4


def test_passes_of_the_model_that_draws_count() -> None:
    by_lookup = proposals(Proposal(number=1, rate=0.6))
    by_model = {
        sequence: Proposal(number=1, rate=0.6, drafting=(sequence.streams[1],)) for sequence in proposals(NOTHING)
    }
    same_passes = policy(per_pass=1.0, per_token=0.0)
    assert same_passes.shared_limit(by_lookup) == 1  # 1.6 tokens in 2 passes instead of 1
    assert same_passes.shared_limit(by_model) == 1  # 1.6 tokens in 3 passes: still more than 1 in 2
    assert same_passes.shared_limit({own: Proposal(1, 0.3, drafted.drafting) for own, drafted in by_model.items()}) == 0


def test_drawing_and_verifying_count_beside_passes() -> None:
    drafted = {own: Proposal(1, 0.8, drafting=(own.streams[1],)) for own in proposals(NOTHING)}
    for verify_s, limit in ((0.0, 1), (10.0, 0)):
        costs: Any = StepCosts()
        costs.note(BASE, 1, 1.0)
        costs.note(BASE, 2, 1.0)
        costs.note(SMALL, 1, 0.1)
        costs.note(Work.VERIFY, 1, verify_s)
        costs.note(Work.VERIFY, 2, 2 * verify_s)
        assert costs.estimate(Work.DRAW, 1) == verify_s, "not known yet"
        assert DraftPolicy(costs).shared_limit(drafted) == limit
    costs.note(Work.DRAW, 1, 0.25)
    assert costs.estimate(Work.DRAW, 1) == 0.25


def test_a_fixed_number_is_not_trimmed() -> None:
    costly_tokens = policy(per_pass=0.01, per_token=0.001)
    fixed = Proposal(number=4, rate=0.9, trimmable=False)
    assert fixed.within(0) == 4
    assert LIKELY.within(2) == 2
    assert costly_tokens.shared_limit(proposals(fixed, LIKELY)) == 4  # the pass is that long anyway


def test_unknown_costs_leave_what_each_would_draft() -> None:
    assert DraftPolicy(StepCosts()).shared_limit(proposals(LIKELY, NOTHING)) == 4


@pytest.mark.parametrize(("more_tokens_s", "own_limit", "limit"), [(0.0, 0, 3), (20.0, 0, 0)])
def test_a_copy_drafts_cheaply_and_the_model_itself_reads_its_drafts(
    more_tokens_s: float, own_limit: int, limit: int
) -> None:
    """1.5, 1.75, 1.875, ... tokens in 2.1, 2.2, 2.3, ... seconds, unless reading several tokens in one pass is dear."""
    costs: Any = StepCosts()
    for num_tokens in (1, 2, 4, 8):
        costs.note(BASE, num_tokens, 1.0)
        costs.note(SMALL, num_tokens, 1.0 if num_tokens == 1 else 1.0 + more_tokens_s)
    costs.note(COPY, 1, 0.1)
    own, with_copy = ToySequence(), ToySequence(COPY)

    def best(sequence: Any) -> int:
        return DraftPolicy(costs).shared_limit({sequence: Proposal(4, 0.5, (sequence.streams[1],))})

    assert (best(own), best(with_copy)) == (own_limit, limit)


class LookingUp(ToySequence):
    """One whose text has what it looks up."""

    def __init__(self, *, found_rate: float, tuned_rate: float) -> None:
        super().__init__()
        self.grammar = None
        self.draft_limit = 4
        self.last_drafted_at = 0
        self.drafts: list[int] = []
        self.drafted_by: Acceptance | None = None
        self.found: Any = None
        self.lookup = SimpleNamespace(propose=lambda limit: [5, 6, 7, 8][:limit])
        self.lookup_acceptance, self.tuned_acceptance = Acceptance(found_rate), Acceptance(tuned_rate)
        self.drafting_streams = ((self.streams[1], 1.0),)

    def clear_drafts(self) -> None:
        """As of `GenerationSequence`."""
        self.drafts, self.drafted_by = [], None

    def draftable(self, token_ids: list[int]) -> list[int]:
        """All."""
        return token_ids


@pytest.mark.parametrize(("found_rate", "by_lookup"), [(0.9, True), (0.2, False)])
def test_of_lookup_and_tuned_model_the_one_drafts_that_promises_more(found_rate: float, by_lookup: bool) -> None:
    sequence: Any = LookingUp(found_rate=found_rate, tuned_rate=0.9)
    runner: Any = SimpleNamespace(costs=policy(per_pass=0.0, per_token=0.0)._costs, device=SimpleNamespace(type="cpu"))
    for network, seconds in ((BASE, 1.0), (SMALL, 0.1)):
        for num_tokens in (1, 2, 4, 8):
            for _ in range(9):
                runner.costs.note(network, num_tokens, seconds)
    proposal = Drafter(runner, learns=True)._propose(sequence, 1)
    assert proposal.number > 0
    assert bool(proposal.drafting) is not by_lookup
    assert (sequence.drafts, sequence.drafted_by) == (
        ([5, 6, 7, 8], sequence.lookup_acceptance) if by_lookup else ([], None)
    )


class Drafting(ToySequence):
    """One whose drafts are read one by one."""

    def __init__(self, *, adaptive: bool = True) -> None:
        super().__init__()
        self.speculation.adaptive = adaptive
        self.drafts: list[int] = []
        self.draft_limit = 8

    def draft(self, prospects: Prospects, confidence: float) -> None:
        """Another one, of which its drafter is so sure."""
        self.drafts.append(0)
        prospects.note(self, confidence)  # type: ignore[arg-type]


def prospects_of(*sequences: Drafting, limit: int = 4, costs: DraftPolicy | None = None) -> Prospects:
    """Drafts that are right nine times of ten, in passes of a second each but for half a second of the small model's."""
    seconds: Any = StepCosts()
    for num_tokens in (1, 2, 4, 8, 16):
        seconds.note(BASE, num_tokens, 1.0)
        seconds.note(SMALL, num_tokens, 0.5)
    given: Any = {own: Proposal(limit, 0.9, (own.streams[1],)) for own in sequences}
    return Prospects(costs or DraftPolicy(seconds), given, limit)


def test_a_draft_pays_while_all_before_it_are_likely_enough() -> None:
    """4.1 tokens in 1 + 5 * 0.5 seconds: another half second has to promise 0.59 of one."""
    own: Any = Drafting()
    prospects = prospects_of(own)
    for confidence, pays in ((0.99, True), (0.9, True), (0.75, True), (0.9, False)):  # 0.9 * (0.99, 0.89, 0.67, 0.60)
        own.draft(prospects, confidence)
        assert prospects.worth_more([own]) == ([own] if pays else [])


def test_one_that_does_not_pay_by_itself_may_pay_with_those_that_follow() -> None:
    """A pass of three tokens takes twice the time of one of two, and one of nine takes no more than that."""
    seconds: Any = StepCosts()
    for num_tokens, base_s in ((1, 1.0), (2, 1.0), (3, 2.0), (8, 2.0), (16, 2.0)):
        seconds.note(BASE, num_tokens, base_s)
        seconds.note(SMALL, num_tokens, 0.01)
    own: Any = Drafting()
    prospects = prospects_of(own, limit=8, costs=DraftPolicy(seconds))
    own.draft(prospects, 0.9)
    assert prospects.worth_more([own]) == [own]
    own.draft_limit = 2
    short = prospects_of(own, limit=8, costs=DraftPolicy(seconds))
    short.note(own, 0.9)
    assert short.worth_more([own]) == []


def test_who_drafts_a_fixed_number_goes_on() -> None:
    own: Any = Drafting(adaptive=False)
    prospects = prospects_of(own)
    own.draft(prospects, 0.01)
    assert prospects.worth_more([own]) == [own]


def test_those_that_go_on_share_a_pass_and_the_step_waits_for_all() -> None:
    """Two make 8.2 tokens in 3.5 seconds, and half a second for both is worth 0.59 of each again; for one alone it is 1.17."""
    one: Any = Drafting()
    two: Any = Drafting()
    prospects = prospects_of(one, two)
    one.draft(prospects, 1.0)
    two.draft(prospects, 0.9)
    assert prospects.worth_more([one, two]) == [one, two]
    two.draft(prospects, 0.5)
    assert prospects.worth_more([one]) == []


def test_as_long_as_times_are_not_known_drafts_go_on() -> None:
    own: Any = Drafting()
    prospects = prospects_of(own, costs=DraftPolicy(StepCosts()))
    own.draft(prospects, 0.01)
    assert prospects.worth_more([own]) == [own]


@pytest.mark.parametrize(
    ("token_ids", "judged", "right"), [([1, 2, 9, 4], 3, 2), ([1, 2], 2, 2), ([8], 1, 0), ([1, 2, 3, 4], 3, 3)]
)
def test_what_was_found_is_judged_by_what_came_though_another_one_drafted(
    token_ids: list[int], judged: int, right: int
) -> None:
    found, expected = Acceptance(0.6), Acceptance(0.6)
    expected.note(judged, right)
    sequence: Any = SimpleNamespace(found=(found, [1, 2, 3]), drafted_by=Acceptance(0.7))
    GenerationSequence._judge_found(sequence, *sequence.found, token_ids)
    assert (found.rate, found._num_noted, sequence.found) == (expected.rate, 1, None)
    sequence.drafted_by = found  # it drafted itself, and has been judged
    GenerationSequence._judge_found(sequence, found, [1, 2, 3], token_ids)
    assert found._num_noted == 1
