"""Alternatives of which exactly one is to fit (`oneOf`): a grammar holds that where no value fits two of them."""

from __future__ import annotations

from typing import Any

from eft_integrations.chat.schemas.facts import ALL_KINDS, are_apart, facts_of
from eft_integrations.chat.schemas.names import is_composed, only_names
from eft_integrations.chat.schemas.tree import ANNOTATIONS, SchemaDocument

MOST_COMPARED = 64
"""Alternatives up to which each is compared with each."""


def without_others(document: SchemaDocument, schema: dict[str, Any], branches: list[list[Any]]) -> list[list[Any]]:
    """Where an alternative is to have one name, the others do not have it."""
    if len(branches) > MOST_COMPARED:
        return branches
    lone = {
        index: branch[-1]["required"][0]
        for index, branch in enumerate(branches)
        if isinstance(branch[-1], dict)
        and set(branch[-1]) - {"type", *ANNOTATIONS} == {"required"}
        and len(branch[-1]["required"]) == 1
    }
    without = [
        {name: False for other, name in lone.items() if other != index and name not in _required(branch)}
        for index, branch in enumerate(branches)
    ]
    return [
        [*branch, document.made({"properties": names}, schema)] if names else branch
        for branch, names in zip(branches, without, strict=True)
    ]


def are_all_apart(document: SchemaDocument, branches: list[Any], *, closes: bool) -> bool:
    """Whether what is held of each branch fits no other."""
    if len(branches) > MOST_COMPARED:
        return False
    facts = [facts_of(document, branch) for branch in branches]
    names = [only_names(document, branch) if closes else None for branch in branches]

    def is_outside(first: int, second: int) -> bool:
        branch, listed = branches[first], names[first]
        if listed is not None and facts[second].required - listed:
            own = facts[first].kinds
            if own == ALL_KINDS and ("properties" in branch or is_composed(document, branch)):
                own = frozenset({"object"})  # so it is closed
            if own & facts[second].kinds <= {"object"}:
                return True
        return are_apart(document, facts[first], facts[second])

    places = range(len(branches))
    return all(is_outside(first, second) for first in places for second in places if first != second)


def _required(parts: list[Any]) -> set[str]:
    return {name for part in parts if isinstance(part, dict) for name in part.get("required") or ()}
