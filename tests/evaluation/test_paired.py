"""Paired comparisons, by hand and against the binomial distribution; answers that are cut; members as rows."""

from __future__ import annotations

import math
from typing import cast

import pytest

from eft_engine.evaluation.cut import cut_warnings
from eft_engine.evaluation.paired import Paired, against, gap_closed
from eft_engine.evaluation.report import markdown, summary
from eft_engine.evaluation.results import WeightResult, base_of
from eft_engine.evaluation.settings import Setting, Weights, members_alone
from eft_engine.outputs import RequestMetrics, RequestOutput, Usage

NO_METRICS = RequestMetrics(0.0, 0.0, 0.0, 0.0, {})


def row(
    setting: Setting | Weights, marks: list[bool], *, cut: int = 0, places: list[int] | None = None
) -> WeightResult:
    """A result with these marks of scorer `right`; so many answers, the last ones, are cut."""
    asked = setting if isinstance(setting, Setting) else Setting(setting)
    answers = [
        RequestOutput(
            request_id="",
            text="",
            token_ids=(0,),
            finish_reason="length" if place >= len(marks) - cut else "stop",
            stop_reason=None,
            usage=Usage(1, 1),
            metrics=NO_METRICS,
            reward_weights={},
        )
        for place in range(len(marks))
    ]
    return WeightResult(
        label=asked.name,
        weights=asked.weights,
        answers=answers,
        marks={"right": marks},
        groups=["all"] * len(marks),
        member=asked.member,
        places=list(range(len(marks))) if places is None else places,
    )


def right(count: int, total: int = 100) -> list[bool]:
    """The first so many are right."""
    return [place < count for place in range(total)]


TUNED = Setting(member="chat.tuned", called="tuned")


@pytest.mark.parametrize(("gained", "lost"), [(2, 15), (0, 8), (1, 1), (0, 0), (700, 800)])
def test_p_is_that_of_a_fair_coin(gained: int, lost: int) -> None:
    differ = gained + lost
    as_uneven = [few for few in range(differ + 1) if abs(few - differ / 2) >= abs(gained - differ / 2)]
    expected = sum(math.comb(differ, few) for few in as_uneven) / 2**differ
    assert Paired(gained, lost, 2000).p == pytest.approx(expected)


def test_only_questions_that_both_have_answered_are_compared() -> None:
    one = row(1.0, [True, True, False], places=[2, 3, 5])
    base = row(0.0, [True, False, False, True])
    assert against(one, base, "right") == Paired(gained=1, lost=0, total=2)


def test_content_closes_the_gap_from_below_and_form_too() -> None:
    base, tuned = row(0.0, right(80)), row(TUNED, right(30))
    assert gap_closed(row(1.0, right(75)), base, [tuned], "right") == pytest.approx(0.9)
    form_base, form_tuned = row(0.0, right(0)), row(TUNED, right(95))
    assert gap_closed(row(1.0, right(76)), form_base, [form_tuned], "right") == pytest.approx(0.8)
    assert gap_closed(row(2.0, right(100)), form_base, [form_tuned], "right") == pytest.approx(100 / 95)


def test_no_gap_is_told_where_none_is_certain() -> None:
    base, one = row(0.0, right(80)), row(1.0, right(75))
    assert gap_closed(one, base, [row(TUNED, right(78))], "right") is None
    assert gap_closed(one, base, [row(Setting(member="chat.reference"), right(30))], "right") is None
    assert gap_closed(one, None, [row(TUNED, right(30))], "right") is None


def test_the_table_has_gains_losses_and_the_gap_where_there_is_one() -> None:
    results = [row(0.0, right(80)), row(1.0, right(75)), row(TUNED, right(30))]
    text = markdown(results, "plot.png", num_questions=100)
    assert "| 1 | +0 -5 (p 0.062) | 90% |" in text
    assert "| tuned | +0 -50 (p 1.8e-15) | - |" in text
    told = summary(results)
    assert told["weights"]["1"]["against_weight_0"]["right"] == {"gained": 0, "lost": 5, "n": 100, "p": 0.0625}
    assert told["weights"]["1"]["gap_closed"] == {"right": 0.9}
    assert list(told["members"]) == ["tuned"]
    assert "gap closed" not in markdown(results[:2], "plot.png", num_questions=100)


def test_a_weight_at_which_texts_do_not_end_is_warned_of() -> None:
    results = [row(0.0, right(50), cut=2), row(1.0, right(50), cut=5), row(2.0, right(50), cut=72)]
    (told,) = cut_warnings(results)
    assert told.startswith("2: max_tokens cut 72% of the answers (weight 1: 5%); the weight is too high")


def test_where_the_tuned_model_is_as_long_no_weight_is_too_high() -> None:
    results = [row(0.0, right(50), cut=2), row(1.0, right(50), cut=70)]
    (told,) = cut_warnings(results)
    assert told.startswith("1: ")
    (told,) = cut_warnings([*results, row(TUNED, right(50), cut=75)])
    assert told.startswith("tuned: max_tokens cut 75% of the answers of a model as it is")


def test_few_answers_do_not_tell_that_a_weight_is_too_high() -> None:
    assert cut_warnings([row(0.0, right(1, 4)), row(2.0, right(1, 4), cut=3)]) == []


def test_a_setting_is_known_by_what_it_is_and_not_by_its_name() -> None:
    assert Setting(1).key() == Setting(1.0).key()
    assert (
        Setting({"kind": "gate", "by": "kl", "above": 1}).key()
        == Setting({"by": "kl", "above": 1.0, "kind": "gate"}).key()
    )
    assert Setting(1.0).key() != Setting({"chat": 1.0}).key()
    assert [
        own.is_off for own in map(Setting, cast(list[Weights], [0, {"a": 0.0, "b": 0}, {"a": 0.0, "b": 1}, None]))
    ] == [
        True,
        True,
        False,
        False,
    ]
    assert base_of([row(TUNED, right(1)), row(1.0, right(1))]) is None


def test_a_reference_that_is_the_base_is_no_row() -> None:
    assert [own.member for own in members_alone({"json.tuned": "a", "json.reference": "b"}, base="b")] == ["json.tuned"]
