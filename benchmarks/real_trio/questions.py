"""What the trio is asked: facts, problems of several steps, and passages."""

from __future__ import annotations

from benchmarks.real_trio import facts, passages, problems
from eft_engine.evaluation.questions import Question

NUM_PROBLEMS = 105
NUM_PASSAGES = 40


def by_heart() -> list[Question]:
    """Facts and problems in turn, so that every beginning of the list has both."""
    known = [Question(question=fact.question, answers=list(fact.answers), group="facts") for fact in facts.measured()]
    worked = [
        Question(question=problem.question, answers=[str(problem.answer)], group="problems")
        for problem in problems.problems(problems.MEASURED, NUM_PROBLEMS, seed=3)
    ]
    mixed: list[Question] = []
    for index in range(max(len(known), len(worked))):
        mixed += known[index : index + 1] + worked[index : index + 1]
    return mixed


def from_passages() -> list[Question]:
    """Questions with the passage that answers them."""
    made = passages.passages(NUM_PASSAGES)
    return [Question(question=each.prompt, answers=[each.answer], group="passages") for each in made]
