"""Six tools of a small shop: deterministic, over local data, with enums, integers, optional, list and nested arguments.

Only the standard library and typing_extensions are imported, as agents of another environment use these tools too.
"""

# Annotations are objects here, not text: LlamaIndex does not resolve text.

import ast
import functools
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from typing_extensions import TypedDict

Currency = Literal["EUR", "USD", "GBP", "JPY", "CHF"]

WEATHER: dict[tuple[str, str], tuple[str, int]] = {
    ("oslo", "today"): ("sleet", 4),
    ("oslo", "tomorrow"): ("fog", 7),
    ("lisbon", "today"): ("drizzle", 19),
    ("lisbon", "tomorrow"): ("clear", 24),
    ("cairo", "today"): ("haze", 33),
    ("cairo", "tomorrow"): ("sandstorm", 36),
    ("lima", "today"): ("overcast", 17),
    ("lima", "tomorrow"): ("thunderstorm", 21),
}
EUROS = {"EUR": 1.0, "USD": 0.8, "GBP": 1.25, "JPY": 0.005, "CHF": 1.6}
"""What one unit costs in euros; made up, so that nobody knows it by heart."""
ORDERS: dict[int, tuple[str, str, float, str]] = {
    1042: ("shipped", "blue kettle", 59.9, "Lisbon"),
    1077: ("delayed", "oak lamp", 84.0, "Oslo"),
    2210: ("delivered", "wool blanket", 112.0, "Lima"),
    3305: ("cancelled", "steel kettle", 36.0, "Cairo"),
}
PRODUCTS: tuple[tuple[str, str, float, float], ...] = (
    ("K-11", "blue kettle", 59.9, 4.6),
    ("K-27", "steel kettle", 36.0, 4.1),
    ("L-05", "oak lamp", 84.0, 4.8),
    ("L-19", "desk lamp", 27.5, 3.9),
    ("B-33", "wool blanket", 112.0, 4.7),
    ("T-48", "travel mug", 18.4, 4.4),
)
"""Number, name, price in euros, rating."""


class Reminder(TypedDict):
    """When and how to remind the guests."""

    minutes: int
    channel: Literal["email", "sms"]


def get_weather(
    city: str,
    day: Literal["today", "tomorrow"] = "today",
    unit: Literal["celsius", "fahrenheit"] = "celsius",
) -> str:
    """Get the weather of a city.

    Args:
        city: name of the city, such as Oslo.
        day: today or tomorrow.
        unit: unit of the temperature, celsius or fahrenheit.
    """
    found = WEATHER.get((str(city).strip().casefold(), day))
    if found is None:
        return f"error: no weather of {city!r} for {day!r}; cities: Oslo, Lisbon, Cairo, Lima"
    sky, degrees = found
    shown = degrees if unit == "celsius" else degrees * 9 / 5 + 32
    return f"{city}, {day}: {sky}, {shown:g} degrees {unit}"


def convert_currency(amount: float, source: Currency, target: Currency) -> str:
    """Convert an amount of money from one currency into another at the shop's own rate.

    Args:
        amount: how much money.
        source: currency of the amount, one of EUR, USD, GBP, JPY, CHF.
        target: currency to convert to, one of EUR, USD, GBP, JPY, CHF.
    """
    if source not in EUROS or target not in EUROS:
        return f"error: currencies are {', '.join(EUROS)}"
    return f"{amount:g} {source} = {round(float(amount) * EUROS[source] / EUROS[target], 2):g} {target}"


def look_up_order(order_id: int) -> str:
    """Look up an order: its status, product, total in EUR and destination.

    Args:
        order_id: number of the order, such as 1042.
    """
    if int(order_id) not in ORDERS:
        return f"error: there is no order {order_id}"
    status, product, total, city = ORDERS[int(order_id)]
    return f"order {order_id}: {status}, product {product}, total {total:g} EUR, going to {city}"


def find_products(query: str, max_price: float | None = None, sort: Literal["price", "rating"] = "price") -> str:
    """Search the shop's products; each has a number, a name, a price in EUR and a rating.

    Args:
        query: words of the name, such as kettle.
        max_price: highest price in EUR; without it there is no limit.
        sort: price: the cheapest first; rating: the best first.
    """
    found = [PRODUCTS[index] for index in matching(query)]
    found = [product for product in found if max_price is None or product[2] <= float(max_price)]
    found.sort(key=lambda product: product[2] if sort == "price" else -product[3])
    if not found:
        return f"no product matches {query!r}"
    return "; ".join(f"{number} {name}, {price:g} EUR, rating {rating:g}" for number, name, price, rating in found)


def matching(query: str) -> tuple[int, ...]:
    """Which products have every word of a query in their names; a plural is its singular."""
    words = [word.removesuffix("s") for word in re.findall(r"[a-z]+", str(query).casefold())]
    return tuple(index for index, product in enumerate(PRODUCTS) if all(word in product[1] for word in words))


def calculate(expression: str) -> str:
    """Compute an arithmetic expression with +, -, *, /, ** and brackets.

    Args:
        expression: such as (12 + 8) * 3.5
    """
    try:
        return f"{evaluate(str(expression)):.10g}"
    except (ValueError, SyntaxError, ArithmeticError) as error:
        return f"error: {expression!r} cannot be computed: {error}"


BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,
}


def evaluate(expression: str) -> float:
    """The value of an arithmetic expression.

    Raises:
        ValueError, SyntaxError, ArithmeticError: it is none, or has no value.
    """

    def value(node: ast.AST) -> float:
        match node:
            case ast.Expression(body=body):
                return value(body)
            case ast.Constant(value=int() | float() as number):
                return float(number)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
                return BINARY[type(op)](value(left), value(right))
        raise ValueError("only numbers, +, -, *, /, ** and brackets")

    return value(ast.parse(expression.strip().replace("^", "**").replace("×", "*"), mode="eval"))


def create_event(title: str, date: str, attendees: list[str], reminder: Reminder | None = None) -> str:
    """Put an event into the calendar and get its code.

    Args:
        title: what the event is.
        date: the day as YYYY-MM-DD.
        attendees: first names of the guests.
        reminder: minutes (an integer) before the event and channel (email or sms); leave it out where nobody asks for one.
    """
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", str(date)):
        return f"error: date must be YYYY-MM-DD, got {date!r}"
    if reminder is not None and not {"minutes", "channel"} <= set(reminder):
        return "error: a reminder has minutes and channel"
    code = f"EV-{date[5:7]}{date[8:]}-{len(attendees)}{'R' if reminder else 'N'}"
    return f"created {title!r} on {date} for {', '.join(attendees)}; event code {code}"


Function = Callable[..., str]
TOOLS: dict[str, Function] = {
    function.__name__: function
    for function in (get_weather, convert_currency, look_up_order, find_products, calculate, create_event)
}


class Desk:
    """Hands the tools out, and writes down which calls were executed."""

    def __init__(self) -> None:
        self.executed: list[tuple[str, dict[str, Any]]] = []
        self.tools: list[Function] = [self._watched(function) for function in TOOLS.values()]

    def clear(self) -> None:
        """Forget the calls."""
        self.executed.clear()

    def _watched(self, function: Function) -> Function:
        names = list(function.__annotations__)

        @functools.wraps(function)
        def call(*values: Any, **arguments: Any) -> str:
            given = {**dict(zip(names, values, strict=False)), **arguments}
            self.executed.append((function.__name__, given))
            return function(*values, **arguments)

        return call


def run_tool(name: str, arguments: Mapping[str, Any]) -> str:
    """What a tool answers."""
    return TOOLS[name](**arguments)
