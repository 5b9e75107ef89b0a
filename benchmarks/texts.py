"""Conversations that benchmarks run on."""

from __future__ import annotations

import json

ARTICLE = (
    "The lighthouse of Orrin Head was built in 1847 from grey granite that was carried by barge from the quarries of Tarn Bay. "
    "Its lamp burned whale oil until 1871, then paraffin, and since 1934 it has been electric. The tower is 31 metres tall, has "
    "142 steps, and its light can be seen from a distance of 18 nautical miles. Three keepers lived on the rock with their "
    "families until the light was automated in 1988. Every spring the keepers whitewashed the tower, repaired the landing stage "
    "and planted potatoes in the walled garden behind the store house. In the storm of January 1903 the sea broke two panes of the "
    "lantern, and the youngest keeper, Ewan Strand, held a blanket against the opening for nine hours so that the lamp would stay "
    "lit. The lighthouse board gave him a silver watch, which is shown today in the museum of the harbour town."
)

CITIES = ("Lisbon", "Tallinn", "Kyoto", "Quito", "Bergen", "Tunis", "Perth", "Lima")


def chat(index: int) -> list[list[dict[str, str]]]:
    """One turn: a short question."""
    subjects = ("rain", "bread", "a compass", "sleep", "glass", "tides", "rust", "echoes")
    words = ("Why is there", "What should a child know about", "Give a short explanation of", "What is strange about")
    question = f"{words[index // len(subjects) % len(words)]} {subjects[index % len(subjects)]}?"
    return [[{"role": "user", "content": question}]]


def rag(index: int) -> list[list[dict[str, str]]]:
    """One turn: a document of about 300 tokens (its own for every request) and a question whose answer quotes it."""
    document = ARTICLE.replace("Orrin Head", f"{CITIES[index % len(CITIES)]} Head").replace("1847", str(1800 + index))
    question = "Quote the sentences of the text about the lighthouse's lamp and its tower word for word."
    return [[{"role": "user", "content": f"Text:\n{document}\n\n{question}"}]]


def agent(index: int) -> list[list[dict[str, str]]]:
    """Three turns of one conversation, each with the whole history before it and the result of a tool at its end."""
    city = CITIES[index % len(CITIES)]
    history = [
        {"role": "system", "content": "You plan trips. Call weather(city, day) and report what it returned."},
        {"role": "user", "content": f"Trip {index + 1}: which of the next days is best for a walk in {city}?"},
    ]
    turns = []
    for day in range(1, 4):
        report = {
            "city": city,
            "day": day,
            "hours": [
                {"hour": hour, "temperature": 8 + (hour * day + index) % 13, "rain": hour * day % 3 == 0}
                for hour in (9, 12, 15)
            ],
        }
        history = [
            *history,
            {"role": "assistant", "content": f'weather(city="{city}", day={day})'},
            {"role": "user", "content": f"Result of the tool: {json.dumps(report)}"},
        ]
        turns.append(history)
    return turns


WORKLOADS = {"chat": chat, "rag": rag, "agent": agent}
"""By name: request number -> turns, each a list of messages."""
