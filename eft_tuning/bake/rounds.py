"""Rounds on the adapter's own answers: it writes, the composition scores (generalised knowledge distillation, Agarwal et al. 2023,
arXiv 2306.13649: a student corrects what it does wrong itself, not what its teacher would never do).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from eft_engine.config import EngineConfig, MemberConfig, Pair
from eft_engine.evaluation.teacher import Completed, TeacherRow
from eft_tuning.bake.prompts import Ask
from eft_tuning.bake.sampling import append, kept_rows, read_options, score_all
from eft_tuning.bake.settings import BakeSettings
from eft_tuning.bake.student import Student
from eft_tuning.stages import Reporter

AT_ONCE = 16
"""Answers that the student writes together."""


def own_rows(
    student: Student,
    asks: Sequence[Ask],
    settings: BakeSettings,
    *,
    trio: tuple[MemberConfig, Mapping[str, Pair], EngineConfig | None],
    ends: Sequence[int],
    path: Path,
    part: int,
    reporter: Reporter,
) -> list[TeacherRow]:
    """The student's answers to all prompts, with what the composition says at their tokens; `path` keeps them.

    Errors: as for `sampling.collect`.
    """
    from eft_engine.engine.engine import Engine

    base, pairs, config = trio
    rows = kept_rows(path)
    with Engine.load(base, pairs=pairs, config=config) as engine:
        vocabulary = engine.report().vocabulary
        width = vocabulary.shared_vocab_size + len(vocabulary.masked_ids)  # nothing is kept of tuned models alone
        padding = range(width, student.model.get_output_embeddings().weight.shape[0])
        masked = [*vocabulary.masked_ids, *padding]
        with reporter.stage(f"round {part}: the adapter answers", len(asks)) as advance:
            wanted = [index for index in range(len(asks)) if index not in rows]
            for start in range(0, len(wanted), AT_ONCE):
                chunk = wanted[start : start + AT_ONCE]
                texts = []
                prompts = [_student_ids(engine, asks[index], settings) for index in chunk]
                torch.manual_seed(settings.seed + 1_000_003 * part + chunk[0])
                written = write(student, prompts, settings, ends=ends, masked=masked)
                for index, prompt_ids, completion_ids in zip(chunk, prompts, written, strict=True):
                    read, _ = read_options(asks[index], settings)
                    texts.append(
                        Completed(asks[index].prompt, completion_ids, index, None, prompt_ids, prompt_options=read)
                    )
                found = score_all(engine, texts, settings)
                append(path, found)
                rows.update({row.index: row for row in found})
                advance(len(rows), "")
    return [rows[index] for index in sorted(rows)]


def _student_ids(engine: Any, ask: Ask, settings: BakeSettings) -> tuple[int, ...]:
    _, learnt = read_options(ask, settings)
    return tuple(engine.prompt_ids(ask.prompt, prompt_options=learnt))


@torch.no_grad()
def write(
    student: Student,
    prompts: Sequence[Sequence[int]],
    settings: BakeSettings,
    *,
    ends: Sequence[int],
    masked: Sequence[int],
) -> list[tuple[int, ...]]:
    """Answers of the student as tokens, the end included where it wrote one.

    Args:
        prompts: token ids, any lengths.
        ends: tokens behind which an answer is over.
        masked: tokens that it must not write: padding of the vocabulary.
    """
    from transformers import GenerationConfig

    model = student.model.eval()
    width = max(map(len, prompts))
    padding = ends[0] if ends else 0
    ids = torch.tensor([[padding] * (width - len(own)) + list(own) for own in prompts], device=student.device)
    mask = torch.tensor([[0] * (width - len(own)) + [1] * len(own) for own in prompts], device=student.device)
    sampled = settings.temperature > 0
    config = GenerationConfig(
        max_new_tokens=settings.max_tokens,
        do_sample=sampled,
        temperature=settings.temperature if sampled else None,
        top_k=0 if sampled else None,
        top_p=1.0 if sampled else None,
        eos_token_id=list(ends) or None,
        pad_token_id=padding,
        suppress_tokens=list(masked) or None,
        use_cache=True,
    )
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, width:].tolist()
    return [_until_end(own, set(ends)) for own in out]


def _until_end(token_ids: Sequence[int], ends: set[int]) -> tuple[int, ...]:
    """Tokens up to the first that ends an answer.

    >>> _until_end([5, 6, 2, 2], {2}), _until_end([5, 6], {2})
    ((5, 6, 2), (5, 6))
    """
    for place, token_id in enumerate(token_ids):
        if token_id in ends:
            return tuple(token_ids[: place + 1])
    return tuple(token_ids)
