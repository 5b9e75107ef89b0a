"""What a request may bring besides weights: what would have the effect of a weight that a policy does not allow is bound too."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from eft_engine import PromptPair, errors
from eft_engine.weights import checked_weight
from eft_integrations.server.callers.weight_policy import WeightForbiddenError, WeightPolicy
from eft_integrations.server.errors import PERMISSION, ApiError, Kind, shortened

PAIRS, MASK, BOUND = "eft_prompt_pairs", "eft_min_plausibility", "eft_tuned_plausibility"
"""Fields of bodies."""


def check_prompt_pairs(
    pairs: Mapping[str, PromptPair],
    policy: WeightPolicy,
    *,
    owner: str,
    are_taken: bool,
    models: Collection[str],
    taken: Collection[str],
) -> None:
    """Check the prompt pairs that a request brings. Their weights are checked with all others.

    Args:
        pairs: by name.
        policy: what holds for the caller.
        owner: the composition's name, for errors.
        are_taken: whether requests may bring some.
        models: the composition's pairs that are models.
        taken: names that no prompt pair may have.

    Raises:
        ApiError: requests bring none here (403).
        InvalidOptionError: a name is none, or taken, or a model is not there.
        InvalidWeightError: a schedule is nested too deep.
        WeightForbiddenError: another model than the base would read it, at a weight that no rule sees.
    """
    if not are_taken:
        raise ApiError(
            f"{PAIRS}: requests bring no prompt pairs to {owner!r}; leave them out, or ask the operator (who allows them with "
            "takes_prompt_pairs)",
            Kind(403, PERMISSION, "prompt_pairs_forbidden", PAIRS),
        )
    for name, pair in pairs.items():
        told = shortened(name)
        if not name or "." in name:
            raise _wrong(name, f"a name must not be empty or contain a dot, got {told!r}")
        if name in taken:
            raise _wrong(name, f"the name {told!r} is taken; give the prompt pair another one")
        checked_weight(pair.weight, f"prompt pair {told!r}")
        model = pair.model.partition(".")[0]
        if model == "base":
            continue
        if model not in models:
            there = ", ".join(["base", *models])
            raise _wrong(name, f"{told}.model: there is no model {shortened(pair.model)!r}; {owner!r} has {there}")
        if policy.rule(model) != "free":
            raise WeightForbiddenError(
                f"{PAIRS}.{told}.model: only the base reads prompt pairs here, since the weight of {model!r} is not free",
                pair=model,
                weight=pair.weight,
                option=PAIRS,
            )


def check_plausibility(asked: float, own: float, policy: WeightPolicy, *, owner: str, models: Collection[str]) -> None:
    """Check the share that a request asks for against the composition's own.

    Raises:
        ApiError: it is lower, or it could silence pairs that the policy does not allow to leave out (403).
    """
    if asked == own:
        return
    if asked < own:
        raise ApiError(
            f"{MASK} is at least {own:g} in {owner!r}, got {asked:g}; leave it out, or give more",
            Kind(403, PERMISSION, "min_plausibility_forbidden", MASK),
        )
    if not policy.allows_nothing_of(models):  # at 1 the base alone decides
        raise ApiError(
            f"{MASK} keeps what the base finds plausible, at the cost of pairs that the policy of {owner!r} does not allow to "
            "leave out; leave it out",
            Kind(403, PERMISSION, "min_plausibility_forbidden", MASK),
        )


def check_bound(asked: float, own: float, policy: WeightPolicy, *, owner: str, models: Collection[str]) -> None:
    """Check what a request says instead of the composition's own `tuned_plausibility`.

    Raises:
        ApiError: it is lower, which undoes the operator's bound, or it could take a weight down to 1 where the policy does not
            allow that weight (403).
    """
    if asked == own:
        return
    kind = Kind(403, PERMISSION, "tuned_plausibility_forbidden", BOUND)
    if asked < own:
        raise ApiError(f"{BOUND} is at least {own:g} in {owner!r}, got {asked:g}; leave it out, or give more", kind)
    if not policy.allows_of(models, 1.0):
        raise ApiError(
            f"{BOUND} lets weights above 1 count as 1, and the policy of {owner!r} does not allow that weight for all of its "
            "pairs; leave it out",
            kind,
        )


def _wrong(name: str, reason: str) -> errors.InvalidOptionError:
    return errors.InvalidOptionError(f"{PAIRS}: {reason}", option=PAIRS, value=name)
