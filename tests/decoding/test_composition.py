"""The formula, against itself written out in float64, and its corner cases."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import TopPLogitsWarper

from eft_engine.decoding.composition import (
    PairMembers,
    _compose_at_once,
    _compose_member_by_member,
    add_kept,
    bound_implausible,
    compose,
    direction,
    keep_plausible,
    keep_tuned_outside_nuclei,
    member_logprobs,
    nucleus,
)

NONE = torch.tensor([], dtype=torch.long)
INF = math.inf
WEIGHTS = [[], [0.0], [1.0], [0.5], [-1.5], [2.0, -0.5], [0.3, 0.7], [1.0, 1.0, -2.0]]


def formula(logits: Tensor, weights: Sequence[float], amplification: float = 1.0) -> Tensor:
    """Equation 4 and the amplification of section 3.3 as they are written. `logits` is `[members, width]`."""
    base, *small = logits.double().log_softmax(dim=-1)
    scores = (1 - sum(weights)) * base
    for index, weight in enumerate(weights):
        tuned, reference = small[2 * index : 2 * index + 2]
        scores = scores + weight * (tuned + amplification * (base - reference))
    return scores.log_softmax(dim=-1)


def member_coefficients(weights: Sequence[float], *, amplification: float = 1.0) -> list[float]:
    """The base and, for every pair, tuned and reference, in this order; summed up exactly."""
    count = 1 + 2 * len(weights)
    terms = [[1.0], *([] for _ in range(count - 1))]
    for index, weight in enumerate(weights):
        change = direction(PairMembers(1 + 2 * index, 2 + 2 * index), count, amplification=amplification)
        for own, by in zip(terms, change, strict=True):
            own.append(weight * by)
    return [math.fsum(own) for own in terms]


def composed(logits: Tensor, weights: Sequence[float], amplification: float = 1.0, masked: Tensor = NONE) -> Tensor:
    """What the engine computes from raw logits `[members, width]`, normalised."""
    logprobs, _ = member_logprobs(logits, masked)
    coefficients = torch.tensor([member_coefficients(weights, amplification=amplification)])
    return compose(logprobs[None], coefficients)[0].log_softmax(dim=-1)


def random_logits(num_pairs: int, *, width: int = 11, seed: int = 0) -> Tensor:
    return torch.randn(1 + 2 * num_pairs, width, generator=torch.Generator().manual_seed(seed)) * 3


# ---- the formula -------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-3, 3), max_size=3), st.floats(-0.5, 2.0), st.integers(0, 1000))
def test_composition_is_the_formula(weights: list[float], amplification: float, seed: int) -> None:
    logits = random_logits(len(weights), seed=seed)
    torch.testing.assert_close(
        composed(logits, weights, amplification).double(), formula(logits, weights, amplification), atol=2e-4, rtol=1e-5
    )


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_without_amplification_it_is_base_plus_weighted_deltas(weights: list[float]) -> None:
    logits = random_logits(len(weights))
    base, *small = logits.double().log_softmax(dim=-1)
    deltas = [weight * (small[2 * index] - small[2 * index + 1]) for index, weight in enumerate(weights)]
    expected = sum(deltas, start=base).log_softmax(dim=-1)
    torch.testing.assert_close(composed(logits, weights).double(), expected, atol=2e-5, rtol=1e-5)


def test_rows_have_their_own_coefficients() -> None:
    rows = [random_logits(2, seed=seed) for seed in range(3)]
    weights = [[0.0, 1.0], [-1.0, 0.5], [2.0, 0.0]]
    logprobs = torch.stack([member_logprobs(row, NONE)[0] for row in rows])
    together = compose(logprobs, torch.tensor([member_coefficients(own) for own in weights])).log_softmax(dim=-1)
    for row, own, ours in zip(rows, weights, together, strict=True):
        torch.testing.assert_close(ours.double(), formula(row, own), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("weights", "amplification", "coefficients"),
    [
        ([], 1.0, [1.0]),
        ([], 5.0, [1.0]),
        ([0.0], 1.0, [1.0, 0.0, 0.0]),
        ([1.0], 1.0, [1.0, 1.0, -1.0]),
        ([-0.5], 1.0, [1.0, -0.5, 0.5]),
        ([1.0], 1.5, [1.5, 1.0, -1.5]),
        ([1.0], 0.0, [0.0, 1.0, 0.0]),
        ([0.5], 2.0, [1.5, 0.5, -1.0]),
        ([0.5, 0.25], 1.0, [1.0, 0.5, -0.5, 0.25, -0.25]),
        ([0.5, 0.25], 3.0, [2.5, 0.5, -1.5, 0.25, -0.75]),
    ],
)
def test_coefficients_are_those_worked_out_by_hand(
    weights: list[float], amplification: float, coefficients: list[float]
) -> None:
    assert member_coefficients(weights, amplification=amplification) == coefficients


@given(st.lists(st.floats(-3, 3), max_size=3), st.floats(-1, 3))
def test_coefficients_sum_to_one_and_one_of_them_is_positive(weights: list[float], amplification: float) -> None:
    coefficients = member_coefficients(weights, amplification=amplification)
    assert math.isclose(sum(coefficients), 1.0, abs_tol=1e-9)
    assert max(coefficients) > 0  # so that a masked id is forbidden, whatever the weights


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, -2.0])
def test_tuned_that_is_the_reference_leaves_the_base(weight: float) -> None:
    base, small = random_logits(1)[:2]
    torch.testing.assert_close(
        composed(torch.stack([base, small, small]), [weight]), base.log_softmax(dim=-1), atol=2e-6, rtol=1e-5
    )


def test_base_that_is_the_reference_gives_the_tuned_model_at_weight_one() -> None:
    base, tuned = random_logits(1)[:2]
    for amplification in (0.0, 1.0, 2.5):
        ours = composed(torch.stack([base, tuned, base]), [1.0], amplification)
        torch.testing.assert_close(ours, tuned.log_softmax(dim=-1), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_logits_shifted_by_a_constant_change_nothing(weights: list[float]) -> None:
    logits = random_logits(len(weights))
    shifts = torch.linspace(-7, 9, len(logits))[:, None]
    torch.testing.assert_close(composed(logits + shifts, weights), composed(logits, weights), atol=2e-5, rtol=1e-5)


# ---- log-probabilities of a member -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logprobs_are_float32_and_lead_back_to_the_logits(dtype: torch.dtype) -> None:
    logits = torch.randn(3, 7).to(dtype)
    logprobs, normalisers = member_logprobs(logits, NONE)
    assert logprobs.dtype is torch.float32
    torch.testing.assert_close(logprobs + normalisers[:, None], logits.float(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(logprobs, logits.float().log_softmax(dim=-1))


def test_masked_ids_get_no_probability_and_the_rest_all_of_it() -> None:
    logits = torch.tensor([[0.0, 50.0, 0.0, 50.0]])
    logprobs, _ = member_logprobs(logits, torch.tensor([1, 3]))
    assert logprobs[0].exp().tolist() == [0.5, 0.0, 0.5, 0.0]
    assert logits.tolist() == [[0.0, 50.0, 0.0, 50.0]]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_masking_equals_members_that_never_had_the_token(weights: list[float]) -> None:
    logits = random_logits(len(weights))
    masked, kept = torch.tensor([0, 4, 10]), [1, 2, 3, 5, 6, 7, 8, 9]
    ours = composed(logits, weights, masked=masked)
    assert ours[masked].tolist() == [-INF] * 3
    torch.testing.assert_close(ours[kept].double(), formula(logits[:, kept], weights), atol=2e-5, rtol=1e-5)


# ---- probability 0 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "tuned", "reference", "scores"),
    [
        (-INF, -1.0, -1.0, -INF),
        (-1.0, -INF, -1.0, -INF),
        (-1.0, -1.0, -INF, -2.0),
        (-1.0, -INF, -INF, -INF),
        (-INF, -1.0, -INF, -INF),
        (-INF, -INF, -INF, -INF),
    ],
)
def test_member_with_a_positive_coefficient_forbids_and_one_with_a_negative_says_nothing(
    base: float, tuned: float, reference: float, scores: float
) -> None:
    logprobs = torch.tensor([base, tuned, reference])[None, :, None]
    assert compose(logprobs, torch.tensor([[1.0, 1.0, -1.0]])).item() == scores


def test_negative_weight_swaps_who_forbids() -> None:
    coefficients = torch.tensor([member_coefficients([-1.0])])
    tuned_forbids = torch.tensor([-1.0, -INF, -2.0])[None, :, None]
    reference_forbids = torch.tensor([-1.0, -2.0, -INF])[None, :, None]
    assert compose(tuned_forbids, coefficients).item() == -3.0
    assert compose(reference_forbids, coefficients).item() == -INF


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_member_with_coefficient_zero_says_nothing(zero: float) -> None:
    logprobs = torch.tensor([[[-1.0, -2.0], [-INF, -3.0], [-INF, -INF]]])
    assert compose(logprobs, torch.tensor([[1.0, zero, zero]])).tolist() == [[-1.0, -2.0]]


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=3), st.floats(-1, 3), st.integers(0, 1000))
def test_scores_are_never_nan(weights: list[float], amplification: float, seed: int) -> None:
    logits = random_logits(len(weights), width=40, seed=seed)
    forbidden = torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    logprobs, _ = member_logprobs(logits.masked_fill(forbidden, -INF), NONE)
    coefficients = torch.tensor([member_coefficients(weights, amplification=amplification)])
    before = logprobs.clone()
    scores = compose(logprobs[None], coefficients)[0]
    forbidding = (forbidden & (coefficients[0] > 0)[:, None]).any(dim=0)
    assert torch.equal(scores == -INF, forbidding)
    assert scores[~forbidding].isfinite().all()
    assert torch.equal(logprobs, before)


# ---- the nucleus -------------------------------------------------------------------------------------------------------


@given(st.floats(0.05, 0.99), st.integers(0, 500))
def test_nucleus_is_that_of_transformers(top_p: float, seed: int) -> None:
    scores = torch.randn(2, 30, generator=torch.Generator().manual_seed(seed)) * 3
    kept = TopPLogitsWarper(top_p)(None, scores).isfinite()
    assert torch.equal(nucleus(scores, torch.tensor([top_p, top_p])), kept)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (1e-60, [False, True, False, False]),  # 0 in float32
        (1e-9, [False, True, False, False]),
        (0.45, [False, True, False, False]),
        (0.55, [True, True, False, False]),
        (0.85, [True, True, False, True]),
        (0.999, [True, True, True, True]),
    ],
)
def test_nucleus_keeps_the_token_that_crosses_the_threshold(top_p: float, kept: list[bool]) -> None:
    scores = torch.tensor([[0.3, 0.5, 0.05, 0.15]]).log()
    assert nucleus(scores, torch.tensor([top_p])).tolist() == [kept]


def test_nucleus_of_each_row_has_its_own_size() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.2]]).log().expand(3, -1)
    sizes = nucleus(scores, torch.tensor([0.4, 0.7, 0.9])).sum(dim=-1)
    assert sizes.tolist() == [1, 2, 3]


# ---- conservative mode -------------------------------------------------------------------------------------------------


def conservative(scores: Tensor, tuned: Sequence[Tensor], shares: Sequence[float], top_p: float) -> list[float]:
    """One row, token by token, in Python's own numbers: `scores` `[width]`, `tuned` one `[width]` for each model."""
    inside: set[int] = set()
    for own, share in zip(tuned, shares, strict=True):
        if share == 0:
            continue
        passed = 0.0
        for token_id in own.argsort(descending=True, stable=True).tolist():
            if passed >= top_p:
                break
            inside.add(token_id)
            passed += math.exp(own[token_id])
    found: list[float] = []
    for token_id, score in enumerate(scores.tolist()):
        mean = sum(share * float(own[token_id]) for own, share in zip(tuned, shares, strict=True) if share)
        found.append(score if token_id in inside or not any(shares) else mean)
    return found


def test_conservative_mode_keeps_the_tuned_probability_outside_its_nucleus() -> None:
    base = torch.tensor([0.1, 0.2, 0.3, 0.2, 0.2])
    tuned = torch.tensor([0.5, 0.3, 0.1, 0.08, 0.02])
    reference = torch.tensor([0.2, 0.1, 0.1, 0.2, 0.4])
    logprobs = torch.stack([base, tuned, reference]).log()[None]
    scores = compose(logprobs, torch.tensor([member_coefficients([1.0])]))
    kept = keep_tuned_outside_nuclei(scores, logprobs[:, 1:2], torch.ones(1, 1), torch.tensor([0.7])).exp()[0]
    # Inside {0, 1}: base * tuned / reference; outside: tuned.
    torch.testing.assert_close(kept, torch.tensor([0.25, 0.6, 0.1, 0.08, 0.02]))


def test_conservative_mode_with_a_nucleus_of_everything_changes_nothing() -> None:
    logprobs, _ = member_logprobs(random_logits(1), NONE)
    scores = compose(logprobs[None], torch.tensor([[1.0, 1.0, -1.0]]))
    kept = keep_tuned_outside_nuclei(scores, logprobs[None, 1:2], torch.ones(1, 1), torch.tensor([0.999999]))
    assert torch.equal(kept, scores)


@given(st.floats(0.05, 0.99), st.integers(0, 1000))
def test_conservative_mode_of_one_pair_is_its_tuned_model_outside_its_nucleus_bit_by_bit(
    top_p: float, seed: int
) -> None:
    tuned = random_logits(1, width=30, seed=seed).log_softmax(dim=-1)
    scores = torch.randn(3, 30, generator=torch.Generator().manual_seed(seed))
    sizes = torch.full((3,), top_p)
    kept = keep_tuned_outside_nuclei(scores, tuned[:, None], torch.ones(3, 1), sizes)
    assert torch.equal(kept, torch.where(nucleus(tuned, sizes), scores, tuned))


@given(
    st.lists(st.sampled_from([0.0, 0.1, 1.0, 2.5]), min_size=1, max_size=3),
    st.floats(0.05, 0.99),
    st.integers(0, 1000),
)
def test_conservative_mode_of_several_pairs_is_the_slow_one(weights: list[float], top_p: float, seed: int) -> None:
    total = sum(weights) or 1.0
    shares = [weight / total for weight in weights]
    logits = random_logits(1, width=13, seed=seed)[: len(weights)]
    logits[:, 1:][torch.rand(len(weights), 12, generator=torch.Generator().manual_seed(seed)) < 0.1] = -INF
    tuned = logits.log_softmax(dim=-1)
    scores = torch.randn(13, generator=torch.Generator().manual_seed(seed + 1))
    kept = keep_tuned_outside_nuclei(scores[None], tuned[None], torch.tensor([shares]), torch.tensor([top_p]))[0]
    torch.testing.assert_close(kept, torch.tensor(conservative(scores, list(tuned), shares, top_p)))


def test_conservative_rows_have_their_own_shares_and_one_without_any_stays() -> None:
    """A pair with weight 0 has no say, whatever it would say; where all have, the row is the base's."""
    first, second = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.05, 0.9]]).log()
    scores = torch.tensor([[1.0, 2.0, 3.0]] * 4)
    shares = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.0, 0.0]])
    tuned = torch.stack([first, second]).expand(4, -1, -1)
    kept = keep_tuned_outside_nuclei(scores, tuned, shares, torch.full((4,), 0.5))
    mean = math.log(0.05)  # of both: the geometric mean of equal numbers
    expected = [[1.0, first[1], first[2]], [second[0], second[1], 3.0], [1.0, mean, 3.0], [1.0, 2.0, 3.0]]
    torch.testing.assert_close(kept, torch.tensor(expected))


# ---- plausibility ------------------------------------------------------------------------------------------------------


def plausible(scores: Sequence[float], base: Sequence[float], share: float) -> list[float]:
    """One row, token by token: probabilities of the base, as they are, against its best one among the possible tokens."""
    best = max(math.exp(own) for score, own in zip(scores, base, strict=True) if score > -INF)
    return [score if math.exp(own) >= share * best else -INF for score, own in zip(scores, base, strict=True)]


def test_implausible_tokens_are_forbidden_by_the_bases_best() -> None:
    base = torch.tensor([[0.5, 0.06, 0.04, 0.4]]).log()
    scores = torch.zeros(1, 4)
    keep_plausible(scores, base, torch.tensor([0.1]))
    assert scores.tolist() == [[0.0, 0.0, -INF, 0.0]]


def test_the_best_is_that_of_what_is_possible() -> None:
    """A grammar that leaves the base's last choice leaves it."""
    base = torch.tensor([[0.98, 0.0101, 0.0099]]).log()
    scores = torch.tensor([[-INF, 1.0, 2.0]])
    keep_plausible(scores, base, torch.tensor([0.99]))
    assert scores.tolist() == [[-INF, 1.0, -INF]]


@given(st.lists(st.sampled_from([0.001, 0.05, 0.3, 0.9, 1.0]), min_size=2, max_size=4), st.integers(0, 1000))
def test_plausibility_is_the_slow_one_and_leaves_a_token(shares: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = (torch.randn(len(shares), 9, generator=generator) * 3).log_softmax(dim=-1)
    scores = torch.randn(len(shares), 9, generator=generator)
    scores[torch.rand(scores.shape, generator=generator) < 0.3] = -INF
    scores[:, seed % 9] = 0.0  # something is possible
    expected = [plausible(*row, share) for *row, share in zip(scores.tolist(), base.tolist(), shares, strict=True)]
    keep_plausible(scores, base, torch.tensor(shares))
    assert scores.tolist() == expected
    assert (scores > -INF).any(dim=-1).all()


def test_share_one_leaves_the_bases_best_and_what_is_as_good() -> None:
    base = torch.tensor([[0.4, 0.2, 0.4], [0.1, 0.8, 0.1]]).log()
    scores = torch.zeros(2, 3)
    keep_plausible(scores, base, torch.ones(2))
    assert scores.tolist() == [[0.0, -INF, 0.0], [-INF, 0.0, -INF]]


def test_members_one_by_one_are_members_at_once() -> None:
    """What a CPU computes and what an accelerator computes, with tokens that a member forbids among the others."""
    torch.manual_seed(1)
    logprobs = torch.randn(6, 5, 40).log_softmax(dim=-1)
    logprobs[torch.rand(6, 5, 40) < 0.1] = -torch.inf
    coefficients = torch.tensor([[1.0, 0.5, -0.5, 2.0, -2.0], [0.0, 1.0, 0.0, -1.0, 1.0]] * 3)
    one_by_one, at_once = _compose_member_by_member(logprobs, coefficients), _compose_at_once(logprobs, coefficients)
    torch.testing.assert_close(one_by_one, at_once)
    alone = _compose_member_by_member(logprobs[:1], coefficients[:1])
    assert torch.equal(alone, one_by_one[:1]), "a row's bits are its own"
    finite = torch.randn(1, 5, 40)
    mixed = _compose_member_by_member(torch.cat([finite, logprobs[:1]]), coefficients[:1].expand(2, -1))
    assert torch.equal(mixed[:1], _compose_member_by_member(finite, coefficients[:1]))


# ---- tokens that only tuned models have --------------------------------------------------------------------------------


def with_kept(logits: Tensor, weights: Sequence[float], kept: Tensor) -> Tensor:
    """The engine's way, from raw logits `[members, width]` of which base and reference have none for `kept`."""
    logits = logits.clone()
    logits[[0, *range(2, len(logits), 2)], kept[:, None]] = -INF
    logprobs, _ = member_logprobs(logits, NONE, kept)
    scores = compose(logprobs[None], torch.tensor([member_coefficients(weights)]))
    active = [index for index, weight in enumerate(weights) if weight]
    shares = torch.tensor([abs(weights[index]) for index in active])
    own = logprobs[[1 + 2 * index for index in active]][:, kept]
    add_kept(scores, own[None], (shares / shares.sum())[None], kept)
    return scores[0].log_softmax(dim=-1)


@given(
    st.lists(st.floats(-3, 3).filter(lambda weight: abs(weight) > 0.01), min_size=1, max_size=3),
    st.floats(-30, 30),
    st.integers(0, 1000),
)
def test_kept_tokens_have_the_tuned_models_probability_and_the_others_the_rest(
    weights: list[float], liked: float, seed: int
) -> None:
    kept, shared = torch.tensor([3, 9, 10]), torch.tensor([0, 1, 2, 4, 5, 6, 7, 8])
    logits = random_logits(len(weights), seed=seed)
    logits[1::2, kept] += liked
    total = sum(map(abs, weights))
    own = sum(
        abs(weight) / total * logits[1 + 2 * index].double().softmax(-1)[kept] for index, weight in enumerate(weights)
    )
    assert isinstance(own, Tensor)
    rest = sum(
        abs(weight) / total * logits[1 + 2 * index].double().softmax(-1)[shared].sum()
        for index, weight in enumerate(weights)
    )
    expected = torch.empty(11, dtype=torch.float64)
    expected[kept] = own.log()
    expected[shared] = formula(logits[:, shared], weights) + math.log(rest)
    torch.testing.assert_close(with_kept(logits, weights, kept).double(), expected, atol=2e-4, rtol=1e-5)


def test_kept_tokens_leave_the_scores_of_shared_ones_as_they_are() -> None:
    kept = torch.tensor([10])
    scores = torch.randn(4, 11)
    before = scores.clone()
    add_kept(scores, torch.randn(4, 1, 1), torch.tensor([[1.0], [1.0], [1.0], [0.0]]), kept)
    assert torch.equal(scores[:, :10], before[:, :10])
    assert (scores[:3, 10] != before[:3, 10]).all()
    assert torch.equal(scores[3], before[3]), "a row whose weights are all 0 stays as it is"


def test_rows_of_kept_tokens_have_their_own_shares() -> None:
    kept = torch.tensor([1])
    scores = torch.zeros(3, 3)
    own = torch.tensor([math.log(3.0), math.log(1.0)])[None, :, None].expand(3, -1, -1)  # 3/4 and 1/2 of all tokens
    add_kept(scores, own, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]), kept)
    torch.testing.assert_close(scores.softmax(dim=-1)[:, 1], torch.tensor([0.75, 0.5, 0.625]))


# ---- a bound on what implausible tokens are lifted ---------------------------------------------------------------------


@given(
    st.lists(st.floats(-3, 4), min_size=1, max_size=4), st.floats(0.001, 1.0), st.floats(0.5, 2.0), st.integers(0, 1000)
)
def test_implausible_tokens_are_lifted_with_weight_one_at_most(
    weights: list[float], share: float, amplification: float, seed: int
) -> None:
    """Token by token, as it is written."""
    rows = torch.stack([random_logits(1, seed=seed + row).log_softmax(dim=-1) for row in range(len(weights))])
    change = torch.tensor([direction(PairMembers(1, 2), 3, amplification=amplification)] * len(weights))
    differences, tuned = compose(rows, change), rows[:, 1]
    scores = rows[:, 0] + torch.tensor(weights)[:, None] * differences
    bound_implausible(scores, differences, tuned, torch.tensor(weights), share)
    for row, weight in enumerate(weights):
        best = max(tuned[row].exp().tolist())
        for token, own in enumerate(differences[row].tolist()):
            ratio = math.exp(tuned[row, token]) / best
            if ratio == pytest.approx(share, rel=1e-4):
                continue
            counted = min(weight, 1.0) if ratio < share and own > 0 else weight
            expected = float(rows[row, 0, token]) + counted * own
            assert float(scores[row, token]) == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("weight", [-2.0, 0.0, 0.3, 1.0])
def test_up_to_weight_one_a_bound_changes_not_one_bit(weight: float) -> None:
    base, tuned, reference = random_logits(1).log_softmax(dim=-1)
    differences = (tuned - reference)[None]
    differences[0, 3], differences[0, 4] = -INF, INF
    scores = base[None] + weight * differences
    before = scores.clone()
    bound_implausible(scores, differences, tuned[None], torch.tensor([weight]), share=1.0)
    assert torch.equal(scores.view(torch.int32), before.view(torch.int32))


def test_of_a_token_that_the_reference_rules_out_nothing_is_lifted() -> None:
    """Nothing is divided by 0: as in `compose` it counts as what the tuned model gives, which is never positive."""
    members = torch.tensor([[[0.5, 0.5], [0.99, 0.01], [1.0, 0.0]]]).log()
    differences = compose(members, torch.tensor([[0.0, 1.0, -1.0]]))
    scores = compose(members, torch.tensor([[1.0, 3.0, -3.0]]))
    before = scores.clone()
    bound_implausible(scores, differences, members[:, 1], torch.tensor([3.0]), share=0.5)
    assert scores.tolist() == before.tolist()
