"""Problems of two and three steps, by rules with seeded numbers: seven kinds for the measurement, eight others for training."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """A question, the steps to the answer, and the answer."""

    question: str
    steps: tuple[str, ...]
    answer: int


Kind = Callable[[random.Random], Problem]

# ---- for the measurement ---------------------------------------------------------------------------------------------------


def shelves(rng: random.Random) -> Problem:
    """Multiply, subtract."""
    rows, each = rng.randint(3, 9), rng.randint(6, 24)
    sold = rng.randint(5, rows * each - 5)
    return Problem(
        f"A shop has {rows} shelves with {each} books on each. It sells {sold} books. How many books are left?",
        (f"{rows} * {each} = {rows * each} books", f"{rows * each} - {sold} = {rows * each - sold} books"),
        rows * each - sold,
    )


def tickets(rng: random.Random) -> Problem:
    """Two products, a sum."""
    adults, children, price = rng.randint(2, 6), rng.randint(2, 7), rng.randint(8, 15)
    less = rng.randint(3, 6)
    cost = adults * price + children * less
    return Problem(
        f"A ticket costs {price} euros for an adult and {less} euros for a child. What do {adults} adults and "
        f"{children} children pay together, in euros?",
        (
            f"{adults} * {price} = {adults * price} euros",
            f"{children} * {less} = {children * less} euros",
            f"{adults * price} + {children * less} = {cost} euros",
        ),
        cost,
    )


def shares(rng: random.Random) -> Problem:
    """Subtract, divide."""
    friends, each, kept = rng.randint(3, 8), rng.randint(4, 15), rng.randint(3, 12)
    total = friends * each + kept
    return Problem(
        f"Mara has {total} stamps. She keeps {kept} and gives the others to {friends} friends in equal parts. How many "
        "stamps does each friend get?",
        (f"{total} - {kept} = {total - kept} stamps", f"{total - kept} / {friends} = {each} stamps"),
        each,
    )


def trip(rng: random.Random) -> Problem:
    """Two distances."""
    fast, slow = 10 * rng.randint(6, 12), 10 * rng.randint(2, 5)
    hours, more = rng.randint(2, 5), rng.randint(2, 4)
    total = fast * hours + slow * more
    return Problem(
        f"A driver goes {fast} km/h for {hours} hours and then {slow} km/h for {more} hours. How many kilometres is "
        "that in all?",
        (
            f"{fast} * {hours} = {fast * hours} kilometres",
            f"{slow} * {more} = {slow * more} kilometres",
            f"{fast * hours} + {slow * more} = {total} kilometres",
        ),
        total,
    )


def ages(rng: random.Random) -> Problem:
    """Multiply, add."""
    child, times, years = rng.randint(4, 11), rng.randint(3, 5), rng.randint(3, 9)
    aunt = times * child
    return Problem(
        f"Tom is {child} years old, and his aunt is {times} times as old. How old will the aunt be in {years} years?",
        (f"{times} * {child} = {aunt} years", f"{aunt} + {years} = {aunt + years} years"),
        aunt + years,
    )


def discount(rng: random.Random) -> Problem:
    """A product, a percentage, a difference."""
    count, price, percent = rng.randint(2, 6), 10 * rng.randint(2, 9), rng.choice([10, 20, 50])
    full = count * price
    off = full * percent // 100
    return Problem(
        f"A chair costs {price} euros. Somebody buys {count} of them and gets {percent} percent off the whole. What is "
        "paid, in euros?",
        (
            f"{count} * {price} = {full} euros",
            f"{percent} % of {full} = {off} euros",
            f"{full} - {off} = {full - off} euros",
        ),
        full - off,
    )


def savings(rng: random.Random) -> Problem:
    """Multiply, add, subtract."""
    start, week, weeks = rng.randint(10, 60), rng.randint(3, 12), rng.randint(4, 9)
    spent = rng.randint(5, start)
    saved = start + week * weeks
    return Problem(
        f"Lena has {start} euros, saves {week} euros a week for {weeks} weeks and then spends {spent} euros. How many "
        "euros does she have?",
        (
            f"{week} * {weeks} = {week * weeks} euros",
            f"{start} + {week * weeks} = {saved} euros",
            f"{saved} - {spent} = {saved - spent} euros",
        ),
        saved - spent,
    )


# ---- for training ----------------------------------------------------------------------------------------------------------


def boxes(rng: random.Random) -> Problem:
    """Divide, multiply."""
    size, full, price = rng.randint(4, 12), rng.randint(3, 9), rng.randint(2, 7)
    return Problem(
        f"{size * full} apples are packed into boxes of {size}. A box is sold for {price} euros. How many euros do all "
        "boxes bring?",
        (f"{size * full} / {size} = {full} boxes", f"{full} * {price} = {full * price} euros"),
        full * price,
    )


def pages(rng: random.Random) -> Problem:
    """Multiply, subtract."""
    day, days, rest = rng.randint(8, 30), rng.randint(3, 8), rng.randint(10, 90)
    total = day * days + rest
    return Problem(
        f"A book has {total} pages. Ben reads {day} pages a day for {days} days. How many pages remain?",
        (f"{day} * {days} = {day * days} pages", f"{total} - {day * days} = {rest} pages"),
        rest,
    )


def garden(rng: random.Random) -> Problem:
    """Add, double, multiply."""
    long, wide, price = rng.randint(6, 20), rng.randint(3, 12), rng.randint(2, 6)
    edge = 2 * (long + wide)
    return Problem(
        f"A garden is {long} metres long and {wide} metres wide. A metre of fence costs {price} euros. What does the "
        "fence around it cost, in euros?",
        (
            f"{long} + {wide} = {long + wide} metres",
            f"2 * {long + wide} = {edge} metres",
            f"{edge} * {price} = {edge * price} euros",
        ),
        edge * price,
    )


def bus(rng: random.Random) -> Problem:
    """Subtract, add."""
    start, off, on = rng.randint(20, 50), rng.randint(3, 15), rng.randint(2, 18)
    return Problem(
        f"{start} people are on a bus. At a stop {off} leave and {on} get on. How many people are on it then?",
        (f"{start} - {off} = {start - off} people", f"{start - off} + {on} = {start - off + on} people"),
        start - off + on,
    )


def bakery(rng: random.Random) -> Problem:
    """Multiply, divide."""
    trays, each = rng.randint(2, 8), rng.choice([6, 12, 18, 24])
    bag = rng.choice([2, 3, 6])
    return Problem(
        f"A baker fills {trays} trays with {each} rolls each and puts {bag} rolls into a bag. How many bags are there?",
        (f"{trays} * {each} = {trays * each} rolls", f"{trays * each} / {bag} = {trays * each // bag} bags"),
        trays * each // bag,
    )


def wages(rng: random.Random) -> Problem:
    """Multiply twice, subtract."""
    hours, days, pay, rent = rng.randint(3, 8), rng.randint(2, 6), rng.randint(9, 15), rng.randint(10, 50)
    earned = hours * days * pay
    return Problem(
        f"Nora works {hours} hours a day on {days} days for {pay} euros an hour and pays {rent} euros for a room. How "
        "many euros are left to her?",
        (
            f"{hours} * {days} = {hours * days} hours",
            f"{hours * days} * {pay} = {earned} euros",
            f"{earned} - {rent} = {earned - rent} euros",
        ),
        earned - rent,
    )


def tank(rng: random.Random) -> Problem:
    """Multiply, add."""
    start, rate, minutes = rng.randint(10, 80), rng.randint(4, 15), rng.randint(3, 12)
    return Problem(
        f"A tank holds {start} litres, and a pump adds {rate} litres a minute. How many litres does it hold after "
        f"{minutes} minutes?",
        (
            f"{rate} * {minutes} = {rate * minutes} litres",
            f"{start} + {rate * minutes} = {start + rate * minutes} litres",
        ),
        start + rate * minutes,
    )


def teams(rng: random.Random) -> Problem:
    """Add, divide."""
    girls, size, count = rng.randint(6, 20), rng.randint(3, 6), rng.randint(5, 9)
    total = size * count
    boys = max(1, total - girls)
    total = girls + boys
    return Problem(
        f"{girls} girls and {boys} boys form teams of {size}. How many full teams are there?",
        (f"{girls} + {boys} = {total} children", f"{total} / {size} = {total // size} full teams"),
        total // size,
    )


MEASURED: tuple[Kind, ...] = (shelves, tickets, shares, trip, ages, discount, savings)
TAUGHT: tuple[Kind, ...] = (boxes, pages, garden, bus, bakery, wages, tank, teams)


def problems(kinds: tuple[Kind, ...], count: int, seed: int) -> list[Problem]:
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
