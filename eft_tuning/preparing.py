"""From files to rows of tokens: read, split, checked, told, rendered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eft_engine.errors import InvalidOptionError
from eft_tuning.batches import PreferenceRow, Row
from eft_tuning.chats import Chat, Preference, load_chats
from eft_tuning.checks import Findings, check_chats, split
from eft_tuning.content import HoldOptions, mark_by_pattern, mark_chats, told_in_words
from eft_tuning.marks import MarkStore
from eft_tuning.rendering import prompt_token_ids, render
from eft_tuning.settings import TuningSettings

Tell = Callable[[str], None]
"""Takes one line for people."""


@dataclass(frozen=True)
class Data:
    """What is trained on and what is held out: rows of one kind, those that are too long left out."""

    train: list[Any]
    """`Chat`, or `Preference`."""
    held_out: list[Any]
    findings: Findings

    @property
    def is_preferences(self) -> bool:
        """Pairs of answers for DPO, rather than dialogues for SFT."""
        return isinstance(self.train[0], Preference)

    def counts(self) -> dict[str, int]:
        """Numbers for `tuning.json`."""
        return {
            "rows": len(self.train),
            "held_out_rows": len(self.held_out),
            "tokens": self.findings.num_tokens,
            "answer_tokens": self.findings.num_answer_tokens,
            "longest_row": self.findings.longest,
            "left_out_rows": len(self.findings.too_long) + len(self.findings.held_out_too_long),
        }


def read_data(
    chats: Path,
    tokenizer: Any,
    *,
    held_out: Path | None,
    held_out_share: float,
    max_length: int,
    seed: int,
    tell: Tell,
) -> Data:
    """Read, split and check the rows, and tell what was found.

    Args:
        chats: the file.
        tokenizer: the small model's.
        held_out: a file of held-out rows; None: a share of the rows.
        held_out_share: of the rows, where there is no such file; 0: none is held out.
        max_length: most tokens of a row; longer ones are left out, and told.
        seed: of the split.
        tell: called with each finding.

    Raises:
        InvalidOptionError: the file cannot be read, or cannot be trained on; all reasons with their lines.
    """
    rows: Any = load_chats(chats)
    rest: Any = []
    if held_out is not None:
        rest = load_chats(held_out)
        if isinstance(rest[0], Preference) is not isinstance(rows[0], Preference):
            raise InvalidOptionError(
                f"{chats} and {held_out} must both hold dialogues, or both preferences",
                option="held_out",
                value=str(held_out),
            )
    else:
        rows, rest = split(rows, held_out_share, seed)
    findings = check_chats(
        rows, tokenizer, max_length=max_length, held_out_rows=rest, held_out_apart=held_out is not None
    )
    for kind, found in (("warning", findings.warnings), ("note", findings.notes)):
        for finding in found:
            tell(f"{kind}: {finding}")
    findings.raise_errors(chats)
    too_long, held_out_too_long = set(findings.too_long), set(findings.held_out_too_long)
    return Data(
        [row for row in rows if row.line not in too_long],
        [row for row in rest if row.line not in held_out_too_long],
        findings,
    )


def answer_rows(chats: Sequence[Chat], tokenizer: Any) -> list[Row]:
    """Dialogues as rows of tokens, answers marked."""
    rendered = [render(tokenizer, chat.messages, tools=chat.tools, line=chat.line) for chat in chats]
    return [Row(row.token_ids, row.is_answer) for row in rendered]


def held_rows(
    data: Data,
    model: Any,
    tokenizer: Any,
    settings: TuningSettings,
    *,
    max_length: int,
    work: Path,
    tell: Tell,
    on_progress: Callable[[int, int], None],
) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows whose content is held to the model before tuning; read twice by that model to find it. `work` is
    the folder of a run that is not over, where what was found is kept.

    Errors: as of `content.mark_chats`.
    """
    sides: list[list[Row]] = []
    for name, chats in (("training", data.train), ("held-out", data.held_out)):
        if settings.content_pattern is not None:
            rendered = [render(tokenizer, chat.messages, tools=chat.tools, line=chat.line) for chat in chats]
            marked = [mark_by_pattern(row, tokenizer, settings.content_pattern) for row in rendered]
        else:
            marked = mark_chats(
                model,
                tokenizer,
                chats,
                examples=data.train,
                options=HoldOptions(seed=settings.seed),
                max_length=max_length,
                store=MarkStore(work / f"{name}.marks.jsonl"),
                on_progress=on_progress,
            )
        if chats:
            tell(f"{name} rows: {told_in_words(marked)}")
        sides.append(
            [Row(row.token_ids, row.is_answer, [int(kind) for kind in row.kinds], row.teacher) for row in marked]
        )
    return sides[0], sides[1]


def preference_rows(preferences: Sequence[Preference], tokenizer: Any) -> list[PreferenceRow]:
    """Pairs of answers behind their prompt, each through the end of its last turn."""
    rows = []
    for preference in preferences:
        prompt = prompt_token_ids(tokenizer, preference.prompt, tools=preference.tools, line=preference.line)
        better, worse = (
            _behind(prompt, render(tokenizer, chat.messages, tools=chat.tools, line=chat.line, last_only=True))
            for chat in preference.as_chats()
        )
        rows.append(PreferenceRow(prompt, better, worse))
    return rows


def _behind(prompt: list[int], rendered: Any) -> list[int]:
    end = max(place for place, own in enumerate(rendered.is_answer) if own) + 1
    assert rendered.token_ids[: len(prompt)] == prompt, "an answer begins where the template asks for it"
    return list(rendered.token_ids[len(prompt) : end])
