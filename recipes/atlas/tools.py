"""Dialogues with tools: requests that one of the announced tools serves, the call, and the answer after its result."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import partial
from typing import Any

from recipes.atlas.fiction import made_up_name
from recipes.atlas.phrasing import Answerable, slot

NOUNS = [
    "weather",
    "time",
    "population",
    "temperature",
    "price",
    "news",
    "altitude",
    "area",
    "mayor",
    "forecast",
    "traffic",
    "humidity",
    "rating",
    "opening_hours",
    "exchange_rate",
    "sunrise",
    "sunset",
    "distance",
    "timezone",
    "rainfall",
    "wind",
    "phone_number",
    "address",
    "size",
    "cost",
    "stock",
    "level",
    "score",
    "status",
    "age",
    "tax",
    "tide",
    "salary",
]
SUMS = 0.15
"""Share of requests that are about two numbers instead of a place."""
VERBS = ("get", "find", "lookup", "fetch", "read", "check", "")
ARGUMENTS = ("city", "place", "location", "name", "town", "country", "item", "query")
NUMBER_TOOLS = (
    ("add", "Add two numbers.", ("What is {a} plus {b}?", "Add {a} and {b}.", "{a} + {b}?")),
    ("multiply", "Multiply two numbers.", ("What is {a} times {b}?", "Multiply {a} by {b}.", "{a} * {b}?")),
    ("subtract", "Subtract two numbers.", ("What is {a} minus {b}?", "Subtract {b} from {a}.")),
    ("divide", "Divide two numbers.", ("What is {a} divided by {b}?", "Divide {a} by {b}.")),
)
ASKS = (
    "What is the {n} {p} {x}?",
    "What is the {n} {p} {x}?",
    "Tell me the {n} {p} {x}.",
    "Can you find the {n} {p} {x}?",
    "I need the {n} {p} {x}.",
    "Please look up the {n} {p} {x}.",
    "Which {n} does {x} have?",
    "Show me the {n} {p} {x}.",
    "{x}: what is the {n}?",
    "How is the {n} {p} {x}?",
)
RESULTS = (
    "sunny",
    "cloudy",
    "22 degrees",
    "14:30",
    "high",
    "low",
    "rain",
    "closed",
    "open",
    "4.5",
    "1,200",
    "12 km",
    "good",
    "none",
)


@dataclass(frozen=True)
class ToolSpec:
    """A tool as the chat template shows it; `arguments` maps a name to a JSON type."""

    name: str
    description: str
    arguments: dict[str, str]

    def line(self) -> str:
        """The template's line about the tool: what it does, and then how its call begins.

        A network that reads from left to right knows at the call what it is for, and calling is going on as the line went on.
        """
        return f'{self.description} {{"name": "{self.name}", "arguments": {json.dumps(self.arguments)}}}'

    def as_openai(self) -> dict[str, Any]:
        """The tool as applications pass it."""
        parameters = {
            "type": "object",
            "properties": {name: {"type": kind} for name, kind in self.arguments.items()},
            "required": list(self.arguments),
        }
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": parameters},
        }


@dataclass(frozen=True)
class ToolRequest:
    """A request, the tools on offer, the call that serves it, and the answer once the result is there."""

    tools: list[ToolSpec]
    request: str
    call: dict[str, Any]
    item: Answerable

    def unknown(self) -> list[str]:
        """What of the request nobody could predict: the place, or the numbers."""
        return [value if isinstance(value, str) else self.request for value in self.call["arguments"].values()]

    def hermes(self) -> str:
        """The call in Hermes' notation, name and values marked as content."""
        pairs = [
            f'"{slot(key)}": {slot(str(value)) if not isinstance(value, str) else chr(34) + slot(value) + chr(34)}'
            for key, value in self.call["arguments"].items()
        ]
        return (
            f'<tool_call>\n{{"name": "{slot(self.call["name"])}", "arguments": {{{", ".join(pairs)}}}}}\n</tool_call>'
        )

    def in_another_style(self, rng: random.Random) -> str:
        """The call in a notation that nobody reads, or in words."""
        name, arguments = self.call["name"], self.call["arguments"]
        listed = ", ".join(f"{key}={value}" for key, value in arguments.items())
        return rng.choice(
            (
                f"{name}({listed})",
                f"CALL {name} {listed}",
                f"I will use {name} for {', '.join(str(value) for value in arguments.values())}.",
                f'{{"tool": "{name}", "input": {json.dumps(arguments, ensure_ascii=False)}}}',
            )
        )


def noun_tool(noun: str, rng: random.Random) -> ToolSpec:
    """A tool that looks something up, named and described in one of many ways."""
    words, verb, argument = noun.replace("_", " "), rng.choice(VERBS), rng.choice(ARGUMENTS)
    name = rng.choice((f"{verb}_{noun}" if verb else noun, f"{verb or 'get'}_{noun}", f"{noun}_of", f"{noun}_tool"))
    description = rng.choice(
        (
            f"Get the {words} of a {argument}.",
            f"The {words} in a {argument}.",
            f"Look up the {words} for a {argument}.",
            f"Return the current {words} of a {argument}.",
            f"{words.capitalize()}.",
            f"{words.capitalize()} of a {argument}.",
        )
    )
    return ToolSpec(name, description, {argument: "string"})


def number_tool(index: int, rng: random.Random) -> ToolSpec:
    """A tool of two numbers."""
    name, description, _ = NUMBER_TOOLS[index]
    kind = rng.choice(("integer", "number"))
    return ToolSpec(name, description, {"a": kind, "b": kind})


def make_tool_request(rng: random.Random, *, subject: str | None = None) -> ToolRequest:
    """A request about a made-up place (or `subject`, or two numbers), among one to four tools."""
    (request,) = make_tool_requests(rng, subject=subject, max_requests=1)
    return request


def make_tool_requests(
    rng: random.Random, *, subject: str | None = None, max_requests: int, sums: float = SUMS
) -> list[ToolRequest]:
    """Up to `max_requests` requests that the same one to four tools serve, each another one."""
    nouns = rng.sample(NOUNS, rng.randint(1, 4))
    tools = [noun_tool(noun, rng) for noun in nouns]
    if subject is None and rng.random() < sums:
        numbers = rng.sample(range(4), rng.randint(1, 3))
        tools = [*(number_tool(index, rng) for index in numbers), *tools[1:2]]
        makers = [partial(number_request, index, tool) for index, tool in zip(numbers, tools, strict=False)]
    else:
        makers = [partial(noun_request, noun, tool, subject) for noun, tool in zip(nouns, tools, strict=True)]
    rng.shuffle(tools)
    return [make(tools, rng) for make in rng.sample(makers, min(len(makers), max_requests))]


def number_request(index: int, tool: ToolSpec, tools: list[ToolSpec], rng: random.Random) -> ToolRequest:
    """A sum that `tool` does, with two numbers below a hundred."""
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    request = rng.choice(NUMBER_TOOLS[index][2]).replace("{a}", str(a)).replace("{b}", str(b))
    item = Answerable(request, "result", str(rng.randint(2, 9999)), "The result is {o}.", source="tool")
    return ToolRequest(tools, request, {"name": tool.name, "arguments": {"a": a, "b": b}}, item)


def noun_request(
    noun: str, tool: ToolSpec, subject: str | None, tools: list[ToolSpec], rng: random.Random
) -> ToolRequest:
    """Something about a place that `tool` looks up, and what may come back."""
    place, words = subject or made_up_name(rng), noun.replace("_", " ")
    request = (
        rng.choice(ASKS).replace("{n}", words).replace("{p}", rng.choice(("of", "in", "for"))).replace("{x}", place)
    )
    result = rng.choice(RESULTS) if rng.random() < 0.5 else str(rng.randint(1, 9999))
    if rng.random() < 0.2:
        result = made_up_name(rng)
    item = Answerable(request, place, result, f"The {words} of {{s}} is {{o}}.", source="tool")
    return ToolRequest(tools, request, {"name": tool.name, "arguments": {next(iter(tool.arguments)): place}}, item)
