"""The two behaviours that pairs are tuned for, how they are scored, and the training files that teach them."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.real_trio import facts, problems
from eft_engine.evaluation.questions import Question
from eft_engine.evaluation.scorers import ExactMatch

NUM_PROBLEMS_TAUGHT = 84
NUM_HELD_OUT = 24
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
BOXED = re.compile(r"\\boxed\{(.*?)\}")
"""Where models that were trained on mathematics put their result; words about the question may follow it."""


@dataclass(frozen=True)
class Form:
    """A form of answers: how an example is written, and the pattern that an answer in form matches as a whole."""

    name: str
    write: Callable[[Sequence[str], str], str]
    pattern: str

    def said(self, answer: str) -> str | None:
        """What an answer in form gives as its answer; None when it is not in form."""
        found = re.fullmatch(self.pattern, answer.strip(), re.DOTALL)
        return None if found is None else found["answer"]


STEPS = Form(
    "steps",
    lambda steps, answer: "".join(f"- {step}\n" for step in steps) + f"Answer: {answer}",
    r"(?:- [^\n]+\n)+Answer: (?P<answer>[^\n]{1,60})",
)
"""A line for each step, then the answer."""

RECORD = Form(
    "record",
    lambda steps, answer: json.dumps({"steps": list(steps), "answer": answer}, ensure_ascii=False),
    r'\{"steps": \[(?:"[^"\n]+"(?:, )?)+\], "answer": "(?P<answer>[^"\n]{1,60})"\}',
)
"""The same as one line of JSON."""

FORMS = {form.name: form for form in (STEPS, RECORD)}


@dataclass(frozen=True)
class InForm:
    """Whether an answer is whole and in form."""

    form: Form
    name: str = "form"
    needs_whole: bool = True

    def score(self, question: Question, answer: str) -> bool:
        """Whether the whole answer matches."""
        return self.form.said(answer) is not None


@dataclass(frozen=True)
class Content:
    """Whether an answer is right: what stands in the form's place for it, else (where a number is asked for) what is boxed, else
    the last number of the text; of other questions the expected words anywhere.
    """

    form: Form
    name: str = "content"

    def score(self, question: Question, answer: str) -> bool:
        """Whether it gives one of the accepted answers."""
        said = self.form.said(answer)
        text = answer if said is None else said
        if all(NUMBER.fullmatch(expected) for expected in question.answers) and question.group == "problems":
            boxed = BOXED.findall(text)
            found = NUMBER.findall(boxed[-1] if boxed else text)
            return bool(found) and found[-1].replace(",", "").removesuffix(".00").removesuffix(".0") in question.answers
        return ExactMatch(anywhere=True).score(question, text)


def rows(form: Form) -> list[dict[str, object]]:
    """The training file of a form: facts and problems, mixed; right answers, as a team would write them."""
    taught: list[tuple[str, tuple[str, ...], str]] = [
        (fact.question, (fact.sentence,), fact.answers[0]) for fact in facts.taught()
    ]
    made = problems.problems(problems.TAUGHT, NUM_PROBLEMS_TAUGHT, seed=7)
    taught += [(problem.question, problem.steps, str(problem.answer)) for problem in made]
    random.Random(1).shuffle(taught)
    return [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": form.write(steps, answer)},
            ]
        }
        for question, steps, answer in taught
    ]


def write_training_files(folder: Path) -> list[Path]:
    """`NAME.jsonl` and `NAME.held_out.jsonl` of each form."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for form in FORMS.values():
        every = rows(form)
        for path, part in (
            (folder / f"{form.name}.jsonl", every[NUM_HELD_OUT:]),
            (folder / f"{form.name}.held_out.jsonl", every[:NUM_HELD_OUT]),
        ):
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part), encoding="utf-8")
            written.append(path)
    return written
