"""Forty shapes of objects as people write them for tools and answers."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import ipaddress
import uuid
from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NotRequired, Optional, TypeVar

from pydantic import AnyUrl, BaseModel, ConfigDict, Field, RootModel
from typing_extensions import TypedDict

Item = TypeVar("Item")


class Colour(enum.StrEnum):
    """A colour."""

    red = "red"
    green = 'gr"ün'


class Level(enum.IntEnum):
    """A level."""

    low = 1
    high = 2


class Mixed(enum.Enum):
    """Values of several kinds."""

    text = "a"
    number = 1


class Plain(BaseModel):
    """Texts, numbers, a switch."""

    name: str
    age: int
    height: float
    is_here: bool


class Defaults(BaseModel):
    """Everything may be left out."""

    name: str = "x"
    tags: list[str] = []
    level: Level = Level.low


class WithEnum(BaseModel):
    """Enums."""

    colour: Colour
    level: Level
    mixed: Mixed


class Optionals(BaseModel):
    """What may be null, must be there or may be missing."""

    a: int | None
    b: str | None = None
    c: Optional[Colour] = None  # noqa: UP045  as people write it


class Unions(BaseModel):
    """One of several."""

    a: int | str
    b: list[int] | dict[str, int] | None
    c: float | bool


class Literals(BaseModel):
    """Certain values."""

    kind: Literal["a", "b"]
    one: Literal[1, True, "x"]


class Address(BaseModel):
    """Where."""

    street: str
    number: Annotated[int, Field(ge=1, le=999)]


class Nested(BaseModel):
    """A model in a model."""

    address: Address
    old: Address | None = None


class Deep(BaseModel):
    """Three levels."""

    people: list[Nested]
    by_name: dict[str, Nested]


class Tree(BaseModel):
    """A model in itself."""

    value: int
    children: list[Tree] = []


class Chain(BaseModel):
    """A model that may go on."""

    value: str
    next: Chain | None = None


class Husband(BaseModel):
    """One of two models that name each other."""

    name: str
    wife: Wife | None = None


class Wife(BaseModel):
    """The other."""

    name: str
    husband: Husband | None = None


class Cat(BaseModel):
    """A cat."""

    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    """A dog."""

    kind: Literal["dog"]
    breed: str


class Tagged(BaseModel):
    """A union that a field decides."""

    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    others: list[Annotated[Cat | Dog, Field(discriminator="kind")]] = []


class Untagged(BaseModel):
    """A union of models that nothing decides."""

    pet: Cat | Dog | Address


class Dicts(BaseModel):
    """Free keys."""

    counts: dict[str, int]
    models: dict[str, Address]
    anything: dict[str, Any]


class Keys(BaseModel):
    """Keys of a certain form."""

    by_code: dict[Annotated[str, Field(pattern="^[a-z]{2}$")], int]
    by_colour: dict[Colour, int]


class Lists(BaseModel):
    """Lists with bounds."""

    two: Annotated[list[int], Field(min_length=2, max_length=3)]
    matrix: list[list[float]]
    sequence: Sequence[str]


class Sets(BaseModel):
    """What is there once."""

    flags: set[bool]
    colours: frozenset[Colour]


class Tuples(BaseModel):
    """Places with kinds of their own."""

    pair: tuple[int, str]
    many: tuple[float, ...]


class Bounded(BaseModel):
    """Numbers with bounds."""

    a: Annotated[int, Field(gt=0, lt=10)]
    b: Annotated[float, Field(ge=-1.5, le=2.5)]
    c: Annotated[int, Field(multiple_of=5, ge=0, le=100)]


class Texts(BaseModel):
    """Texts with lengths and patterns."""

    a: Annotated[str, Field(min_length=2, max_length=5)]
    b: Annotated[str, Field(pattern=r"^[A-Z]{2}-\d{3}$")]
    c: Annotated[str, Field(pattern=r"^(foo|bar)+$", max_length=9)]


class Times(BaseModel):
    """Dates and times."""

    day: datetime.date
    moment: datetime.datetime
    clock: datetime.time


class Spans(BaseModel):
    """Lengths of time."""

    span: datetime.timedelta


class Identities(BaseModel):
    """Identities and addresses of machines."""

    own: uuid.UUID
    machine: ipaddress.IPv4Address


class Money(BaseModel):
    """Decimals."""

    price: Decimal
    rest: Decimal | None = None


class Links(BaseModel):
    """An address of a page, as a text."""

    page: Annotated[str, Field(json_schema_extra={"format": "uri"})]
    mail: Annotated[str, Field(json_schema_extra={"format": "email"})]


class Url(BaseModel):
    """An address that pydantic reads."""

    page: AnyUrl | None = None
    name: str


class Bytes(BaseModel):
    """Bytes."""

    data: bytes


class Anything(BaseModel):
    """No type at all."""

    a: Any
    b: object = None


class Aliased(BaseModel):
    """Names that Python has not."""

    source: str = Field(alias="from")
    number: int = Field(alias="the number")


class Animal(BaseModel):
    """What others inherit."""

    name: str
    legs: int = 4


class Bird(Animal):
    """With more."""

    can_fly: bool


class Closed(BaseModel):
    """No other keys."""

    model_config = ConfigDict(extra="forbid")

    a: int


class Open(BaseModel):
    """Other keys too."""

    model_config = ConfigDict(extra="allow")

    a: int


class Page(BaseModel, Generic[Item]):
    """A generic class."""

    items: list[Item]
    total: int


class Root(RootModel[list[Address]]):
    """A list with a name."""


class Rooted(BaseModel):
    """A field of such a class."""

    addresses: Root


@dataclasses.dataclass
class Point:
    """A dataclass."""

    x: float
    y: float = 0.0


class WithDataclass(BaseModel):
    """A field of a dataclass."""

    at: Point
    others: list[Point] = []


class Described(BaseModel):
    """Descriptions, examples, titles and a property that is called title."""

    title: str = Field(description="the title", examples=["x"], title="The Title")
    description: str
    properties: dict[str, str]
    required: list[str]


class Movie(TypedDict):
    """A TypedDict."""

    name: str
    year: Annotated[int, ..., "of its first night"]


class Shelf(TypedDict, total=False):
    """Nothing must be there."""

    movies: list[Movie]
    owner: str


class Folder(TypedDict):
    """A TypedDict in itself, with a key that may be missing."""

    name: str
    colour: NotRequired[Literal["red", "blue"]]
    folders: list[Folder]


SHAPES: tuple[Any, ...] = (
    Plain, Defaults, WithEnum, Optionals, Unions, Literals, Nested, Deep, Tree, Chain, Husband, Tagged, Untagged, Dicts, Keys,
    Lists, Sets, Tuples, Bounded, Texts, Times, Spans, Identities, Money, Links, Url, Bytes, Anything, Aliased, Bird, Closed, Open,
    Page[Address], Page[int | None], Rooted, WithDataclass, Described, Movie, Shelf, Folder,
)  # fmt: skip
