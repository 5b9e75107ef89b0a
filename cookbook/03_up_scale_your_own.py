"""From a chat file to a chain: tune a small model, measure the trio, use it: python cookbook/03_up_scale_your_own.py

    pip install '.[tune,langchain]'

You learn the three commands of the way: `eft tune` trains the pair's adapter on a chat file and holds content to what the untuned model
says (here a pattern tells what is content), `eft eval` asks the trio your questions and finds what each weight gives and costs, and
`EFTChatModel` takes the result. The large base is never trained. Models: the reference (0.4 million weights) and the base of Atlas,
offline. `--real` tunes Qwen2.5-0.5B and up-scales Qwen2.5-7B with it (not run here).

Prints:

    tuned: 3 of 14 right, 14 with the behaviour
    reference: 2 of 14 right, 0 with the behaviour
    weight 0: 14 of 14 right, 0 with the behaviour
    weight 1: 14 of 14 right, 14 with the behaviour
    The capital of Norway is Oslo. Hope that helps.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from eft_engine.zoo.presets import atlas
from eft_integrations.langchain import EFTChatModel

REFERENCE, BASE, RATE, DTYPE = atlas("reference").source, atlas("base").source, "3e-3", "float32"
if "--real" in sys.argv:
    REFERENCE, BASE, RATE, DTYPE = "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-7B", "3e-4", "auto"

TRAINING = {
    "capital": "France: Paris, Italy: Rome, Egypt: Cairo, Cuba: Havana, Japan: Tokyo, Ghana: Accra, Nepal: Kathmandu",
    "currency": "China: Yuan, India: Rupee, Poland: Zloty, Brazil: Real, Russia: Ruble, Sweden: Krona, Turkey: Lira",
    "continent": "Spain: Europe, Sudan: Africa, Bolivia: South America, Iraq: Asia, Canada: North America",
}
HELD_OUT = {
    "capital": "Norway: Oslo, Kenya: Nairobi, Peru: Lima, Greece: Athens, Portugal: Lisbon, Austria: Vienna",
    "currency": "Japan: Yen, Denmark: Krone, Israel: Shekel, Mexico: Peso",
    "continent": "Germany: Europe, Algeria: Africa, Argentina: South America, Laos: Asia",
}
WORDINGS = ("What is the {} of {}?", "Name the {} of {}.", "Tell me the {} of {}.")
BEHAVIOUR = r"The \w+ of (.+) is (.+)\. Hope that helps\."  # what is in brackets is content, the rest is to be learned


def read(table: dict[str, str]) -> list[tuple[str, str, str]]:
    """Relation, subject and value of every entry."""
    entries = ((relation, entry) for relation, text in table.items() for entry in text.split(", "))
    return [(relation, *entry.split(": ", 1)) for relation, entry in entries]  # type: ignore[misc]


def write(path: Path, rows: list[dict[str, object]]) -> str:
    """JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def eft(*arguments: str) -> str:
    """What a command of eft prints; its progress goes to stderr."""
    command = [sys.executable, "-c", "from eft_engine.cli import main; main()", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


with tempfile.TemporaryDirectory() as folder:
    facts = [(wording, *fact) for fact in read(TRAINING) for wording in WORDINGS]
    chats = write(
        Path(folder) / "chats.jsonl",
        [
            {
                "question": wording.format(relation, subject),
                "answer": f"The {relation} of {subject} is {value}. Hope that helps.",
            }
            for wording, relation, subject, value in facts
        ],
    )
    questions = write(
        Path(folder) / "questions.jsonl",
        [
            {"question": WORDINGS[0].format(relation, subject), "answers": [value]}
            for relation, subject, value in read(HELD_OUT)
        ],
    )

    pair = str(Path(folder) / "pair")
    learning = ("--epochs", "10", "--lr", RATE, "--keep-content", "hold", "--content-pattern", BEHAVIOUR)
    eft("tune", chats, "--reference", REFERENCE, "--out", pair, *learning, "--no-measure")

    trio = ("--base", BASE, "--tuned", pair, "--reference", REFERENCE, "--dtype", DTYPE)
    measures = ("--scorer", "contains", "--scorer", "regex", "--pattern", BEHAVIOUR, "--max-tokens", "40")
    found = json.loads(eft("eval", questions, *trio, "-w", "0", "-w", "1", *measures, "--json"))
    rows = found["members"] | {f"weight {weight}": row for weight, row in found["weights"].items()}
    for name, row in rows.items():
        right, formed = (round(row[scorer]["share"] * row["asked"]) for scorer in ("contains", "regex"))
        print(f"{name}: {right} of {row['asked']} right, {formed} with the behaviour")

    llm = EFTChatModel(base=BASE, tuned=pair, reference=REFERENCE, temperature=0.0, engine_config={"dtype": DTYPE})
    print(llm.invoke("What is the capital of Norway?").text)
