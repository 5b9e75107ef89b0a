"""The implicit reward of every token of an answer: by pair, what the tuned model gives the token beyond its reference.

A reward does not depend on the weights; it is there where both models of the pair were run, which they are not at weight 0.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from math import inf

from eft_engine.outputs import TokenLogprobs
from eft_integrations.json_types import Json


def rewards_form(tokens: Iterable[TokenLogprobs], pairs: Collection[str]) -> list[Json]:
    """Tokens with their log-probability under the composition and their rewards by pair, in nats. A token that the reference or the
    tuned model cannot write has no reward.

    >>> members = {"chat.tuned": -1.0, "chat.reference": -1.5, "other.tuned": -2.0}
    >>> rewards_form([TokenLogprobs(7, "a", -0.5, (), members)], ["chat", "other"])
    [{'token': 'a', 'logprob': -0.5, 'rewards': {'chat': 0.5}}]
    """
    return [{"token": token.token, "logprob": token.logprob, "rewards": _rewards(token, pairs)} for token in tokens]


def _rewards(token: TokenLogprobs, pairs: Collection[str]) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for pair in pairs:
        tuned, reference = (token.members.get(f"{pair}.{role}", -inf) for role in ("tuned", "reference"))
        if tuned > -inf and reference > -inf:
            found[pair] = tuned - reference
    return found
