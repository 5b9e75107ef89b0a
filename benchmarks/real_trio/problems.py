"""Problems of two and three steps, made by rules with seeded numbers: seven kinds for the measurement, five others for training."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """A question, the way to the answer in one line, and the answer."""

    question: str
    reason: str
    answer: int


def shelves(rng: random.Random) -> Problem:
    """Multiply, subtract."""
    rows, each = rng.randint(3, 9), rng.randint(6, 24)
    sold = rng.randint(5, rows * each - 5)
    return Problem(
        f"A shop has {rows} shelves with {each} books on each. It sells {sold} books. How many books are left?",
        f"{rows} * {each} = {rows * each} books, and {rows * each} - {sold} = {rows * each - sold} are left.",
        rows * each - sold,
    )


def tickets(rng: random.Random) -> Problem:
    """Two products, a sum."""
    adults, children, price = rng.randint(2, 6), rng.randint(2, 7), rng.randint(8, 15)
    less = rng.randint(3, 6)
    cost = adults * price + children * less
    return Problem(
        f"A ticket costs {price} euros for an adult and {less} euros for a child. What do {adults} adults and "
        f"{children} children pay "
        "together, in euros?",
        f"{adults} * {price} = {adults * price} and {children} * {less} = {children * less}, together {cost}.",
        cost,
    )


def shares(rng: random.Random) -> Problem:
    """Subtract, divide."""
    friends, each, kept = rng.randint(3, 8), rng.randint(4, 15), rng.randint(3, 12)
    total = friends * each + kept
    return Problem(
        f"Mara has {total} stamps. She keeps {kept} and gives the others to {friends} friends in equal parts. "
        "How many stamps does each "
        "friend get?",
        f"{total} - {kept} = {total - kept} stamps are given away, and {total - kept} / {friends} = {each}.",
        each,
    )


def trip(rng: random.Random) -> Problem:
    """Two distances."""
    fast, slow = 10 * rng.randint(6, 12), 10 * rng.randint(2, 5)
    hours, more = rng.randint(2, 5), rng.randint(2, 4)
    total = fast * hours + slow * more
    return Problem(
        f"A driver goes {fast} km/h for {hours} hours and then {slow} km/h for {more} hours. How many "
        "kilometres is that in all?",
        f"{fast} * {hours} = {fast * hours} and {slow} * {more} = {slow * more}, together {total}.",
        total,
    )


def ages(rng: random.Random) -> Problem:
    """Multiply, add, add."""
    child, times, years = rng.randint(4, 11), rng.randint(3, 5), rng.randint(3, 9)
    return Problem(
        f"Tom is {child} years old, and his aunt is {times} times as old. How old will the aunt be in {years} years?",
        f"The aunt is {times} * {child} = {times * child}, and in {years} years {times * child} + {years} = "
        f"{times * child + years}.",
        times * child + years,
    )


def discount(rng: random.Random) -> Problem:
    """A percentage of a product."""
    count, price, percent = rng.randint(2, 6), 10 * rng.randint(2, 9), rng.choice([10, 20, 50])
    full = count * price
    return Problem(
        f"A chair costs {price} euros. Somebody buys {count} of them and gets {percent} percent off the "
        "whole. What is paid, in euros?",
        f"{count} * {price} = {full}, {percent} percent of it are {full * percent // 100}, and {full} - "
        f"{full * percent // 100} = "
        f"{full - full * percent // 100}.",
        full - full * percent // 100,
    )


def savings(rng: random.Random) -> Problem:
    """Multiply, add, subtract."""
    start, week, weeks = rng.randint(10, 60), rng.randint(3, 12), rng.randint(4, 9)
    spent = rng.randint(5, start)
    total = start + week * weeks - spent
    return Problem(
        f"Lena has {start} euros, saves {week} euros a week for {weeks} weeks and then spends {spent} euros. "
        "How many euros does she have?",
        f"{week} * {weeks} = {week * weeks}, {start} + {week * weeks} = {start + week * weeks}, and "
        f"{start + week * weeks} - {spent} = {total}.",
        total,
    )


def boxes(rng: random.Random) -> Problem:
    """Divide, multiply."""
    size, full, price = rng.randint(4, 12), rng.randint(3, 9), rng.randint(2, 7)
    return Problem(
        f"{size * full} apples are packed into boxes of {size}. A box is sold for {price} euros. How many "
        "euros do all boxes bring?",
        f"{size * full} / {size} = {full} boxes, and {full} * {price} = {full * price}.",
        full * price,
    )


def pages(rng: random.Random) -> Problem:
    """Multiply, subtract."""
    day, days, rest = rng.randint(8, 30), rng.randint(3, 8), rng.randint(10, 90)
    total = day * days + rest
    return Problem(
        f"A book has {total} pages. Ben reads {day} pages a day for {days} days. How many pages remain?",
        f"{day} * {days} = {day * days} pages are read, and {total} - {day * days} = {rest} remain.",
        rest,
    )


def garden(rng: random.Random) -> Problem:
    """Perimeter, price."""
    long, wide, price = rng.randint(6, 20), rng.randint(3, 12), rng.randint(2, 6)
    edge = 2 * (long + wide)
    return Problem(
        f"A garden is {long} metres long and {wide} metres wide. A metre of fence costs {price} euros. What "
        "does the fence around it cost, in euros?",
        f"The edge is 2 * ({long} + {wide}) = {edge} metres, and {edge} * {price} = {edge * price}.",
        edge * price,
    )


def bus(rng: random.Random) -> Problem:
    """Subtract, add."""
    start, off, on = rng.randint(20, 50), rng.randint(3, 15), rng.randint(2, 18)
    return Problem(
        f"{start} people are on a bus. At a stop {off} leave and {on} get on. How many people are on it then?",
        f"{start} - {off} = {start - off}, and {start - off} + {on} = {start - off + on}.",
        start - off + on,
    )


def bakery(rng: random.Random) -> Problem:
    """Multiply, divide."""
    trays, each = rng.randint(2, 8), rng.choice([6, 12, 18, 24])
    bag = rng.choice([2, 3, 6])
    return Problem(
        f"A baker fills {trays} trays with {each} rolls each and puts {bag} rolls into a bag. How many bags are there?",
        f"{trays} * {each} = {trays * each} rolls, and {trays * each} / {bag} = {trays * each // bag}.",
        trays * each // bag,
    )


MEASURED: tuple[Callable[[random.Random], Problem], ...] = (shelves, tickets, shares, trip, ages, discount, savings)
TAUGHT: tuple[Callable[[random.Random], Problem], ...] = (boxes, pages, garden, bus, bakery)


def problems(kinds: tuple[Callable[[random.Random], Problem], ...], count: int, seed: int) -> list[Problem]:
    """So many different problems, the kinds in turn."""
    rng, again = random.Random(seed), random.Random(f"again {seed}")
    made: dict[str, Problem] = {}
    for index in range(count):
        kind = kinds[index % len(kinds)]
        problem = kind(rng)
        while problem.question in made:
            problem = kind(again)
        made[problem.question] = problem
    return list(made.values())
