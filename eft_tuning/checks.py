"""What is wrong with a chat file, told before hours are spent on it: errors that training must not begin with, and warnings."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import TypeAlias, TypeVar

from eft_engine.errors import ChatTemplateError, InvalidOptionError
from eft_engine.text.tokenizer import Tokenizer
from eft_tuning.chats import Chat, Message, Preference
from eft_tuning.duplicates import groups, near_pairs
from eft_tuning.findings import Finding, Findings, at_lines
from eft_tuning.rendering import Rendered, control_pattern, render
from eft_tuning.repeated import find_alike, find_leakage, prompt_text, same_pairs

Row = TypeVar("Row", bound=Chat | Preference)
Rows: TypeAlias = Sequence[Chat] | Sequence[Preference]

__all__ = ["Finding", "Findings", "at_lines", "check_chats", "split"]

ROLES = ("system", "developer", "user", "assistant", "tool")
FEW_ROWS = 20


def split(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Training rows and held-out rows, both in the order of the file; same seed, same split.

    Rows with the same prompt, or nearly the same, are on one side. At least one row is held out where `share` is above 0.

    Raises:
        InvalidOptionError: the share is not in 0..1, or leaves one side without rows.
    """
    if not 0.0 <= share < 1.0:
        raise InvalidOptionError(
            f"the held-out share must be at least 0 and below 1, got {share}", option="held_out_share", value=share
        )
    if share == 0.0:
        return list(rows), []
    texts: list[str] = [prompt_text(row) for row in rows]
    same = same_pairs(texts)
    together: list[list[int]] = groups(len(rows), [*same, *near_pairs(texts)])
    if max(map(len, together), default=0) > len(rows) / 2:  # one near the next, and so on: all of them variants of one
        together = groups(len(rows), same)
    if len(together) < 2:
        raise InvalidOptionError(
            "all rows ask the same question, so none can be held out; give a held-out file, or a held-out share of 0",
            option="held_out_share",
            value=share,
        )
    random.Random(seed).shuffle(together)
    wanted = max(1, round(share * len(rows)))
    held: set[int] = set()
    for group in together:  # a group that is too large is passed over, one that is smaller may follow
        if len(held) + len(group) <= wanted:
            held.update(group)
    if not held:
        held.update(sorted(together, key=lambda group: len(group))[0])
    train = [row for index, row in enumerate(rows) if index not in held]
    return train, [row for index, row in enumerate(rows) if index in held]


def check_chats(
    rows: Rows, tokenizer: Tokenizer, *, max_length: int, held_out_rows: Rows = (), held_out_apart: bool = False
) -> Findings:
    """Look at rows as they will be trained on.

    Args:
        rows: for training, from one file.
        tokenizer: the small model's, with its chat template.
        max_length: most tokens of a row.
        held_out_rows: rows for early stopping and for the measured behaviour.
        held_out_apart: they come from a file of their own, so their lines are told apart.
    """
    findings = Findings()
    chats, held_out = _as_chats(rows), _as_chats(held_out_rows)
    place = "held-out file, " if held_out_apart else ""
    _check_side(chats, tokenizer, max_length, findings, "", "")
    if held_out:
        _check_side(held_out, tokenizer, max_length, findings, place, "held_out_")
    _check_preferences(rows, findings)
    if not any(finding.kind in ("roles", "empty") for finding in findings.errors):
        find_alike(chats, findings, preferences=any(isinstance(row, Preference) for row in rows))
        find_leakage(chats, held_out, findings, place)
    if 0 < len(rows) < FEW_ROWS:
        findings.warnings.append(
            Finding("few", f"{len(rows)} training rows are few; a form takes some dozens at least, and varied ones")
        )
    return findings


def _as_chats(rows: Rows) -> list[Chat]:
    return [chat for row in rows for chat in (row.as_chats() if isinstance(row, Preference) else (row,))]


# ---- each row by itself -------------------------------------------------------------------------------------------------


def _check_side(
    chats: Sequence[Chat], tokenizer: Tokenizer, max_length: int, findings: Findings, place: str, side: str
) -> None:
    wrong: dict[tuple[str, str], list[int]] = defaultdict(list)  # kind, message -> lines
    doubtful: dict[tuple[str, str], list[int]] = defaultdict(list)
    controls = control_pattern(tokenizer)
    too_long: list[int] = []
    longest = 0
    for chat in chats:
        malformed = _wrong_turns(chat)
        if malformed is not None:
            wrong[malformed].append(chat.line)
            continue
        _find_control_tokens(chat, controls, wrong, doubtful)
        try:
            rendered = render(tokenizer, chat.messages, tools=chat.tools)
        except ChatTemplateError as error:
            wrong["template", str(error)].append(chat.line)
            continue
        lost = _lost_in(chat, rendered, tokenizer)
        if lost is not None:
            wrong[lost].append(chat.line)
        if not rendered.num_answer_tokens:
            wrong["empty", "the template writes no token of an answer"].append(chat.line)
        longest = max(longest, len(rendered))
        if len(rendered) > max_length:
            too_long.append(chat.line)
        elif not side:
            findings.num_tokens += len(rendered)
            findings.num_answer_tokens += rendered.num_answer_tokens
    findings.longest = max(findings.longest, longest)
    for found, told in ((wrong, findings.errors), (doubtful, findings.warnings)):
        for (kind, message), lines in found.items():
            lines = sorted(set(lines))
            told.append(Finding(kind, f"{place}{at_lines(lines)}: {message}", tuple(lines)))
    lines = sorted(set(too_long))
    (findings.held_out_too_long if side else findings.too_long).extend(lines)
    if lines:
        everything = len(lines) == len({chat.line for chat in chats})
        message = (
            f"{place}{at_lines(lines)}: more than {max_length} tokens (the longest has {longest}), left out; "
            f"raise --max-length, or shorten them"
        )
        (findings.errors if everything else findings.warnings).append(Finding("long", message, tuple(lines)))


def _wrong_turns(chat: Chat) -> tuple[str, str] | None:
    """What is wrong with the turns before any template sees them."""
    roles = [message["role"] for message in chat.messages]
    unknown = next((role for role in roles if role not in ROLES), None)
    if unknown is not None:
        return "roles", f"the role {unknown!r} is none of {', '.join(ROLES)}"
    if roles[-1] != "assistant":
        return "roles", f"the dialogue ends with a turn of {roles[-1]}; the last turn must be the answer (assistant)"
    if "user" not in roles:
        return "roles", "nobody asks: there is no turn of the user"
    if "system" in roles[1:] or "developer" in roles[1:]:
        return "roles", "a system turn stands behind other turns; it must be the first"
    for index, message in enumerate(chat.messages):
        if not str(message["content"]).strip() and not message.get("tool_calls") and message["role"] != "tool":
            return "empty", f"turn {index + 1} ({message['role']}) is empty"
    return None


def _find_control_tokens(
    chat: Chat,
    controls: re.Pattern[str],
    wrong: dict[tuple[str, str], list[int]],
    doubtful: dict[tuple[str, str], list[int]],
) -> None:
    for message in chat.messages:
        found = sorted(set(controls.findall(str(message["content"]))))
        if not found:
            continue
        names = ", ".join(map(repr, found))
        if message["role"] == "assistant":
            if all(re.fullmatch(r"</?(think|thought|thinking|reasoning)>", name) for name in found):
                continue  # a thought belongs to the answer of a model that thinks
            wrong[
                "control_tokens",
                f"an answer holds {names}, which this model's template writes itself: it would be learnt as the end or the "
                "beginning of a turn; remove it",
            ].append(chat.line)
        else:
            doubtful[
                "control_tokens",
                f"a turn of {message['role']} holds {names}, which the model reads as structure; in use the engine breaks such "
                "texts up",
            ].append(chat.line)


def _lost_in(chat: Chat, rendered: Rendered, tokenizer: Tokenizer) -> tuple[str, str] | None:
    """What the template leaves out in silence."""
    text = str(tokenizer.decode(rendered.token_ids, skip_special_tokens=False))
    first = chat.messages[0]
    if first["role"] in ("system", "developer") and _beginning(first) not in _squeezed(text):
        return "template", f"the chat template leaves out the turn of {first['role']}; put it into the first user turn"
    for message in chat.messages:
        for call in message.get("tool_calls") or ():
            name = str((call.get("function") or call).get("name"))
            if name not in text:
                return (
                    "tools",
                    f"the chat template does not write calls of functions ({name}); take a model that has tools",
                )
    for tool in chat.tools or ():
        name = str((tool.get("function") or tool).get("name"))
        if name not in text:
            return (
                "tools",
                f"the chat template does not tell the model of its tools ({name}); take a model that has tools",
            )
    return None


def _beginning(message: Message) -> str:
    return _squeezed(str(message["content"]))[:60]


def _squeezed(text: str) -> str:
    """Without spaces, which tokenizers may change at the borders of turns."""
    return "".join(text.split())


# ---- rows beside one another --------------------------------------------------------------------------------------------


def _check_preferences(rows: Rows, findings: Findings) -> None:
    same = [row.line for row in rows if isinstance(row, Preference) and row.chosen == row.rejected]
    if same:
        findings.errors.append(
            Finding("preference", f"{at_lines(same)}: chosen and rejected are the same", tuple(same))
        )
