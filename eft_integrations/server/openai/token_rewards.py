"""The implicit reward of every token of an answer: by pair, what the tuned model gives the token beyond its reference; of a term,
which has none, what its model gives it; of a prompt pair, what the positive side gives it beyond the negative one.

A reward does not depend on the weights; it is there where all of the pair was run, which it is not at weight 0.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from math import inf

from eft_engine.outputs import TokenLogprobs
from eft_integrations.json_types import Json

GIVING, TAKING = ("tuned", "positive"), ("reference", "negative")
"""Members of a pair or a prompt pair, as a request names them."""


def rewards_form(tokens: Iterable[TokenLogprobs], pairs: Collection[str], *, terms: Collection[str] = ()) -> list[Json]:
    """Tokens with their log-probability under the composition and their rewards by pair, in nats. A token that the reference or the
    tuned model cannot write has no reward. `terms`: pairs that have no reference.

    >>> members = {"chat.tuned": -1.0, "chat.reference": -1.5, "other.tuned": -2.0}
    >>> rewards_form([TokenLogprobs(7, "a", -0.5, (), members)], ["chat", "other"])
    [{'token': 'a', 'logprob': -0.5, 'rewards': {'chat': 0.5}}]
    >>> rewards_form([TokenLogprobs(7, "a", -0.5, (), members)], ["other"], terms=["other"])[0]["rewards"]
    {'other': -2.0}
    """
    return [
        {"token": token.token, "logprob": token.logprob, "rewards": _rewards(token, pairs, terms)} for token in tokens
    ]


def _rewards(token: TokenLogprobs, pairs: Collection[str], terms: Collection[str]) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for pair in pairs:
        given, taken = (_first(token.members, [f"{pair}.{role}" for role in roles]) for roles in (GIVING, TAKING))
        if pair in terms:
            taken = 0.0
        if given > -inf and taken > -inf:
            found[pair] = given - taken
    return found


def _first(members: Mapping[str, float], names: Iterable[str]) -> float:
    return next((members[name] for name in names if name in members), -inf)
