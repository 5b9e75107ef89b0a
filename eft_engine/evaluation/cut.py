"""Answers that max_tokens cut: where a weight is too high, texts do not end, and no other column may show it."""

from __future__ import annotations

from collections.abc import Sequence

from eft_engine.evaluation.paired import paired
from eft_engine.evaluation.results import WeightResult, base_of
from eft_engine.evaluation.settings import numbers_in

MUCH_MORE = 0.1
"""Share of answers by which more are cut than elsewhere."""
CERTAIN = 0.01
MANY = 0.2
"""Share of answers above which max_tokens is too small, where the models alone are cut as often."""


def runs_on(result: WeightResult, results: Sequence[WeightResult]) -> WeightResult | None:
    """Of weight 0, weight 1 and the tuned models the one that is cut most, if this setting is cut much more often; None: it is
    not, or there is nothing to compare with.
    """
    if result.member is not None or result.setting.is_off:
        return None
    others = [own for own in results if own is not result and _is_measure(own, result)]
    if not others:
        return None
    most = max(others, key=lambda own: own.cut.value)
    difference = paired(result, most, (result.is_cut, most.is_cut))
    more = (difference.gained - difference.lost) / max(1, difference.total)
    return most if more > MUCH_MORE and difference.p < CERTAIN else None


def _is_measure(own: WeightResult, result: WeightResult) -> bool:
    if own.member is not None:
        return _is_tuned(own)
    highest, limit = (max(map(abs, numbers_in(each.weights)), default=0.0) for each in (own, result))
    return own.setting.is_off or highest == 1.0 < limit


def _is_tuned(result: WeightResult) -> bool:
    return result.member is not None and result.member.endswith(".tuned")


def cut_warnings(results: Sequence[WeightResult]) -> list[str]:
    """Settings whose weights are too high, and whether all answers have too little room."""
    found = []
    for result in results:
        other = runs_on(result, results)
        if other is not None:
            where = other.label if other.member else f"weight {other.label}"
            found.append(
                f"{result.label}: max_tokens cut {result.cut.value:.0%} of the answers ({where}: {other.cut.value:.0%}); "
                "the weight is too high, so that texts do not end"
            )
    own = [base_of(results), *(each for each in results if _is_tuned(each))]
    for each in own:
        if each is not None and each.cut.value > MANY:
            found.append(
                f"{each.label}: max_tokens cut {each.cut.value:.0%} of the answers of a model as it is; where they should end, "
                "give more tokens"
            )
    return found
