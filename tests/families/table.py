"""The matrix of docs/families.md: what a family's chat template does by itself, and what the package does for it.

    python -m tests.families.table [--write]

That the package does it is what `test_matrix.py` asserts. Here each template alone is given what a client of OpenAI's API sends.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eft_integrations.chat.notations import notation_of
from tests.families.adapters import Call
from tests.families.cells import CELLS, TIME_CALL, TOOLS, WEATHER_CALL, alike, result, system, user
from tests.families.imitations import FAMILIES, Family

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
BEGIN, END = "<!-- python -m tests.families.table --write -->\n", "<!-- end of the table -->"

BY_ITSELF, BY_PACKAGE, NOT = "template", "package", "no"

CALLS = (Call("call_0123456789abcdefA", *WEATHER_CALL), Call("call_0123456789abcdefB", *TIME_CALL))

Rendered = Callable[..., str | None]
"""The template with these messages and tools; None where it refuses them."""


def by_itself(family: Family) -> Mapping[str, bool]:
    """Per cell: whether the template does its part without help. Masks are never the template's, so those cells are left out."""
    tokenizer = family.make_tokenizer()

    def rendered(messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> str | None:
        try:
            text = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
        except Exception:  # templates raise what they like
            return None
        return alike(str(text))

    words = rendered([user("First."), {"role": "assistant", "content": "Second."}, system("Third."), user("Fourth.")])
    twice = rendered([user("First."), user("Second.")])
    announced = rendered([user("First.")], TOOLS)
    one = rendered([user("First."), _turn(CALLS[:1]), result(CALLS[0], "Second.")], TOOLS)
    two = rendered([user("First."), _turn(CALLS), result(CALLS[0], "Second."), result(CALLS[1], "Third.")], TOOLS)
    shows = family.one_call is not None and alike(family.history_call or family.one_call)
    found = {
        "plain": rendered([user("First.")]) is not None,
        "system in the middle": _in_order(words, "First.", "Second.", "Third.", "Fourth."),
        "two user turns": _in_order(twice, "First.", "Second."),
        "tools auto": announced is not None and all(own["function"]["description"] in announced for own in TOOLS),
        "tool loop": bool(shows) and _in_order(one, "First.", str(shows), "Second."),
        "parallel calls": bool(shows) and _in_order(two, "First.", "get_weather", "CET", "Second.", "Third."),
    }
    found["tool loop"] &= found["tools auto"]
    found["parallel calls"] &= found["tool loop"]
    return found


def _turn(calls: Sequence[Call]) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [call.as_openai() for call in calls]}


def _in_order(text: str | None, *parts: str) -> bool:
    """Whether a text holds the parts one behind the other."""
    place = 0
    for part in parts:
        if text is None or (place := text.find(part, place)) < 0:
            return False
        place += len(part)
    return True


def table() -> str:
    """The matrix, what is peculiar to each template, and what is beyond a family."""
    lines = [f"| family | notation | {' | '.join(CELLS)} |", f"|---|---|{'---|' * len(CELLS)}"]
    peculiar, beyond = [], []
    for family in FAMILIES:
        own = by_itself(family)
        marks = [NOT if cell in family.cannot else BY_ITSELF if own.get(cell) else BY_PACKAGE for cell in CELLS]
        notation = notation_of(family.template).name if family.one_call is not None else "(given)"
        lines.append(f"| {family.name} | {notation} | {' | '.join(marks)} |")
        peculiar += [f"- {family.name}: {family.remarks}"] if family.remarks else []
        beyond += [f"- {family.name}, {cell}: {words}." for cell, words in family.cannot.items()]
    return "\n".join(
        [*lines, "", "What is peculiar to each template:", "", *peculiar, "", "What is beyond a family:", "", *beyond]
    )


def page(text: str) -> str:
    """The page with the present table."""
    before, _, rest = text.partition(BEGIN)
    _, _, behind = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{behind}"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table())
