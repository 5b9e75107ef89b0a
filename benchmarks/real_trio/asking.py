"""Settings by name, and the answers of each, kept in a file of its own that grows while they come."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eft_engine import Engine, EngineConfig, SamplingParams, TunedPair
from eft_engine.config import CompositionOptions, LlamaCppOptions
from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.questions import Question
from eft_engine.weights import Gate, Weight

MAX_TOKENS, MAX_FREE_TOKENS = 160, 400
"""Longest answer where weight 1 and more, or a tuned model, brings the form; and of those that reason at length."""
TOGETHER = 64
"""Questions whose answers are written to the file together."""

VARIANTS: dict[str, tuple[Callable[[float], Weight], dict[str, Any]]] = {
    "gate": (lambda weight: Gate(by="base_entropy", above=0.5, weight=weight), {}),
    "kl": (lambda weight: Gate(by="kl", above=0.5, weight=weight), {}),
    "amplified": (float, {"amplification": 1.5}),
    "nucleus": (float, {"conservative_top_p": 0.95}),
    "plausible": (float, {"min_plausibility": 0.05}),
    "bound": (float, {"tuned_plausibility": 0.01}),
    "bound10": (float, {"tuned_plausibility": 0.1}),
}
"""By name, behind a plus: what becomes of the weight, and options of the composition."""

NAME = re.compile(r"(?P<adapter>[\w-]+)@(?P<weight>[\d.]+)(?:\+(?P<variant>\w+))?")


@dataclass(frozen=True)
class Models:
    """The files of the trio, and the folder that has the adapters by name; those that begin with `direct` are on the base."""

    base: str
    reference: str
    adapters: Path
    threads: int = 2
    rows: int = 32

    def load(self, base: str, adapters: Sequence[str]) -> Engine:
        """An engine with a pair for each adapter."""
        pairs = {
            name: TunedPair(str(self.adapters / name), self.base if name.startswith("direct") else self.reference)
            for name in adapters
        }
        config = EngineConfig(
            max_num_seqs=self.rows, llama_cpp=LlamaCppOptions(n_threads=self.threads), self_check=False
        )
        return Engine.load(base, pairs=pairs, config=config)


@dataclass(frozen=True)
class Setting:
    """What is asked: `base`, `reference`, `ADAPTER.alone` (the tuned model by itself) or `ADAPTER@WEIGHT[+VARIANT]`."""

    label: str

    @property
    def parts(self) -> tuple[str | None, float, str | None]:
        """Adapter, weight and variant.

        >>> Setting("hold-0@2+bound").parts, Setting("hold-0.alone").parts, Setting("base").parts
        (('hold-0', 2.0, 'bound'), ('hold-0', 1.0, None), (None, 0.0, None))

        Raises:
            InvalidOptionError: it is none of these.
        """
        if self.label in ("base", "reference"):
            return None, 0.0, None
        if self.label.endswith(".alone"):
            return self.label.removesuffix(".alone"), 1.0, None
        found = NAME.fullmatch(self.label)
        if found is None or (found["variant"] and found["variant"] not in VARIANTS):
            raise InvalidOptionError(
                f"no setting: {self.label!r}; write base, reference, ADAPTER.alone or ADAPTER@WEIGHT[+{'|'.join(VARIANTS)}]",
                option="setting",
                value=self.label,
            )
        return found["adapter"], float(found["weight"]), found["variant"]

    @property
    def is_small(self) -> bool:
        """Whether only the small network runs."""
        adapter = self.parts[0] or ""
        return self.label == "reference" or (self.label.endswith(".alone") and not adapter.startswith("direct"))

    @property
    def max_tokens(self) -> int:
        """Longest answer."""
        adapter, weight, _ = self.parts
        return MAX_TOKENS if adapter is not None and weight >= 1.0 else MAX_FREE_TOKENS

    def arguments(self, pairs: Sequence[str]) -> dict[str, Any]:
        """Of `Engine.generate`."""
        adapter, weight, variant = self.parts
        weigh, options = VARIANTS[variant] if variant else (float, {})
        weights: dict[str, Weight] = {name: weigh(weight) if name == adapter else 0.0 for name in pairs}
        return {"reward_weights": weights, "composition": CompositionOptions(**options)}


@dataclass(frozen=True)
class Answer:
    """One answer, as its file has it."""

    question: str
    text: str
    tokens: int
    finish_reason: str
    drafted: int
    accepted: int
    cpu_s: float
    """Its share of the processor time of those that were asked with it."""


def read(path: Path) -> dict[str, Answer]:
    """The answers of a file by question; none where it is missing. A torn last line is left out."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return {answer.question: answer for answer in (Answer(**json.loads(line)) for line in lines)}


def missing(path: Path, questions: Sequence[Question]) -> list[Question]:
    """Questions that a file does not answer yet."""
    known = read(path)
    return [question for question in questions if question.text() not in known]


@contextmanager
def _engine_for(models: Models, settings: Sequence[Setting]) -> Iterator[tuple[Engine, list[str]]]:
    adapters = sorted({name for setting in settings if (name := setting.parts[0])})
    with models.load(models.reference if settings[0].is_small else models.base, adapters) as engine:
        yield engine, adapters


def ask(
    models: Models,
    settings: Sequence[Setting],
    questions: Sequence[Question],
    folder: Path,
    *,
    set_name: str,
    log: Callable[[str], None],
) -> None:
    """Ask what is not in the files yet: `FOLDER/SET/LABEL.jsonl`."""
    (folder / set_name).mkdir(parents=True, exist_ok=True)
    for small in (True, False):
        mine = [setting for setting in settings if setting.is_small is small]
        mine = [own for own in mine if missing(folder / set_name / f"{own.label}.jsonl", questions)]
        if not mine:
            continue
        with _engine_for(models, mine) as (engine, adapters):
            for setting in mine:
                _ask_one(engine, setting, adapters, questions, folder / set_name / f"{setting.label}.jsonl", log)


def _ask_one(
    engine: Engine,
    setting: Setting,
    adapters: Sequence[str],
    questions: Sequence[Question],
    path: Path,
    log: Callable[[str], None],
) -> None:
    known = read(path)
    text = "".join(json.dumps(vars(answer), ensure_ascii=False) + "\n" for answer in known.values())
    path.write_text(text, encoding="utf-8")  # without a torn line
    wanted = missing(path, questions)
    for start in range(0, len(wanted), TOGETHER):
        asked = wanted[start : start + TOGETHER]
        started = time.process_time()
        prompts: Any = [question.as_prompt() for question in asked]
        sampling = SamplingParams(temperature=0.0, max_tokens=setting.max_tokens)
        outputs = engine.generate(prompts, sampling=sampling, **setting.arguments(adapters))
        seconds = (time.process_time() - started) / len(asked)
        with path.open("a", encoding="utf-8") as file:
            for question, output in zip(asked, outputs, strict=True):
                line = Answer(
                    question.text(),
                    output.text,
                    len(output.token_ids),
                    str(output.finish_reason),
                    output.metrics.num_drafted,
                    output.metrics.num_accepted,
                    seconds,
                )
                file.write(json.dumps(vars(line), ensure_ascii=False) + "\n")
        log(
            f"{path.parent.name}, {setting.label}: {len(questions) - len(wanted) + start + len(asked)} of {len(questions)}"
        )
