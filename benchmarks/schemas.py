"""Objects of real schemas out of texts, with a real model: this package beside llama-cpp-python on the same file.

    python -m benchmarks.schemas --base qwen15.gguf

Twelve texts, each to be read into a pydantic class: enums, nested and recursive models, tagged unions, dates, decimals,
aliases, patterns. Each is asked for through LangChain (`with_structured_output`, by schema and by a forced tool call) with the base
alone (weight 0), and through llama-cpp-python's `create_chat_completion(response_format=...)` with the class's own JSON schema.

accepted   the schema was taken
valid      the answer is an object of the class
right      the fields that the text says are as it says

Then `max_tokens` is set so low that no answer fits: how many answers came back as if they were whole.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from langchain_core.exceptions import OutputParserException
from langchain_core.output_parsers import JsonOutputParser
from pydantic import BaseModel, Field, ValidationError
from rich.console import Console
from rich.table import Table

from benchmarks.report import finish
from eft_engine import Engine, EngineConfig, LlamaCppOptions
from eft_integrations.langchain import EFTChatModel


class Colour(StrEnum):
    """A colour."""

    red = "red"
    green = "green"
    blue = "blue"


class Address(BaseModel):
    """Where somebody lives."""

    street: str
    town: str
    postcode: Annotated[str, Field(pattern=r"^[0-9]{5}$")]


class Person(BaseModel):
    """Somebody with an address."""

    name: str
    age: int | None = None
    address: Address


class Car(BaseModel):
    """A car."""

    maker: str
    colour: Colour


class Line(BaseModel):
    """A line of a bill."""

    item: str
    quantity: Annotated[int, Field(ge=1)]
    price: Decimal


class Bill(BaseModel):
    """A bill."""

    number: str
    day: datetime.date
    lines: list[Line]


class Folder(BaseModel):
    """A folder with folders."""

    name: str
    folders: list[Folder] = []


class Cat(BaseModel):
    """A cat."""

    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    """A dog."""

    kind: Literal["dog"]
    breed: str


class Owner(BaseModel):
    """Somebody with a pet."""

    name: str
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


class Meeting(BaseModel):
    """A meeting."""

    title: str
    starts: datetime.datetime
    people: Annotated[list[str], Field(min_length=1)]


class Stock(BaseModel):
    """What is in stock."""

    counts: dict[str, int]


class Flight(BaseModel):
    """A flight."""

    number: Annotated[str, Field(pattern=r"^[A-Z]{2}[0-9]{2,4}$")]
    origin: str = Field(alias="from")
    target: str = Field(alias="to")


class Contact(BaseModel):
    """How to reach somebody."""

    email: Annotated[str, Field(json_schema_extra={"format": "email"})]
    tags: set[str]


class Animal(BaseModel):
    """An animal."""

    name: str


class Bird(Animal):
    """A bird, with what every animal has."""

    can_fly: bool


class Point(BaseModel):
    """A place on a map."""

    position: tuple[float, float]
    label: str


@dataclass(frozen=True)
class Task:
    """A text, the class that it is read into, and what must be in the object."""

    text: str
    shape: type[BaseModel]
    says: Mapping[str, Any] = field(default_factory=dict)


TASKS = (
    Task("Ada Berg is 36 and lives at Lime Road 4, 90210 Elm Bay.", Person, {"name": "Ada Berg", "age": 36}),
    Task("My new car is a blue Volvo.", Car, {"colour": "blue"}),
    Task("Bill 77-B of 3 May 2024: 2 lamps at 19.90 each, 1 desk at 120.", Bill, {"day": "2024-05-03"}),
    Task("The folder home holds docs and music; docs holds letters.", Folder, {"name": "home"}),
    Task("Tom has a cat with nine lives.", Owner, {"name": "Tom"}),
    Task("Mia has a dog, a poodle.", Owner, {"name": "Mia"}),
    Task("Budget meeting on 2 June 2025 at 14:30 UTC with Lee and Kim.", Meeting, {"people": ["Lee", "Kim"]}),
    Task("In stock: 12 bolts, 30 nuts and 7 keys.", Stock, {"counts": {"bolts": 12, "nuts": 30, "keys": 7}}),
    Task("Flight LH123 goes from Rome to Oslo.", Flight, {"number": "LH123", "from": "Rome", "to": "Oslo"}),
    Task("Write to jo@example.com; she is a customer and a friend.", Contact, {"email": "jo@example.com"}),
    Task("Pingu is a penguin and cannot fly.", Bird, {"name": "Pingu", "can_fly": False}),
    Task("The well is at 12.5, 7.25 on the map.", Point, {"position": [12.5, 7.25]}),
)


def asked(task: Task) -> str:
    """What the model is told."""
    return f"Read this text into the object that is asked for.\n\n{task.text}"


Method = Literal["json_schema", "function_calling"]
Answer = BaseModel | None
Ask = Callable[[Task, int], Answer]
"""An object of the class, or None where the answer is known not to be one. A schema that is not taken raises."""


def ours(engine: Engine, method: Method) -> Ask:
    """LangChain over this package."""

    def ask(task: Task, max_tokens: int) -> Answer:
        model = EFTChatModel(engine=engine, temperature=0.0, max_tokens=max_tokens, reward_weights=0.0)
        try:
            found = model.with_structured_output(task.shape, method=method).invoke(asked(task))
        except OutputParserException:
            return None
        assert isinstance(found, BaseModel)
        return found

    return ask


def theirs(path: Path, threads: int) -> Ask:
    """llama-cpp-python with the schema as it is, its JSON read as LangChain reads it."""
    from llama_cpp import Llama

    llama = Llama(str(path), n_ctx=2048, n_threads=threads, verbose=False)

    def ask(task: Task, max_tokens: int) -> Answer:
        reply = llama.create_chat_completion(
            messages=[{"role": "user", "content": asked(task)}],
            response_format={"type": "json_object", "schema": task.shape.model_json_schema()},
            temperature=0.0,
            max_tokens=max_tokens,
        )
        try:
            return task.shape.model_validate(JsonOutputParser().parse(reply["choices"][0]["message"]["content"]))
        except (OutputParserException, ValidationError):
            return None

    return ask


def measured(ask: Ask, max_tokens: int) -> Iterator[tuple[Task, bool, Answer]]:
    """Every task: whether the schema was taken, and the object."""
    for task in TASKS:
        try:
            yield task, True, ask(task, max_tokens)
        except Exception as error:  # what a library does with a schema that it does not know is what is measured
            Console(stderr=True).print(
                f"{task.shape.__name__}: {type(error).__name__}: {str(error)[:200]}", markup=False
            )
            yield task, False, None


def is_right(task: Task, found: Answer) -> bool:
    """Whether the object says what the text says."""
    if found is None:
        return False
    fields = json.loads(found.model_dump_json(by_alias=True))
    return all(fields.get(name) == value for name, value in task.says.items())


def main(
    base: Annotated[Path, typer.Option(envvar="EFT_AGENTS_BASE", help="The model, a GGUF file.")],
    max_tokens: Annotated[int, typer.Option(min=16, help="Most tokens of an answer.")] = 200,
    cut_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of answers that must not fit.")] = 6,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each.")] = 2,
) -> None:
    """Run and print; the last line is JSON."""
    table = Table(
        "way", "accepted", "valid", "right", "stumps given as whole", title=f"{len(TASKS)} texts, {base.name}"
    )
    report: dict[str, dict[str, int]] = {}
    config = EngineConfig(runtime="llama.cpp", llama_cpp=LlamaCppOptions(n_threads=threads))

    def note(way: str, ask: Ask) -> None:
        whole = list(measured(ask, max_tokens))
        cut = list(measured(ask, cut_tokens))
        report[way] = {
            "accepted": sum(taken for _, taken, _ in whole),
            "valid": sum(found is not None for _, _, found in whole),
            "right": sum(is_right(task, found) for task, _, found in whole),
            "stumps": sum(found is not None for _, _, found in cut),
        }
        table.add_row(way, *map(str, report[way].values()))

    with Engine.load(str(base), config=config) as engine:
        methods: tuple[Method, ...] = ("json_schema", "function_calling")
        for method in methods:
            note(f"eft, {method}", ours(engine, method))
    note("llama-cpp-python", theirs(base, threads))
    Console(stderr=True).print(table)
    finish(
        "schemas", {"base": base.name, "texts": len(TASKS), "max_tokens": max_tokens, "cut": cut_tokens, "ways": report}
    )


if __name__ == "__main__":
    typer.run(main)
