"""The tasks, and a choice among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.agents.tasks import KINDS, Call, Fact, Kind, Step, Task, Turn


def weather(city: str, day: str = "today", unit: str = "celsius") -> Call:
    """A call of get_weather."""
    return Call("get_weather", {"city": city, "day": day, "unit": unit})


def money(amount: float, source: str, target: str) -> Call:
    """A call of convert_currency."""
    return Call("convert_currency", {"amount": amount, "source": source, "target": target})


def order(order_id: int) -> Call:
    """A call of look_up_order."""
    return Call("look_up_order", {"order_id": order_id})


def products(query: str, max_price: float | None = None, sort: str = "price") -> Call:
    """A call of find_products."""
    return Call("find_products", {"query": query, "max_price": max_price, "sort": sort})


def compute(expression: str) -> Call:
    """A call of calculate."""
    return Call("calculate", {"expression": expression})


def event(date: str, attendees: list[str], reminder: dict[str, Any] | None = None) -> Call:
    """A call of create_event; its title is free."""
    return Call("create_event", {"title": "", "date": date, "attendees": attendees, "reminder": reminder})


def single(name: str, question: str, call: Call, *facts: Fact) -> Task:
    """One call."""
    return Task(name, "single", (Turn(question, ((call,),), facts),))


def parallel(name: str, question: str, calls: Sequence[Call], *facts: Fact) -> Task:
    """Calls that do not depend on each other."""
    return Task(name, "parallel", (Turn(question, (tuple(calls),), facts),))


def chained(name: str, question: str, *steps: Step, facts: tuple[Fact, ...], given: int = 0) -> Task:
    """Calls of which the later ones need the earlier ones' results; small sums need no tool."""
    return Task(name, "chained", (Turn(question, steps, facts, allowed=("calculate",)),), given)


def plain(name: str, question: str, fact: Fact) -> Task:
    """No call."""
    return Task(name, "none", (Turn(question, (), (fact,)),))


def answered(task: Task) -> Task:
    """The same question with all results there: what is left is an answer in text."""
    return Task(f"{task.name}_answered", "answered", task.turns, given=len(task.last.steps))


SINGLE = (
    single("weather_today", "What is the weather like in Oslo today?", weather("Oslo"), "sleet"),
    single(
        "weather_fahrenheit",
        "How warm will it be in Lisbon tomorrow, in degrees Fahrenheit?",
        weather("Lisbon", "tomorrow", "fahrenheit"),
        75.2,
    ),
    single("euros_to_dollars", "Convert 120 EUR to USD.", money(120, "EUR", "USD"), 150.0),
    single("order_status", "What is the status of my order 3305?", order(3305), "cancel"),
    single("cheap_lamp", "Do you sell a lamp for at most 30 euros?", products("lamp", 30), "desk"),
    single("product_of_sums", "Use the calculator: what is 37 * 48 - 129?", compute("37 * 48 - 129"), 1647.0),
    single(
        "event",
        "Create an event called Budget review on 2026-03-14 with Ana and Ben, and tell me its code.",
        event("2026-03-14", ["Ana", "Ben"]),
        "EV-0314-2N",
    ),
    single("weather_storm", "What will the weather be in Lima tomorrow?", weather("Lima", "tomorrow"), "thunder"),
    single("weather_now", "What is the temperature in Cairo right now, in Celsius?", weather("Cairo"), 33.0),
    single("francs_to_yen", "How many Japanese yen do I get for 35 Swiss francs?", money(35, "CHF", "JPY"), 11200.0),
    single("pounds_to_euros", "I have 64 British pounds. How much is that in euros?", money(64, "GBP", "EUR"), 80.0),
    single("order_city", "To which city is order 1077 going?", order(1077), "oslo"),
    single("order_total", "What is the total of order number 2210?", order(2210), 112.0),
    single("kettles", "Which kettles do you sell?", products("kettle"), "blue", "steel"),
    single("best_lamp", "List your lamps, the best rated first.", products("lamp", sort="rating"), "oak", "desk"),
    single("brackets", "Use the calculator for (15.5 + 4.5) * 12.25.", compute("(15.5 + 4.5) * 12.25"), 245.0),
    single(
        "event_reminder",
        "Put a meeting with Carla on 2026-05-02 into the calendar, with a reminder by sms 30 minutes before. What is its code?",
        event("2026-05-02", ["Carla"], {"minutes": 30, "channel": "sms"}),
        "EV-0502-1R",
    ),
)
PARALLEL = (
    parallel(
        "two_cities",
        "What is the weather today in Oslo, and what is it in Lima?",
        [weather("Oslo"), weather("Lima")],
        "sleet",
        "overcast",
    ),
    parallel(
        "two_orders", "What is the status of the orders 1042 and 3305?", [order(1042), order(3305)], "shipped", "cancel"
    ),
    parallel(
        "weather_and_order",
        "What is the weather in Lisbon today, and what is the status of order 1077?",
        [weather("Lisbon"), order(1077)],
        "drizzle",
        "delayed",
    ),
    parallel(
        "two_days",
        "What is the weather in Cairo today, and what will it be there tomorrow?",
        [weather("Cairo"), weather("Cairo", "tomorrow")],
        "haz",
        "sandstorm",
    ),
    parallel(
        "two_amounts",
        "Convert 10 EUR to USD, and 20 GBP to USD.",
        [money(10, "EUR", "USD"), money(20, "GBP", "USD")],
        12.5,
        31.25,
    ),
    parallel(
        "francs_and_yen",
        "How much is 50 CHF in EUR, and how much is 4000 JPY in EUR?",
        [money(50, "CHF", "EUR"), money(4000, "JPY", "EUR")],
        80.0,
        20.0,
    ),
    parallel(
        "kettles_and_blankets",
        "Which kettles do you sell, and which blankets?",
        [products("kettle"), products("blanket")],
        "steel",
        "wool",
    ),
    parallel(
        "two_sums",
        "Use the calculator: what is 19 * 23, and what is 1440 / 9?",
        [compute("19 * 23"), compute("1440 / 9")],
        437.0,
        160.0,
    ),
    parallel(
        "three_cities",
        "What will the weather be tomorrow in Oslo, Lisbon and Lima?",
        [weather("Oslo", "tomorrow"), weather("Lisbon", "tomorrow"), weather("Lima", "tomorrow")],
        "fog",
        "clear",
        "thunder",
    ),
)
CHAINED = (
    chained(
        "weather_of_order",
        "What is the weather today in the city that order 1042 is going to?",
        (order(1042),),
        (weather("Lisbon"),),
        facts=("drizzle",),
    ),
    chained(
        "order_in_dollars",
        "How much is the total of order 2210 in US dollars?",
        (order(2210),),
        (money(112, "EUR", "USD"),),
        facts=(140.0,),
        given=1,
    ),
    chained(
        "two_totals",
        "What do the orders 1042 and 1077 cost together?",
        (order(1042), order(1077)),
        (compute("59.9 + 84"),),
        facts=(143.9,),
    ),
    chained(
        "kettle_in_pounds",
        "What does your cheapest kettle cost in British pounds?",
        (products("kettle"),),
        (money(36, "EUR", "GBP"),),
        facts=(28.8,),
    ),
    chained(
        "warmth_of_order",
        "How warm will it be tomorrow, in Fahrenheit, in the city that order 1077 is going to?",
        (order(1077),),
        (weather("Oslo", "tomorrow", "fahrenheit"),),
        facts=(44.6,),
        given=1,
    ),
    chained(
        "three_mugs",
        "What do three of your travel mugs cost together?",
        (products("travel mug"),),
        (compute("3 * 18.4"),),
        facts=(55.2,),
    ),
    chained(
        "lamp_for_pounds",
        "I have 40 British pounds. How many euros is that, and which lamp can I buy for it?",
        (money(40, "GBP", "EUR"),),
        (products("lamp", 50),),
        facts=(50.0, "desk"),
    ),
    chained(
        "order_in_yen",
        "How much is the total of order 3305 in Japanese yen?",
        (order(3305),),
        (money(36, "EUR", "JPY"),),
        facts=(7200.0,),
    ),
    chained(
        "difference",
        "How much more does order 1077 cost than order 3305?",
        (order(1077), order(3305)),
        (compute("84 - 36"),),
        facts=(48.0,),
    ),
)
FOLLOW_UP = (
    Task(
        "and_tomorrow",
        "follow_up",
        (
            Turn("What is the weather in Oslo today?", ((weather("Oslo"),),), ("sleet",), answer="Sleet, 4 degrees."),
            Turn("And tomorrow?", ((weather("Oslo", "tomorrow"),),), ("fog",)),
        ),
    ),
    Task(
        "another_order",
        "follow_up",
        (
            Turn("What is the status of order 1042?", ((order(1042),),), ("shipped",), answer="It is shipped."),
            Turn("And what about order 1077?", ((order(1077),),), ("delayed",)),
        ),
    ),
    Task(
        "another_currency",
        "follow_up",
        (
            Turn("Convert 100 EUR to CHF.", ((money(100, "EUR", "CHF"),),), (62.5,), answer="That is 62.5 CHF."),
            Turn("And how much is that in yen?", ((money(100, "EUR", "JPY"),),), (20000.0,)),
        ),
    ),
    Task(
        "price_of_lamp",
        "follow_up",
        (
            Turn(
                "Which lamps do you sell?",
                ((products("lamp"),),),
                ("desk", "oak"),
                answer="A desk lamp for 27.5 EUR and an oak lamp for 84 EUR.",
            ),
            Turn("How much is the desk lamp in British pounds?", ((money(27.5, "EUR", "GBP"),),), (22.0,)),
        ),
    ),
    Task(
        "same_event",
        "follow_up",
        (
            Turn(
                "Create an event Standup on 2026-06-20 with Dan and Eva.",
                ((event("2026-06-20", ["Dan", "Eva"]),),),
                ("EV-0620-2N",),
                answer="Done; its code is EV-0620-2N.",
            ),
            Turn(
                "The same on 2026-06-21, please. What is its code?",
                ((event("2026-06-21", ["Dan", "Eva"]),),),
                ("EV-0621-2N",),
            ),
        ),
    ),
    Task(
        "small_talk",
        "follow_up",
        (
            Turn("What is the status of order 2210?", ((order(2210),),), ("delivered",), answer="It is delivered."),
            Turn("Thank you! How do you say 'blanket' in Spanish?", (), ("manta|cobija|frazada",)),
        ),
    ),
)
NONE = (
    plain("capital", "What is the capital of France?", "paris"),
    plain("translation", "Translate 'good morning' into Spanish.", "buenos|buen d"),
    plain("author", "Who wrote Romeo and Juliet?", "shakespeare"),
    plain("planet", "What is the largest planet of the solar system?", "jupiter"),
    plain("reverse", "Write a Python expression that reverses the string s.", "[::-1]|reversed("),
    plain("greeting", "Say hello in French.", "bonjour|salut"),
    plain("opposite", "What is the opposite of 'cheap'?", "expensive|costly|dear"),
    plain("thanks", "Thank you, that is all.", "bye|welcome|great day|nice day|care|pleasure|happy to"),
)
ANSWERED = tuple(map(answered, (SINGLE[0], SINGLE[2], SINGLE[3], SINGLE[4], PARALLEL[1])))
TASKS: tuple[Task, ...] = (*SINGLE, *PARALLEL, *CHAINED, *FOLLOW_UP, *NONE, *ANSWERED)


def chosen(number: int, *, names: Sequence[str] = (), kinds: Sequence[Kind] = KINDS) -> list[Task]:
    """The first `number` tasks (0: all), a kind after the other in turn; or those named.

    Raises:
        ValueError: a name is unknown.
    """
    if unknown := sorted(set(names) - {task.name for task in TASKS}):
        raise ValueError(f"there is no task {unknown[0]!r}; tasks: {', '.join(task.name for task in TASKS)}")
    if names:
        return [task for task in TASKS if task.name in names]
    of_kinds = [[task for task in TASKS if task.kind == kind] for kind in kinds]
    rounds = range(max(map(len, of_kinds)))
    mixed = [own[index] for index in rounds for own in of_kinds if index < len(own)]
    return mixed[:number] if number else mixed
