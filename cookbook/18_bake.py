"""Bake a composition into one adapter of the base: python cookbook/18_bake.py

You learn the way out of three models: the base learns, by one LoRA, to answer as the composition does, and is then served alone, at its own
speed, by anything that takes adapters (`eft bake` is the same as a command, docs/baking.md). What counts is measured on questions that were held
out. Models: Atlas, offline. `--real` takes Qwen2.5 (not run here).

Prints:

    base: 32 of 32 right, 0 say where the answer comes from
    composition: 32 of 32 right, 32 say where the answer comes from
    baked: 32 of 32 right, 32 say where the answer comes from
    gain kept: 100%
    The capital of Peru is Lima. Source: memory.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from eft_engine import Engine, MemberConfig, SamplingParams, TunedPair
from eft_engine.config import Pair
from eft_engine.evaluation.questions import load_questions
from eft_engine.evaluation.scorers import ExactMatch, PatternMatch
from eft_engine.zoo.atlas import ASSISTANT_FORM, QUESTION_FILES
from eft_engine.zoo.presets import find_preset
from eft_tuning.bake.prompts import Ask
from eft_tuning.bake.run import bake
from eft_tuning.bake.settings import BakeSettings
from eft_tuning.stages import Reporter

QUESTION = [{"role": "user", "content": "What is the capital of Peru?"}]
preset = find_preset("atlas")
base: MemberConfig = preset.base()
pairs: dict[str, Pair] = preset.pairs()
settings = BakeSettings(reward_weights=1.0, max_tokens=24, epochs=4, learning_rate=2e-3, num_speed=0)
if "--real" in sys.argv:
    base = MemberConfig(source="Qwen/Qwen2.5-7B")
    pairs = {"chat": TunedPair("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-0.5B")}
    settings = BakeSettings(reward_weights=1.0, max_tokens=256)

asks = [Ask(question) for question in load_questions(QUESTION_FILES["facts"])]
scorers = [ExactMatch(anywhere=True, name="right"), PatternMatch(ASSISTANT_FORM, name="form")]
with tempfile.TemporaryDirectory() as folder:
    report = bake(
        base,
        pairs,
        asks[:64],
        asks[-32:],
        out=Path(folder),
        settings=settings,
        scorers=scorers,
        reporter=Reporter(quiet=True),
    )
    for name, answers in (("base", report.base), ("composition", report.composed), ("baked", report.baked)):
        assert answers is not None, "prompts were held out"
        right, form = answers.share("right"), answers.share("form")
        print(f"{name}: {right.hits} of {right.total} right, {form.hits} say where the answer comes from")
    print("gain kept:", f"{report.gain_kept('form').value:.0%}")
    with Engine.load(MemberConfig(source=base.source, adapter=folder)) as engine:  # one model, no pair
        print(engine.generate(QUESTION, sampling=SamplingParams(temperature=0.0, max_tokens=24)).text)
