"""Answers of the model itself in place of those of the file: nothing can be learnt from them but the form.

A teacher, best the small model that is tuned, is asked each row's question behind other rows that show the form, and what it
answers is kept where it has the form. Self-distillation: Yang et al. 2024, arXiv 2402.13669.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from eft_engine.config import SamplingParams
from eft_engine.errors import ContextOverflowError, InvalidOptionError
from eft_engine.evaluation.growing import whole_lines
from eft_engine.evaluation.questions import Question
from eft_engine.evaluation.scorers import Scorer
from eft_engine.options import Options
from eft_engine.outputs import RequestOutput
from eft_tuning.chats import Chat
from eft_tuning.checks import at_lines
from eft_tuning.shots import pick_shots, with_shots
from eft_tuning.stages import OnProgress

if TYPE_CHECKING:
    from eft_engine.engine.engine import Engine

LONGER_THAN_LONGEST = 1.25
"""Tokens asked for, in terms of the longest answer of the file: what is cut even so is too long."""


class RewriteOptions(Options):
    """How answers are asked for."""

    num_shots: int = Field(default=3, ge=1, le=16, description="rows in front of each question that show the form")
    seed: int = Field(default=0, ge=0, description="of the rows that are chosen")


@dataclass(frozen=True)
class Rewritten:
    """What came of it.

    `chats` have the teacher's answers; `dropped` has by reason the lines whose answers did not have the form; of `skipped` lines
    nobody was asked, since they have more than one answer, or call tools.
    """

    chats: list[Chat]
    dropped: dict[str, list[int]] = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)

    @property
    def num_dropped(self) -> int:
        """Rows that are lost."""
        return sum(map(len, self.dropped.values()))

    def in_words(self) -> list[str]:
        """One line by outcome."""
        told = [f"{len(self.chats)} answers rewritten, {self.num_dropped} dropped"]
        told += [f"dropped, {reason}: {at_lines(lines)}" for reason, lines in self.dropped.items()]
        if self.skipped:
            told.append(f"left out, more than one answer or calls of tools: {at_lines(self.skipped)}")
        return told


def rewrite(
    engine: Engine,
    chats: Sequence[Chat],
    *,
    teacher: str,
    cache: Path,
    form: Scorer | None = None,
    options: RewriteOptions | None = None,
    on_progress: OnProgress | None = None,
) -> Rewritten:
    """Ask the teacher for an answer to every row, greedily, and keep those that have the form.

    Args:
        engine: the teacher, alone (`Engine.load(source)`); with pairs it is the composition that is asked.
        chats: training rows, never held-out ones.
        teacher: who that is, in a word: answers of another one in the cache are not taken.
        cache: JSON Lines of the answers so far, by what was asked; a stopped run goes on there.
        form: the measure of the form; None: an answer must be whole, not empty and no longer than the longest of the file.
        options: how the form is shown.
        on_progress: called with the rows that are done and the number of all.

    Raises:
        InvalidOptionError: the cache cannot be read, or no answer has the form.
        RequestError, GenerationError: as of `Engine.generate`.
    """
    from eft_engine.evaluation.asking import ask

    options = options or RewriteOptions()
    asked = [chat for chat in chats if _has_one_answer(chat)]
    skipped = [chat.line for chat in chats if not _has_one_answer(chat)]
    longest = max((len(engine.token_ids(chat.answer)) for chat in asked), default=0)
    sampling = SamplingParams(temperature=0.0, max_tokens=max(1, int(longest * LONGER_THAN_LONGEST) + 1))
    prompts = [_prompt(engine, asked, chat, options, room=sampling.max_tokens) for chat in asked]
    keys = [_key(teacher, prompt, sampling) for prompt in prompts]
    known = _read(cache)
    missing = [place for place, key in enumerate(keys) if key not in known]
    done = len(asked) - len(missing)
    if on_progress is not None:
        on_progress(done, len(asked))
    if missing:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with cache.open("a", encoding="utf-8") as file:
            for place, output, _ in ask(
                engine,
                [prompts[place] for place in missing],
                sampling=sampling,
                reward_weights=None,
                composition=None,
            ):
                answer = _answer(output)
                known[keys[missing[place]]] = answer
                file.write(json.dumps({"key": keys[missing[place]], **answer}, ensure_ascii=False) + "\n")
                file.flush()
                done += 1
                if on_progress is not None:
                    on_progress(done, len(asked))
            os.fsync(file.fileno())
    kept: list[Chat] = []
    dropped: dict[str, list[int]] = {}
    for chat, key in zip(asked, keys, strict=True):
        reason = _reason_against(known[key], chat, form, longest)
        if reason is None:
            turn = {**chat.messages[-1], "content": known[key]["text"]}
            kept.append(replace(chat, messages=[*chat.prompt, turn]))
        else:
            dropped.setdefault(reason, []).append(chat.line)
    if asked and not kept:
        first = known[keys[0]]["text"]
        raise InvalidOptionError(
            f"none of {len(asked)} answers has the form (the first is {first[:200]!r}), so the model cannot write it from "
            f"{options.num_shots} examples; show more of them, take a teacher that can (--teacher), or use --keep-content hold",
            option="keep_content",
            value="rewrite",
        )
    return Rewritten(kept, dropped, skipped)


def _has_one_answer(chat: Chat) -> bool:
    """Whether only the last turn is an answer, and nothing is called: then it can be asked for anew."""
    roles = [message["role"] for message in chat.messages]
    return roles.count("assistant") == 1 and "tool" not in roles and not chat.messages[-1].get("tool_calls")


def _prompt(
    engine: Engine, chats: Sequence[Chat], chat: Chat, options: RewriteOptions, *, room: int
) -> list[dict[str, Any]]:
    """The question behind as many shots as the context has room for."""
    shots = pick_shots(chats, count=options.num_shots, seed=options.seed, without=chat)
    for start in range(len(shots) + 1):
        prompt = with_shots(chat.prompt, shots[start:])
        length = len(engine.prompt_ids(prompt))
        if length + room <= engine.context_len:
            return prompt
    raise ContextOverflowError(
        f"line {chat.line}: the question has {length} tokens and its answer may have {room}, and the context of the teacher has "
        f"{engine.context_len}; leave the row out",
        prompt_len=length,
        context_len=engine.context_len,
    )


def _key(teacher: str, prompt: Sequence[Mapping[str, Any]], sampling: SamplingParams) -> str:
    """What an answer depends on: who is asked, what, and how long an answer may be."""
    asked = [teacher, list(prompt), sampling.max_tokens]
    return hashlib.sha256(json.dumps(asked, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:24]


def _answer(output: RequestOutput) -> dict[str, Any]:
    return {
        "text": output.text.strip(),
        "is_whole": output.finish_reason == "stop",
        "num_tokens": len(output.token_ids),
    }


def _read(cache: Path) -> dict[str, dict[str, Any]]:
    """Answers so far; a last line that a stopped run has not finished is cut off."""
    try:
        lines = [json.loads(line) for line in whole_lines(cache) if line]
        return {line["key"]: {name: line[name] for name in ("text", "is_whole", "num_tokens")} for line in lines}
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidOptionError(
            f"{cache} does not hold answers of a teacher ({error}); remove it, and they are asked for anew",
            option="cache",
            value=str(cache),
        ) from None


def _reason_against(answer: Mapping[str, Any], chat: Chat, form: Scorer | None, longest: int) -> str | None:
    """Why an answer is not kept; None: it has the form."""
    if not answer["text"]:
        return "empty"
    if not answer["is_whole"]:
        return "cut: longer than any answer of the file"
    if form is not None:
        return None if form.score(Question(messages=chat.prompt), answer["text"]) else f"not in form ({form.name})"
    return "longer than any answer of the file" if answer["num_tokens"] > longest + 1 else None
