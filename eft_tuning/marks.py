"""Marks of dialogues, kept while they are made: an interrupted run does not read all rows again.

One line of JSON Lines a group of dialogues that were read together: rounding goes by what is read together, so marks are those of a
run that was never interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eft_engine.evaluation.growing import whole_lines
from eft_tuning.content import Kind, MarkedDialogue, TopLogprobs


@dataclass(frozen=True)
class MarkStore:
    """A file of marks, for one run: whoever opens it knows that the run is the same (`saving.open_run`)."""

    path: Path

    def read(self) -> dict[int, MarkedDialogue]:
        """Marks so far by dialogue; a group that was being written when the run ended is not among them."""
        groups = [json.loads(line) for line in whole_lines(self.path)]
        return {int(index): _dialogue(own) for group in groups for index, own in group.items()}

    def append(self, group: Mapping[int, MarkedDialogue]) -> None:
        """Write a group."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({index: _plain(own) for index, own in group.items()})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _plain(own: MarkedDialogue) -> dict[str, Any]:
    return {
        "token_ids": own.token_ids,
        "is_answer": own.is_answer,
        "kinds": [int(kind) for kind in own.kinds],
        "teacher": {place: [top.token_ids, top.logprobs] for place, top in own.teacher.items()},
    }


def _dialogue(plain: Mapping[str, Any]) -> MarkedDialogue:
    teacher = {int(place): TopLogprobs(tuple(ids), tuple(values)) for place, (ids, values) in plain["teacher"].items()}
    return MarkedDialogue(plain["token_ids"], plain["is_answer"], [Kind(kind) for kind in plain["kinds"]], teacher)
