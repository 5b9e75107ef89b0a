"""What becomes of a field that no body declares, be it of another server, of OpenAI's own, or of nobody.

- `refused_fields.REFUSED`: it would change the text, or what the caller gets: 400, with what to do.
- `idle_fields.WITHOUT_EFFECT`: it cannot change an answer; it is taken and not mentioned.
- everything else is named in the answer's `eft.ignored`, and logged once; `idle_fields.NAMED` says why of known names.

A value that says what happens anyway (`NEUTRAL`) is none of these, and a name that nearly is one of ours is 400.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from eft_integrations.server.bodies.idle_fields import NAMED, WITHOUT_EFFECT
from eft_integrations.server.bodies.refused_fields import FALSE_IS_A_WISH, NEUTRAL, REFUSED

logger = logging.getLogger(__name__)

OWN = (
    "eft_reward_weights", "reward_weights", "eft_reasoning_budget", "eft_reasoning_tags", "eft_lenient_tool_calls", "eft_strict",
    "close_within_budget", "eft_prompt_pairs", "eft_min_plausibility", "eft_tuned_plausibility", "eft_call_weight",
    "eft_reasoning_weight", "eft_call_lookahead",
)  # fmt: skip
"""Our own names; those of a body are among its fields."""

MEANT: Mapping[str, str] = {
    "weights": "eft_reward_weights",
    "weight": "eft_reward_weights",
    "pairweights": "eft_reward_weights",
    "rewards": "eft_reward_weights",
    "negativeprompt": "eft_prompt_pairs",
    "negativeprompts": "eft_prompt_pairs",
    "cfgscale": "eft_prompt_pairs",
    "guidancescale": "eft_prompt_pairs",
    "thinkingbudget": "eft_reasoning_budget",
    "maxreasoningtokens": "eft_reasoning_budget",
    "closewithinmaxtokens": "close_within_budget",
}
"""What further names mean, without marks and prefix."""

MAX_NAMED = 64
"""Most names that `eft.ignored` has."""

CLOSE = 0.84
"""From this likeness on (difflib's ratio) a name is taken for one of ours that is misspelt."""


def is_neutral(name: str, value: object) -> bool:
    """Whether a value says what happens anyway.

    >>> is_neutral("mirostat", 0), is_neutral("mirostat", 2), is_neutral("skip_special_tokens", False)
    (True, False, False)
    """
    if value is None:
        return True
    if value is False:
        return name not in FALSE_IS_A_WISH or False in NEUTRAL.get(name, ())
    return any(
        value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in NEUTRAL.get(name, ())
    )


def meant(name: str, known: Collection[str]) -> str | None:
    """The name of ours that another one is, or is a near miss of; None: it is none.

    >>> [meant(name, OWN) for name in ("rewardWeights", "eft_reward_weight", "close_in_budget", "top_k", "reward_model")]
    ['eft_reward_weights', 'eft_reward_weights', 'close_within_budget', None, None]
    """
    plain = _plain(name)
    if plain in MEANT:
        return MEANT[plain]
    by_plain = {
        _plain(own): own for own in reversed([*dict.fromkeys([*OWN, *known])]) if own in OWN or own.startswith("eft_")
    }
    close = difflib.get_close_matches(
        plain, [own for own in by_plain if len(own) > 5 or own == plain], n=1, cutoff=CLOSE
    )
    return by_plain[close[0]] if close else None


def _plain(name: str) -> str:
    letters = "".join(letter for letter in name.lower() if letter.isalnum())
    return letters.removeprefix("eft") or letters


def refused(fields: Mapping[str, Any], known: Collection[str]) -> str | None:
    """Why a body with these undeclared fields is refused; None: it is not. `known`: the fields that are declared."""
    for name, value in fields.items():
        if name in REFUSED:
            if not is_neutral(name, value):
                return f"{name} is not supported: {REFUSED[name]}"
        elif (own := meant(name, known)) is not None:
            return (
                f"there is no {name}; did you mean {own}?"
                if own in known
                else f"{name} changes nothing here: this route has no {own}; leave it out"
            )
        elif name.startswith(("eft_", "eft-", "EFT_")):
            ours = [own for own in known if own.startswith("eft_")]
            return f"there is no {name}; this route knows {', '.join(ours) or 'no such name'}"
    return None


def unused(fields: Mapping[str, Any], *, quiet: Collection[str] = WITHOUT_EFFECT) -> list[str]:
    """Names of undeclared fields that might have been meant to change something."""
    return [name for name, value in fields.items() if name not in quiet and not is_neutral(name, value)]


LIKE_A_FIELD = re.compile(r"[A-Za-z_][\w-]{0,39}(\.[A-Za-z_][\w-]{0,39}){0,7}", re.ASCII)


class Told:
    """What was logged already; of more names than it has room for no more are logged."""

    def __init__(self, room: int = 512) -> None:
        self._room = room
        self._names: set[tuple[str, str]] = set()

    def tell(self, path: str, names: Iterable[str]) -> None:
        """Log each name once. What is no name of a field may be anything that somebody wrote, and is not repeated."""
        for name in names:
            told = repr(name) if LIKE_A_FIELD.fullmatch(name) else "whose name is none"
            if (path, told) not in self._names and len(self._names) < self._room:
                self._names.add((path, told))
                known = name.rpartition(".")[2]
                reason = f" ({NAMED[known]})" if known in NAMED else ""
                logger.warning("%s: the field %s is not used%s; this is logged once", path, told, reason)


TOLD = Told()
