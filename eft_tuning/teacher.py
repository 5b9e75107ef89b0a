"""A composition as the teacher of TRL's distillation: from a file that `eft score --top-k 64 --out FILE` wrote, or live.

TRL 1.16 has no trainer that reads stored log-probabilities: its `DistillationTrainer` wants a teacher that is a model, and its
`ServerDistillationTrainer` asks a vLLM server about what the student just wrote. What it asks that server is one method,
`get_sequence_logprobs`, and both teachers here have it: `StoredTeacher` for the sequences of a file, `LiveTeacher` for any, out of
an engine in the same process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eft_engine.config import CompositionOptions, RewardWeights, TokenIds
from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.teacher import Completed, TeacherRow, read_rows, score_rows

if TYPE_CHECKING:
    from eft_engine.engine.engine import Engine

Answer = dict[str, list[Any]]
"""As TRL's client gives it: `logprobs` and `logprob_token_ids` [batch][completion][k], `actual_logprobs` and `actual_token_ids`
[batch][completion][1]; -inf and 0 where fewer than k are told."""


class StoredTeacher:
    """Answers about the sequences of a file, and no others."""

    def __init__(self, path: Path) -> None:
        """Raises InvalidOptionError for a file that is none of a teacher."""
        self._rows = {(*row.prompt_ids, *row.completion_ids): row for row in read_rows(path)}

    def get_sequence_logprobs(
        self,
        sequences: Sequence[Sequence[int]],
        prompt_lengths: Sequence[int],
        top_logprobs: int = 100,
        temperature: float = 1.0,
        **unused: Any,
    ) -> Answer:
        """What the composition said of the sequences' completions, as TRL's `VLLMClient.get_sequence_logprobs`.

        Raises:
            InvalidOptionError: a sequence is not in the file, or is cut elsewhere, or another temperature or more tokens are asked.
        """
        _check_temperature(temperature)
        found = []
        for sequence, prompt_len in zip(sequences, prompt_lengths, strict=True):
            row = self._rows.get(tuple(sequence))
            if row is None or len(row.prompt_ids) != prompt_len:
                raise InvalidOptionError(
                    f"the file has no sequence of {len(sequence)} tokens with this prompt of {prompt_len}: a stored teacher knows "
                    "what it was asked, not what a student writes; take LiveTeacher for that",
                    option="sequences",
                )
            most = max(map(len, row.logprobs))
            if top_logprobs > most:
                raise InvalidOptionError(
                    f"{top_logprobs} tokens a position are asked and the file has {most}; write it with --top-k {top_logprobs}",
                    option="top_logprobs",
                    value=top_logprobs,
                )
            found.append(row)
        return _answer(found, top_logprobs)


class LiveTeacher:
    """Answers about any sequence, out of an engine."""

    def __init__(
        self,
        engine: Engine,
        *,
        reward_weights: RewardWeights = None,
        composition: CompositionOptions | None = None,
    ) -> None:
        self._engine, self._weights, self._composition = engine, reward_weights, composition

    def get_sequence_logprobs(
        self,
        sequences: Sequence[Sequence[int]],
        prompt_lengths: Sequence[int],
        top_logprobs: int = 100,
        temperature: float = 1.0,
        **unused: Any,
    ) -> Answer:
        """What the composition says of the sequences' completions, as TRL's `VLLMClient.get_sequence_logprobs`.

        Raises:
            InvalidOptionError: another temperature is asked.
            RequestError, GenerationError: as from `Engine.score`.
        """
        _check_temperature(temperature)
        texts = [
            Completed(TokenIds(ids=tuple(sequence[:length])), tuple(sequence[length:]), index)
            for index, (sequence, length) in enumerate(zip(sequences, prompt_lengths, strict=True))
        ]
        rows = score_rows(
            self._engine,
            texts,
            top_k=top_logprobs,
            reward_weights=self._weights,
            composition=self._composition,
        )
        return _answer(rows, top_logprobs)


def _check_temperature(temperature: float) -> None:
    if temperature != 1.0:
        raise InvalidOptionError(
            f"a composition tells its log-probabilities at temperature 1, and {temperature} is asked; set temperature=1.0 in the "
            "trainer's configuration",
            option="temperature",
            value=temperature,
        )


def _answer(rows: Sequence[TeacherRow], top_k: int) -> Answer:
    def padded(values: Sequence[Any], filling: Any) -> list[Any]:
        return [*values[:top_k], *[filling] * (top_k - len(values))]

    return {
        "logprobs": [[padded(place, -math.inf) for place in row.logprobs] for row in rows],
        "logprob_token_ids": [[padded(place, 0) for place in row.logprob_token_ids] for row in rows],
        "actual_logprobs": [[[value] for value in row.actual_logprobs] for row in rows],
        "actual_token_ids": [[[token_id] for token_id in row.completion_ids] for row in rows],
    }


def distillation_trainer(teacher: StoredTeacher | LiveTeacher, **arguments: Any) -> Any:
    """TRL's `ServerDistillationTrainer` with this teacher in place of its client of a vLLM server.

    Args:
        teacher: whom it asks.
        arguments: those of `ServerDistillationTrainer` (`model`, `args`, `train_dataset`, `processing_class`, `peft_config`, ...);
            `args.teacher_model_server_url` must be set and is not used.

    Raises:
        InvalidOptionError: TRL is not installed.
    """
    try:
        from trl.experimental.server_distillation import ServerDistillationTrainer
        from trl.trainer.distillation_trainer import DistillationTrainer
    except ImportError as error:
        raise InvalidOptionError(
            f"TRL's distillation cannot be imported ({error}); run: pip install 'eft-engine[tune]'", option="trl"
        ) from error

    class CompositionDistillationTrainer(ServerDistillationTrainer):  # type: ignore[misc]
        """Its own constructor would call a server."""

        def __init__(self, args: Any, **further: Any) -> None:
            DistillationTrainer.__init__(self, args=args, teacher_model=None, **further)
            self.reverse_kl_top_1_mode = args.reverse_kl_top_1_mode
            self.loss_top_k = args.loss_top_k
            self.loss_add_tail = args.loss_add_tail
            self.teacher_client = teacher

    return CompositionDistillationTrainer(**arguments)
