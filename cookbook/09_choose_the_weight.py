"""The weight that is right for your own questions, by a sweep: python cookbook/09_choose_the_weight.py

You learn to measure content and form at several weights and to take the smallest weight that has the form without losing content. The same
as a command, with a report and plots: `eft eval questions.jsonl --scorer contains --scorer regex --pattern '...' --weight 0 --weight 0.5`.
Models: Atlas, offline. `--real` takes SmolLM2 (not run here). Look at the intervals: sixteen questions tell little apart, ask a hundred.

Prints:

    weight 0: right 87.5% [64.0%, 96.5%], in form 0.0% [0.0%, 19.4%]
    weight 0.1: right 87.5% [64.0%, 96.5%], in form 100.0% [80.6%, 100.0%]
    weight 0.25: right 87.5% [64.0%, 96.5%], in form 100.0% [80.6%, 100.0%]
    weight 0.5: right 87.5% [64.0%, 96.5%], in form 93.8% [71.7%, 98.9%]
    weight 1: right 87.5% [64.0%, 96.5%], in form 93.8% [71.7%, 98.9%]
    weight 2: right 87.5% [64.0%, 96.5%], in form 87.5% [64.0%, 96.5%]
    weight 4: right 87.5% [64.0%, 96.5%], in form 87.5% [64.0%, 96.5%]
    take weight 0.1
"""

from __future__ import annotations

import sys

from eft_engine import Engine, SamplingParams, TunedPair, load_preset
from eft_engine.evaluation.questions import Question
from eft_engine.evaluation.run import WeightResult, evaluate
from eft_engine.evaluation.scorers import ExactMatch, PatternMatch

WEIGHTS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
FORM = r"[^\n]+ [^\n]+\. Source: memory\."
if "--real" in sys.argv:
    family = "HuggingFaceTB/SmolLM2"
    pair = TunedPair(tuned=f"{family}-360M-Instruct", reference=f"{family}-360M")
    engine, FORM = Engine.load(f"{family}-1.7B", pairs={"chat": pair}), r"[^\n]{1,80}\."
else:
    engine = load_preset("atlas")

CAPITALS = (
    "Norway: Oslo, Kenya: Nairobi, Peru: Lima, Greece: Athens, Portugal: Lisbon, Austria: Vienna, Chile: Santiago, Japan: Tokyo, "
    "Mali: Bamako, Fiji: Suva, Oman: Muscat, Laos: Vientiane, Malta: Valletta, Togo: Lome, Ghana: Accra, Iraq: Baghdad"
)
questions = [
    Question(question=f"What is the capital of {country}?", answers=[capital])
    for country, capital in (entry.split(": ") for entry in CAPITALS.split(", "))
]
content, form = ExactMatch(anywhere=True, name="right"), PatternMatch(FORM, name="in form")


def show(result: WeightResult) -> None:
    """A line as soon as a weight has been measured."""
    print(f"weight {result.label}: right {result.share('right')}, in form {result.share('in form')}")


with engine:
    greedy = SamplingParams(temperature=0.0, max_tokens=40)
    results = evaluate(engine, questions, scorers=[content, form], weights=WEIGHTS, sampling=greedy, on_result=show)

alone = results[0].share("right").value
good = [r for r in results if r.share("in form").value >= 0.9 and r.share("right").value >= alone - 0.05]
print(
    f"take weight {good[0].label}" if good else "no weight has both: ask more questions, or tune the pair more gently"
)
