"""What a composition says at every position of a text: the most probable tokens with their log-probabilities, for distillation.

A file of them is JSON Lines. The fields of a line are those with which TRL's distillation from a server works
(`trl.generation.vllm_client.VLLMClient.get_sequence_logprobs`), per sequence, and besides whole sequences as trainers read them:

    input_ids            prompt and completion, [prompt + completion]
    completion_mask      1 for tokens of the completion, [prompt + completion]
    logprobs             natural logs of the k most probable next tokens, the highest first, [completion, k]
    logprob_token_ids    their ids, [completion, k]
    actual_logprobs      of the token that the completion has there, [completion, 1]
    actual_token_ids     that token, [completion, 1]
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eft_engine.config import CompositionOptions, Prompt, PromptOptions, RewardWeights, TokenIds
from eft_engine.errors import InvalidOptionError
from eft_engine.outputs import ScoreOutput

if TYPE_CHECKING:
    from eft_engine.engine.engine import Engine

DIGITS = 5
"""Behind the point, of log-probabilities in a file."""
TOGETHER = 32
"""Texts that are scored together; their most probable tokens are held as objects until then."""
LOWEST = -1e4
"""Stands in a file for the logarithm of 0, which JSON has no number for."""


@dataclass(frozen=True)
class TeacherRow:
    """A completion behind its prompt, and what the composition says at each of its tokens. Lists as in the file (above)."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: list[list[float]]
    logprob_token_ids: list[list[int]]
    actual_logprobs: list[float]
    """[completion]"""
    finish_reason: str | None = None
    """Why the composition stopped; None: it did not write the completion."""
    index: int = 0
    """Which line of the prompt file, from 0, times the samples of each."""

    def as_json(self) -> dict[str, Any]:
        """The line of a file."""
        return {
            "index": self.index,
            "finish_reason": self.finish_reason,
            "input_ids": [*self.prompt_ids, *self.completion_ids],
            "completion_mask": [0] * len(self.prompt_ids) + [1] * len(self.completion_ids),
            "logprobs": [[_finite(value) for value in row] for row in self.logprobs],
            "logprob_token_ids": self.logprob_token_ids,
            "actual_logprobs": [[_finite(value)] for value in self.actual_logprobs],
            "actual_token_ids": [[token_id] for token_id in self.completion_ids],
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> TeacherRow:
        """The row of a line.

        Raises:
            KeyError, TypeError, ValueError: it is not one.
        """
        ids, prompt_len = fields["input_ids"], fields["completion_mask"].index(1)
        row = cls(
            tuple(ids[:prompt_len]),
            tuple(ids[prompt_len:]),
            fields["logprobs"],
            fields["logprob_token_ids"],
            [value for (value,) in fields["actual_logprobs"]],
            fields.get("finish_reason"),
            fields.get("index", 0),
        )
        lengths = {len(row.completion_ids), len(row.logprobs), len(row.logprob_token_ids), len(row.actual_logprobs)}
        if len(lengths) != 1 or len(ids) != len(fields["completion_mask"]):
            raise ValueError("its lists differ in length")
        return row


def _finite(value: float) -> float:
    return round(value, DIGITS) if value > LOWEST else LOWEST


def teacher_row(prompt_ids: Sequence[int], scores: ScoreOutput, *, finish_reason: str | None, index: int) -> TeacherRow:
    """The row of a scored completion. Tokens that the composition rules out are none of the most probable ones."""
    tops = [[top for top in token.top if top.logprob > -math.inf] for token in scores.tokens]
    return TeacherRow(
        tuple(prompt_ids),
        tuple(token.token_id for token in scores.tokens),
        [[top.logprob for top in row] for row in tops],
        [[top.token_id for top in row] for row in tops],
        [token.composed for token in scores.tokens],
        finish_reason,
        index,
    )


@dataclass(frozen=True)
class Completed:
    """A text to ask the composition about. `student_ids`: the prompt as who learns it reads it; None: as the base does here."""

    prompt: Prompt
    completion_ids: tuple[int, ...]
    index: int
    finish_reason: str | None = None
    student_ids: tuple[int, ...] | None = None
    prompt_options: PromptOptions | None = None


def score_rows(
    engine: Engine,
    texts: Sequence[Completed],
    *,
    top_k: int,
    reward_weights: RewardWeights = None,
    composition: CompositionOptions | None = None,
    on_row: Callable[[TeacherRow], None] | None = None,
) -> list[TeacherRow]:
    """What the composition says at each token of the texts, in their order.

    Args:
        engine: the trio.
        texts: prompts and completions.
        top_k: so many tokens at each position.
        reward_weights, composition: as for `Engine.generate`.
        on_row: told of each row, in order.

    Raises:
        RequestError, GenerationError: as from `Engine.score`.
    """
    rows: list[TeacherRow] = []
    for start in range(0, len(texts), TOGETHER):
        batch = texts[start : start + TOGETHER]
        prompts: Any = [text.prompt for text in batch]  # raw and chat prompts may be mixed
        options = [text.prompt_options or PromptOptions() for text in batch]
        scored: list[ScoreOutput] = engine.score(
            prompts,
            [TokenIds(ids=text.completion_ids) for text in batch],
            reward_weights=[reward_weights] * len(batch),
            composition=composition,
            prompt_options=options,
            num_top=top_k,
            every_member=False,
        )
        for text, read, scores in zip(batch, options, scored, strict=True):
            prompt_ids = text.student_ids or engine.prompt_ids(text.prompt, prompt_options=read)
            rows.append(teacher_row(prompt_ids, scores, finish_reason=text.finish_reason, index=text.index))
            if on_row is not None:
                on_row(rows[-1])
    return rows


def read_rows(path: Path) -> Iterator[TeacherRow]:
    """The rows of a file, one after the other.

    Raises:
        InvalidOptionError: there is no such file, or a line is not a row.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    yield TeacherRow.from_json(json.loads(line))
                except (KeyError, TypeError, ValueError) as error:
                    raise InvalidOptionError(
                        f"{path}, line {number} holds no log-probabilities of a teacher ({error!r}); `eft score --top-k 64 "
                        "--out FILE` writes such lines",
                        option="rows",
                        value=str(path),
                    ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidOptionError(f"cannot read {path}: {error}", option="rows", value=str(path)) from None
