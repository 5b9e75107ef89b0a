"""Which members run, at which positions, and with which coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eft_engine import CompositionOptions, FirstTokens, FromMarker, Gate, LinearRamp, Proportional
from eft_engine.decoding.composition import PairMembers
from eft_engine.engine.routing import Reader, Route, draft_route, plan_route
from eft_engine.engine.steering import Settled
from eft_engine.weights import Weight, is_off, numbers_of

PLAIN = CompositionOptions()
CONSERVATIVE = CompositionOptions(conservative_top_p=0.9)
PLAUSIBLE = CompositionOptions(min_plausibility=0.1)
BOUNDED = CompositionOptions(tuned_plausibility=0.1)
KL = Gate(by="kl", above=0.1)
SURE = Gate(by="base_confidence", below=0.9)
Members = list[tuple[int, ...]]

SHARED = (PairMembers(1, 2), PairMembers(3, 4))
BASE, TUNED_A, TUNED_B, REFERENCE = "base", "tuned a", "tuned b", "reference"


def reader(network: str, prompt_ids: Sequence[int] = (1, 2), adapter: str | None = None) -> Reader:
    """A name is as good as a network: it can be compared."""
    own: Any = network
    return Reader(network, own, adapter, tuple(prompt_ids))


def one_base() -> list[Reader]:
    """A base that is also the reference of both of its pairs."""
    return [reader(network) for network in (BASE, TUNED_A, BASE, TUNED_B, BASE)]


def five_networks() -> list[Reader]:
    return [reader(network) for network in (BASE, TUNED_A, "reference a", TUNED_B, "reference b")]


def plan(
    readers: Sequence[Reader], weights: Sequence[Weight], composition: CompositionOptions = PLAIN, **options: Any
) -> Route:
    return plan_route(
        readers, SHARED[: len(weights)], [dict(zip("abc", weights, strict=False))], composition, **options
    )


def members(streams: Sequence[Any]) -> Members:
    return [stream.members for stream in streams]


@pytest.mark.parametrize(
    ("weights", "run", "coefficients"),
    [
        ((0.0, 0.0), [(0, 2, 4)], (1.0, 0.0, 0.0, 0.0, 0.0)),
        ((1.0, 0.0), [(1,)], (0.0, 1.0, 0.0, 0.0, 0.0)),
        ((0.5, 0.0), [(0, 2, 4), (1,)], (0.5, 0.5, 0.0, 0.0, 0.0)),
        ((0.5, 0.5), [(1,), (3,)], (0.0, 0.5, 0.0, 0.5, 0.0)),
        ((2.0, -1.0), [(1,), (3,)], (0.0, 2.0, 0.0, -1.0, 0.0)),
    ],
)
def test_streams_that_cancel_out_are_not_run(
    weights: tuple[float, float], run: Members, coefficients: tuple[float, ...]
) -> None:
    route = plan(one_base(), weights)
    assert members(route.streams) == run
    assert route.fixed == coefficients
    rows = route.rows([list(weights)] * 2)
    assert rows.coefficients == [list(coefficients)] * 2
    assert members(rows.active) == run


def test_scoring_runs_everyone() -> None:
    route = plan(one_base(), (0.0, 0.0), always=range(5))
    assert members(route.streams) == [(0, 2, 4), (1,), (3,)]
    assert members(route.rows([[0.0, 0.0]]).active) == [(0, 2, 4), (1,), (3,)]


def test_own_prompts_are_own_streams() -> None:
    readers = [reader(BASE, (9,)), *one_base()[1:]]
    route = plan(readers, (1.0, 0.0))
    assert [(stream.members, stream.prompt_ids) for stream in route.streams] == [
        ((0,), (9,)),
        ((1,), (1, 2)),
        ((2, 4), (1, 2)),
    ]


def test_an_adapter_is_a_stream_of_its_own_on_the_same_network() -> None:
    readers = [reader(BASE), reader(BASE, adapter="chat"), reader(BASE)]
    route = plan(readers, (0.5,))
    assert [(stream.members, stream.adapter) for stream in route.streams] == [((0, 2), None), ((1,), "chat")]


def test_when_everything_cancels_the_base_carries_the_uniform_distribution() -> None:
    options = CompositionOptions(amplification=0.0)
    assert members(plan(one_base(), (1.0, 0.0), options).streams) == [(1,)]
    nothing = plan(one_base()[:1] * 5, (-1.0, 0.0), options)  # 2 base - tuned, and the base is the tuned one too
    assert members(nothing.streams) == [(0, 1, 2, 3, 4)]
    assert plan_route([reader(BASE)] * 2, [PairMembers(1)], [{"a": -1.0}], PLAIN).fixed == (0.0, 0.0)
    assert members(plan_route([reader(BASE)] * 2, [PairMembers(1)], [{"a": -1.0}], PLAIN).streams) == [(0, 1)]


# ---- terms, which have no reference ------------------------------------------------------------------------------------


def test_a_term_adds_its_model_and_takes_nothing_away() -> None:
    route = plan_route([reader(BASE), reader(TUNED_A)], [PairMembers(1)], [{"a": 0.5}], PLAIN)
    assert route.fixed == (1.0, 0.5)
    assert members(route.streams) == [(0,), (1,)]


def test_amplification_is_of_references_and_leaves_terms_alone() -> None:
    readers = [reader(BASE), reader(TUNED_A), reader(TUNED_B), reader(REFERENCE)]
    pairs = [PairMembers(1), PairMembers(2, 3)]
    route = plan_route(readers, pairs, [{"a": 0.5, "b": 1.0}], CompositionOptions(amplification=2.0))
    assert route.fixed == (2.0, 0.5, 1.0, -2.0)


def test_the_base_as_a_term_changes_its_own_coefficient() -> None:
    route = plan_route([reader(BASE)] * 2, [PairMembers(1)], [{"a": 0.25}], PLAIN)
    assert (members(route.streams), route.fixed) == ([(0, 1)], (1.25, 0.0))


def test_terms_of_opposite_signs_are_a_pair() -> None:
    readers = [reader(BASE), reader(TUNED_A), reader(REFERENCE)]
    terms = plan_route(readers, [PairMembers(1), PairMembers(2)], [{"a": 0.7, "b": -0.7}], PLAIN)
    assert terms.fixed == plan_route(readers, [PairMembers(1, 2)], [{"a": 0.7}], PLAIN).fixed


# ---- what options need -------------------------------------------------------------------------------------------------


def test_conservative_mode_runs_tuned_members_of_active_pairs_even_where_they_cancel_out() -> None:
    readers = [reader(BASE), reader(TUNED_A), reader(TUNED_A), reader(TUNED_B), reader(REFERENCE)]
    assert members(plan(readers, (1.0, 0.0)).streams) == [(0,)]
    route = plan(readers, (1.0, 0.0), CONSERVATIVE)
    assert members(route.streams) == [(0,), (1, 2)]
    assert route.read_by == {0: {1}}
    assert members(plan(readers, (0.0, 0.0), CONSERVATIVE).streams) == [(0,)]


def test_conservative_mode_takes_several_pairs() -> None:
    route = plan(five_networks(), (1.0, -0.5), CONSERVATIVE)
    assert route.read_by == {0: {1}, 1: {3}}
    assert members(route.streams) == [(0,), (1,), (2,), (3,), (4,)]


def test_plausibility_runs_the_base_even_where_it_cancels_out() -> None:
    assert members(plan(one_base(), (1.0,), PLAIN).streams) == [(1,)]
    route = plan(one_base()[:3], (1.0,), PLAUSIBLE)
    assert members(route.streams) == [(0, 2), (1,)]
    assert members(route.rows([[1.0]]).active) == [(0, 2), (1,)]


def test_a_bound_runs_both_members_of_a_pair_where_its_weight_exceeds_one() -> None:
    for weight in (1.0, -3.0, LinearRamp(start=-2.0, end=1.0)):
        plain, bounded = plan(five_networks()[:3], (weight,)), plan(five_networks()[:3], (weight,), BOUNDED)
        assert (bounded.bounded, bounded.fixed, bounded.needed) == ({}, plain.fixed, plain.needed)
    route = plan(one_base(), (2.0, 1.0), BOUNDED)
    assert route.bounded == {0: (-1.0, 1.0, 0.0, 0.0, 0.0)}
    assert members(route.streams) == [(0, 2, 4), (1,), (3,)]
    cancels = [reader(BASE), reader(TUNED_A), reader(REFERENCE), reader(BASE), reader(TUNED_A)]
    weights = (2.0, 2.0)  # base + 2 (tuned - reference) + 2 (base - tuned)
    assert members(plan(cancels, weights).streams) == [(0, 3), (2,)]
    route = plan(cancels, weights, BOUNDED)
    assert members(route.rows([list(weights)]).active) == [(0, 3), (1, 4), (2,)]


def test_a_bound_runs_them_at_no_position_where_the_weight_is_one_or_less() -> None:
    cancels = [reader(BASE), reader(TUNED_A), reader(BASE)]
    weight = LinearRamp(start=2.0, end=1.0)
    route = plan(cancels, (weight,), BOUNDED)
    assert members(route.rows([[1.0]]).active) == [(1,)], "base + tuned - base"
    assert members(route.rows([[1.5]]).active) == [(0, 2), (1,)]
    assert members(route.rows([[1.0], [1.5]]).active) == [(0, 2), (1,)]
    gate = Gate(by="base_entropy", above=1.0, weight=2.0)
    route = plan(five_networks()[:3], (gate,), BOUNDED)
    assert members(route.rows([[gate]]).active) == [(0,), (1,), (2,)]


def test_terms_and_pairs_of_one_model_have_no_bound() -> None:
    readers = [reader(BASE), reader(TUNED_A), reader(REFERENCE), reader(REFERENCE)]
    pairs = [PairMembers(1), PairMembers(2, 3)]
    assert plan_route(readers, pairs, [{"a": 2.0, "b": 2.0}], BOUNDED).bounded == {}


def test_a_member_alone_is_one_stream() -> None:
    for origin, run in ((0, (0,)), (1, (1,)), (4, (4,))):
        route = plan(five_networks(), (0.0, 0.0), origin=origin)
        assert members(route.streams) == members(route.rows([[0.0, 0.0]]).active) == [run]
        assert route.fixed == tuple(float(member == origin) for member in range(5))
    assert members(plan(one_base(), (0.0, 0.0), origin=4).streams) == [(0, 2, 4)]


def test_kept_tokens_ask_the_tuned_members_of_pairs_that_matter() -> None:
    route = plan(five_networks(), (0.5, 0.0), keeps=(0, 1))
    assert route.kept_by == {0: 1}
    route = plan(five_networks(), (LinearRamp(), 0.5), keeps=(0,))
    assert route.kept_by == {0: 1}


# ---- weights that follow the token -------------------------------------------------------------------------------------


def test_a_pair_is_run_where_its_weight_is_not_zero() -> None:
    weight = FirstTokens(num_tokens=2)
    route = plan(five_networks(), (weight, 0.5))
    assert members(route.streams) == [(0,), (1,), (2,), (3,), (4,)]
    assert route.fixed == (1.0, 0.0, 0.0, 0.5, -0.5)
    assert members(route.rows([[0.0, 0.5]]).active) == [(0,), (3,), (4,)]
    both = route.rows([[1.0, 0.5], [0.0, 0.5]])
    assert members(both.active) == [(0,), (1,), (2,), (3,), (4,)]
    assert both.coefficients == [[1.0, 1.0, -1.0, 0.5, -0.5], [1.0, 0.0, 0.0, 0.5, -0.5]]
    assert both.weights == [[1.0, 0.5], [0.0, 0.5]]


def test_streams_that_cancel_out_at_one_weight_only_are_held_and_run_at_the_others() -> None:
    route = plan(one_base()[:3], (LinearRamp(start=1.0, end=0.0),))
    assert members(route.streams) == [(0, 2), (1,)]
    assert members(route.rows([[1.0]]).active) == [(1,)]
    assert members(route.rows([[0.0]]).active) == [(0, 2)]
    assert members(route.rows([[0.5]]).active) == [(0, 2), (1,)]


def test_a_schedule_that_is_always_zero_is_weight_zero() -> None:
    off = FirstTokens(num_tokens=3, weight=0.0, then=FromMarker(marker="x", weight=0.0, before=0.0))
    assert members(plan(five_networks(), (off, 0.0)).streams) == [(0,)]


def test_weights_of_which_it_is_open_which_will_hold_are_held_for_both() -> None:
    route = plan_route(five_networks()[:3], SHARED[:1], [{"a": 1.0}, {"a": 0.0}], PLAIN)
    assert members(route.streams) == [(0,), (1,), (2,)]
    assert members(route.rows([[0.0]]).active) == [(0,)]
    assert members(route.rows([[1.0]]).active) == [(0,), (1,), (2,)]
    alike = plan_route(five_networks()[:3], SHARED[:1], [{"a": 0.0}, {"a": 0.0}], PLAIN)
    assert members(alike.streams) == [(0,)]


@pytest.mark.parametrize(
    ("weight", "run"),
    [(KL, [(0, 2), (1,)]), (SURE, [(0, 2), (1,)]), (Proportional(to="jensen_shannon"), [(0, 2), (1,)])],
)
def test_what_is_measured_is_run_though_it_may_cancel_out(weight: Weight, run: Members) -> None:
    route = plan(one_base()[:3], (weight,))
    assert members(route.streams) == run
    rows = route.rows([[weight]])  # type: ignore[list-item]
    assert members(rows.active) == run
    assert rows.coefficients == [[1.0, 0.0, 0.0]], "what is measured comes later"
    assert rows.weights == [[0.0]]
    assert [(row, pair) for row, pair, _ in rows.measured] == [(0, 0)]


def test_a_term_is_measured_against_the_base() -> None:
    route = plan_route([reader(BASE), reader(TUNED_A)], [PairMembers(1)], [{"a": KL}], PLAIN)
    assert route.measured_members(0, "kl") == (1, 0)
    assert route.measured_members(0, "base_entropy") == (0,)
    pair = plan(five_networks(), (KL, 0.0))
    assert pair.measured_members(0, "kl") == (1, 2)


def test_a_member_that_another_carries_is_measured_there() -> None:
    assert plan(one_base()[:3], (KL,)).measured_members(0, "kl") == (1, 0)


NUMBERS = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0])
WEIGHTS = st.one_of(
    NUMBERS,
    st.builds(FirstTokens, num_tokens=st.just(1), weight=NUMBERS, then=NUMBERS),
    st.builds(LinearRamp, start=NUMBERS, end=NUMBERS),
)


@given(
    st.lists(WEIGHTS, min_size=2, max_size=2),
    st.lists(st.sampled_from([BASE, TUNED_A, TUNED_B, REFERENCE]), min_size=4, max_size=4),
    st.sampled_from([0.0, 1.0, 1.5]),
    st.booleans(),
)
def test_rows_are_the_formula_whoever_shares_a_network(
    weights: list[Weight], networks: list[str], amplification: float, with_term: bool
) -> None:
    """By network the coefficients are those of the formula; what is not run has 0."""
    readers = [reader(BASE), *map(reader, networks)]
    pairs = (PairMembers(1, 2), PairMembers(3)) if with_term else SHARED
    composition = CompositionOptions(amplification=amplification)
    route = plan_route(readers, pairs, [dict(zip("ab", weights, strict=True))], composition)
    choices = [sorted(set(numbers_of(weight))) for weight in weights]
    for first in choices[0]:
        for second in choices[1]:
            settled: list[Settled] = [first, second]
            rows = route.rows([settled])
            expected = {BASE: 1.0}
            for number, pair in zip((first, second), pairs, strict=True):
                terms = [(readers[pair.tuned].name, number)]
                if pair.reference is not None:
                    terms += [(readers[pair.reference].name, -number * amplification)]
                    terms += [(BASE, number * (amplification - 1.0))]
                for name, by in terms:
                    expected[name] = expected.get(name, 0.0) + by
            found = {readers[member].name: value for member, value in enumerate(rows.coefficients[0]) if value != 0.0}
            assert found == pytest.approx({name: value for name, value in expected.items() if abs(value) > 1e-12})
            run = {stream.members[0] for stream in rows.active}
            assert {member for member, value in enumerate(rows.coefficients[0]) if value != 0.0} <= run
            assert all(is_off(weight) for weight in weights) <= (run == {0})


def test_coefficients_are_summed_exactly() -> None:
    """1, 1e16 and -1e16 leave 1; added one by one they would leave 0, and the stream would not be run."""
    readers = [reader(BASE), reader(BASE), reader(REFERENCE), reader(TUNED_B), reader(BASE)]
    route = plan(readers, (1e16, 1e16))
    assert route.fixed == (1.0, 0.0, -1e16, 1e16, 0.0)


# ---- who drafts --------------------------------------------------------------------------------------------------------


def drafting(route: Route, weights: Sequence[Weight]) -> list[tuple[tuple[int, ...], float]]:
    return [(stream.members, coefficient) for stream, coefficient in draft_route(route, weights)]


def test_the_tuned_model_of_the_only_active_pair_drafts() -> None:
    assert drafting(plan(five_networks(), (1.0, 0.0)), (1.0, 0.0)) == [((1,), 1.0)]
    assert drafting(plan(five_networks(), (0.0, -0.5)), (0.0, -0.5)) == [((3,), 1.0)]
    assert drafting(plan(five_networks(), (0.0, 0.0)), (0.0, 0.0)) == []


def test_of_several_pairs_their_composition_over_the_first_reference_drafts() -> None:
    weights = (0.5, 2.0)
    expected = [((2,), 0.5), ((1,), 0.5), ((3,), 2.0), ((4,), -2.0)]
    assert drafting(plan(five_networks(), weights), weights) == expected


def test_of_a_weight_that_follows_the_token_the_largest_counts() -> None:
    weights: tuple[Weight, ...] = (0.5, LinearRamp(start=0.0, end=2.0))
    expected = [((2,), 0.5), ((1,), 0.5), ((3,), 2.0), ((4,), -2.0)]
    assert drafting(plan(five_networks(), weights), weights) == expected


def test_a_term_drafts_alone_and_among_pairs_but_terms_only_have_no_stand_in_for_the_base() -> None:
    readers = [reader(BASE), reader(TUNED_A), reader(TUNED_B), reader(REFERENCE)]
    for weights, expected in [
        ((1.0, 0.0), [((1,), 1.0)]),
        ((0.5, 1.0), [((1,), 0.5), ((2,), 1.0)]),  # the reference stands in for the base, with 1 - 1
        ((0.5, 0.25), [((3,), 0.75), ((1,), 0.5), ((2,), 0.25)]),
    ]:
        route = plan_route(readers, [PairMembers(1), PairMembers(2, 3)], [dict(zip("ab", weights, strict=True))], PLAIN)
        assert drafting(route, weights) == expected
    terms = plan_route(readers[:3], [PairMembers(1), PairMembers(2)], [{"a": 0.5, "b": 0.5}], PLAIN)
    assert drafting(terms, (0.5, 0.5)) == []


def test_nothing_drafts_with_the_base_or_with_all_that_is_run() -> None:
    on_base = [reader(BASE), reader(BASE), reader(REFERENCE)]
    assert drafting(plan(on_base, (0.5,)), (0.5,)) == []
    assert drafting(plan(one_base()[:3], (1.0,)), (1.0,)) == [], "the tuned model is all there is"
