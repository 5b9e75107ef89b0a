"""Rows of a chat file beside one another: what is there twice, what is held out and trained on, answers that are all alike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from eft_tuning.chats import Chat, Preference
from eft_tuning.duplicates import key_of, near_pairs, normalised_words
from eft_tuning.findings import LINES_TOLD, Finding, Findings, at_lines

LONG_ANSWER_WORDS = 8
"""Answers of at least so many words that are the same in training and held-out rows are suspicious; "Yes." is not."""

ALIKE_SHARE = 0.5
"""From this share of one and the same answer on, the rows teach to say that."""

CUT_SHARE = 0.3
"""Answers without an end are cut ones while they are few; where they are many, it is the form."""

WHOLE_END = re.compile(r"[.!?…:;)\]}\"'”’»`*>|。！？\d]\s*$")
"""How texts end that nobody has cut."""


def prompt_text(row: Chat | Preference) -> str:
    """What is asked: all turns before the last answer but the system's."""
    messages = row.prompt
    return "\n".join(str(message["content"]) for message in messages if message["role"] != "system")


def same_pairs(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of a text's first place with each further one."""
    first: dict[str, int] = {}
    return [
        (first[key], place) for place, key in enumerate(map(key_of, texts)) if first.setdefault(key, place) != place
    ]


def find_alike(chats: Sequence[Chat], findings: Findings, *, preferences: bool) -> None:
    """Answers that are all alike or cut, and rows that are there twice; `preferences`: of each row there are two dialogues."""
    answers = Counter(key_of(chat.answer) for chat in chats)
    most, count = answers.most_common(1)[0] if answers else ("", 0)
    if len(chats) > 1 and count / len(chats) >= ALIKE_SHARE:
        lines = [chat.line for chat in chats if key_of(chat.answer) == most]
        example = next(chat.answer for chat in chats if chat.line == lines[0])
        findings.warnings.append(
            Finding(
                "alike",
                f"{count} of {len(chats)} answers are {_short(example)} ({at_lines(lines)}): this teaches to say that, whatever "
                "is asked",
                tuple(lines),
            )
        )
    cut = [chat.line for chat in chats if chat.answer.strip() and not WHOLE_END.search(chat.answer)]
    if cut and len(cut) <= CUT_SHARE * len(chats):
        findings.notes.append(
            Finding("cut", f"{at_lines(cut)}: the answer ends without punctuation; was it cut?", tuple(cut))
        )
    if preferences:
        return  # of each row there are two
    wholes = [f"{prompt_text(chat)}\n{chat.answer}" for chat in chats]
    _tell_repeated(
        chats, same_pairs(wholes), findings, "duplicate", "the same dialogue, which counts double in training"
    )
    exact = set(same_pairs(wholes))
    near = [
        pair for pair in near_pairs(wholes) if pair not in exact and key_of(wholes[pair[0]]) != key_of(wholes[pair[1]])
    ]
    _tell_repeated(chats, near, findings, "near_duplicate", "nearly the same dialogue")
    questions = [prompt_text(chat) for chat in chats]
    differing = [
        (one, other) for one, other in same_pairs(questions) if key_of(chats[one].answer) != key_of(chats[other].answer)
    ]
    _tell_repeated(
        chats, differing, findings, "same_question", "the same question with different answers", told=findings.notes
    )


def _tell_repeated(
    chats: Sequence[Chat],
    pairs: Sequence[tuple[int, int]],
    findings: Findings,
    kind: str,
    what: str,
    *,
    told: list[Finding] | None = None,
) -> None:
    if not pairs:
        return
    lines = sorted({chats[place].line for pair in pairs for place in pair})
    some = [f"{chats[one].line} = {chats[other].line}" for one, other in pairs[:LINES_TOLD]]
    further = f" and {len(pairs) - LINES_TOLD} more" if len(pairs) > LINES_TOLD else ""
    message = f"lines {', '.join(some)}{further}: {what}"
    (findings.warnings if told is None else told).append(Finding(kind, message, tuple(lines)))


def find_leakage(train: Sequence[Chat], held_out: Sequence[Chat], findings: Findings, place: str) -> None:
    """Held-out rows that training has seen measure memory."""
    asked, held = [prompt_text(chat) for chat in train], [prompt_text(chat) for chat in held_out]
    exact = _equal(train, held_out, lambda chat: key_of(prompt_text(chat)))
    if exact:
        findings.errors.append(
            Finding(
                "held_out_leak",
                f"{place}{_pairs_told(exact)}: the same question is held out and trained on, so what is held out measures memory; "
                "remove it on one side",
                tuple(sorted({line for line, _ in exact})),
            )
        )
    known = {line for line, _ in exact}
    near = [
        (held_out[two].line, train[one].line) for one, two in near_pairs(asked, held) if held_out[two].line not in known
    ]
    if near:
        findings.warnings.append(
            Finding(
                "held_out_near",
                f"{place}{_pairs_told(near)}: nearly the same question is held out and trained on",
                tuple(sorted({line for line, _ in near})),
            )
        )
    long = [chat for chat in held_out if len(normalised_words(chat.answer)) >= LONG_ANSWER_WORDS]
    answers = [pair for pair in _equal(train, long, lambda chat: key_of(chat.answer)) if pair[0] not in known]
    if answers:
        findings.warnings.append(
            Finding(
                "held_out_answer",
                f"{place}{_pairs_told(answers)}: a held-out answer is that of a training row, word for word",
                tuple(sorted({line for line, _ in answers})),
            )
        )


def _equal(train: Sequence[Chat], held_out: Sequence[Chat], key: Callable[[Chat], str]) -> list[tuple[int, int]]:
    """Held-out lines with the first training line of the same key."""
    first: dict[str, int] = {}
    for chat in train:
        first.setdefault(key(chat), chat.line)
    return list(dict.fromkeys((chat.line, first[key(chat)]) for chat in held_out if key(chat) in first))


def _pairs_told(pairs: Sequence[tuple[int, int]]) -> str:
    some = [f"line {held} (trained on: {trained})" for held, trained in pairs[:LINES_TOLD]]
    further = f" and {len(pairs) - LINES_TOLD} more" if len(pairs) > LINES_TOLD else ""
    return ", ".join(some) + further


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
