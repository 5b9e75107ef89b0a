"""The judge: which calls a raw text holds, which of them were wanted, and whether an answer has its facts.

It shares no code with the package that it judges: it looks for JSON objects, wherever and in whatever wrapping they stand.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.agents.tasks import Call, Fact
from benchmarks.agents.tools import TOOLS, evaluate, matching

DECODER = json.JSONDecoder(strict=False)
NAME_KEYS = ("name", "function", "tool", "tool_name", "function_name")
ARGUMENT_KEYS = ("arguments", "parameters", "args", "kwargs", "input")
NAME = re.compile(rf"""["'](?:{"|".join(NAME_KEYS)})["']\s*:\s*["']({"|".join(TOOLS)})["']""")
NUMBER = re.compile(r"(?<![\d.])-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Written:
    """Calls that a raw text holds.

    `calls` have the keys name and arguments (or parameters), `odd` others that say the same (function, tool, args, ...);
    `num_broken` is how many are named without becoming JSON (cut off, wrong quotes, ...).
    """

    calls: list[Call]
    odd: list[Call]
    num_broken: int

    @property
    def all(self) -> list[Call]:
        """All that are JSON."""
        return [*self.calls, *self.odd]


def written_calls(raw: str) -> Written:
    """All JSON objects with the name of a tool and arguments: bare, fenced, in tags, in lists, inside a sentence.

    >>> written_calls('Sure: {"name": "calculate", "arguments": {"expression": "1 + 1"}}.').calls
    [Call(name='calculate', arguments={'expression': '1 + 1'})]
    """
    calls: dict[bool, list[Call]] = {True: [], False: []}
    rest: list[str] = []
    position = 0
    while position < len(raw):
        if raw[position] in "{[":
            try:
                value, end = DECODER.raw_decode(raw, position)
            except ValueError:
                pass
            else:
                for usual, call in _calls_in(value):
                    calls[usual].append(call)
                rest.append(" ")
                position = end
                continue
        rest.append(raw[position])
        position += 1
    return Written(calls[True], calls[False], len(NAME.findall("".join(rest))))


def _calls_in(value: Any) -> Iterator[tuple[bool, Call]]:
    """Calls inside a JSON value, each with whether its keys are the usual ones."""
    if isinstance(value, dict) and "description" not in value:  # what has a description announces a tool
        names = [key for key in NAME_KEYS if isinstance(value.get(key), str) and value[key] in TOOLS]
        arguments = [(key, own) for key in ARGUMENT_KEYS if (own := _as_object(value.get(key))) is not None]
        if names and arguments:
            usual = names[0] == "name" and arguments[0][0] in ("arguments", "parameters")
            yield usual, Call(value[names[0]], arguments[0][1])
            return
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inner:
        yield from _calls_in(one)


def _as_object(value: Any) -> dict[str, Any] | None:
    """Arguments, which may be JSON inside a string."""
    if isinstance(value, str):
        try:
            value = json.loads(value, strict=False)
        except ValueError:
            return None
    return value if isinstance(value, dict) else None


# ---- equal calls ---------------------------------------------------------------------------------------------------------


def normal(call: Call) -> str:
    """A call in a form in which calls that ask for the same are equal.

    Case, defaults and titles do not matter, numbers are numbers, expressions are their values, and a query is what it finds.

    >>> normal(Call("get_weather", {"city": "oslo "})) == normal(Call("get_weather", {"city": "Oslo", "day": "today"}))
    True
    """
    if call.name not in TOOLS:
        return json.dumps([call.name, call.arguments], sort_keys=True, default=str)
    parameters = inspect.signature(TOOLS[call.name]).parameters
    defaults = {name: own.default for name, own in parameters.items() if own.default is not inspect.Parameter.empty}
    arguments = {**defaults, **call.arguments}
    form = {name: _normal_value(name, value) for name, value in arguments.items() if name != "title"}
    if "title" in parameters and "title" not in arguments:
        form["title"] = "missing"
    return json.dumps([call.name, form], sort_keys=True, default=str)


def _normal_value(name: str, value: Any) -> Any:
    match name, value:
        case "query", str():
            return matching(value) or value.casefold()
        case "expression", str() | int() | float():
            try:
                return round(evaluate(str(value)), 6)
            except (ValueError, SyntaxError, ArithmeticError):
                return str(value)
        case "attendees", list():
            return sorted(str(guest).strip().casefold() for guest in value)
        case (("amount" | "order_id" | "max_price" | "minutes"), str()):
            try:
                return float(value)
            except ValueError:
                return value
        case _, bool() | None:
            return value
        case _, int() | float():
            return float(value)
        case _, str():
            return value.strip().casefold()
        case _, dict():
            return {key: _normal_value(key, inner) for key, inner in value.items()}
    return value


@dataclass(frozen=True)
class Verdict:
    """How calls compare to those that were wanted.

    `superfluous`: repeated, invented, or beyond what was wanted; a call of the right tool with other arguments, while one is
    missing, is in `wrong_arguments` instead.
    """

    right: list[Call] = field(default_factory=list)
    wrong_arguments: list[Call] = field(default_factory=list)
    missing: list[Call] = field(default_factory=list)
    superfluous: list[Call] = field(default_factory=list)

    @property
    def nothing_wrong(self) -> bool:
        """All calls were wanted, and a call was made where one was wanted."""
        return not self.wrong_arguments and not self.superfluous and (bool(self.right) or not self.missing)

    @property
    def complete(self) -> bool:
        """Exactly what was wanted."""
        return self.nothing_wrong and not self.missing


def judge(made: Sequence[Call], wanted: Sequence[Call], *, allowed: Sequence[str] = ()) -> Verdict:
    """Pair the calls; those of `allowed` tools may come, and stay away."""
    verdict = Verdict(missing=list(wanted))
    others = []
    for call in made:
        found = next((own for own in verdict.missing if normal(own) == normal(call)), None)
        if found is None:
            others.append(call)
        else:
            verdict.missing.remove(found)
            verdict.right.append(call)
    for call in others:
        found = next((own for own in verdict.missing if own.name == call.name), None)
        if call.name in allowed:
            continue
        if found is None:
            verdict.superfluous.append(call)
        else:
            verdict.missing.remove(found)
            verdict.wrong_arguments.append(call)
    verdict.missing[:] = [call for call in verdict.missing if call.name not in allowed]
    return verdict


def num_common(first: Sequence[Call], second: Sequence[Call]) -> int:
    """How many calls stand in both."""
    left = [normal(call) for call in second]
    common = 0
    for call in first:
        if normal(call) in left:
            left.remove(normal(call))
            common += 1
    return common


def has_facts(answer: str, facts: Sequence[Fact]) -> bool:
    """Whether an answer contains all of them; numbers count as numbers, however they are written.

    >>> has_facts("You get 11,200 yen.", (11200.0,)), has_facts("Sleet.", ("sleet", 4.0))
    (True, False)
    """
    text = answer.casefold().replace("−", "-")
    numbers = [float(number) for number in NUMBER.findall(re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text))]
    return all(
        any(other in text for other in fact.casefold().split("|"))
        if isinstance(fact, str)
        else any(abs(number - fact) < 0.005 for number in numbers)
        for fact in facts
    )
