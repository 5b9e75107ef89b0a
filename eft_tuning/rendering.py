"""Dialogues to tokens with the tokenizer's own chat template, and which of the tokens are the assistant's.

An answer begins where the template's generation prompt ends and goes on through the token that ends the turn: exactly what a
model is asked to write. Templates need no `{% generation %}` for that; beginnings of the dialogue are rendered beside the whole.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eft_engine.errors import ChatTemplateError
from eft_engine.overdue import at_most
from eft_engine.text.tokenizer import Tokenizer, control_tokens

RENDERING_SECONDS = 5.0
"""Most time of a thread that a chat template may take."""


@dataclass(frozen=True)
class Rendered:
    """A dialogue as a model reads it. Both lists have the same length; `is_answer` marks what the assistant writes."""

    token_ids: list[int]
    is_answer: list[bool]

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_answer_tokens(self) -> int:
        """Tokens that are learnt."""
        return sum(self.is_answer)

    @property
    def prompt_ids(self) -> list[int]:
        """Everything before the first answer."""
        return self.token_ids[: self.is_answer.index(True)] if True in self.is_answer else self.token_ids


def answer_runs(rendered: Rendered) -> list[tuple[int, int]]:
    """Where each answer begins, and the place behind its last token.

    >>> answer_runs(Rendered([5, 6, 7, 8], [False, True, True, False]))
    [(1, 3)]
    """
    marks = [False, *rendered.is_answer, False]
    edges = [place for place in range(len(marks) - 1) if marks[place] != marks[place + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    line: int | None = None,
    last_only: bool = False,
) -> Rendered:
    """Tokens of a dialogue; every turn of the assistant is an answer.

    Where the template writes no token behind the last answer, the tokenizer's end of text is put there.

    Args:
        tokenizer: the model's, with its chat template.
        messages: the dialogue.
        tools: functions that the template is told of.
        line: of the file, for messages of errors.
        last_only: only the last turn is an answer; earlier ones are read.

    Raises:
        ChatTemplateError: there is no template, it refuses the dialogue, or it writes an answer so that it cannot be told from the
            prompt exactly.
    """
    where = "" if line is None else f"line {line}: "
    turns = [dict(message) for message in messages]
    template = _Template(tokenizer, None if tools is None else [dict(tool) for tool in tools], where)
    whole = template.text(turns)
    controls = control_pattern(tokenizer)
    spans: list[tuple[int, int]] = []
    for index, turn in enumerate(turns):
        if turn["role"] == "assistant" and (not last_only or index == len(turns) - 1):
            spans.append(_answer_span(template, whole, turns, index, controls, where))
    return _tokens(tokenizer, whole, spans, turns, controls, where)


def prompt_token_ids(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    line: int | None = None,
) -> list[int]:
    """Tokens of the dialogue up to where the next answer begins, as the engine asks. Errors: as `render`."""
    template = _Template(
        tokenizer, None if tools is None else [dict(tool) for tool in tools], "" if line is None else f"line {line}: "
    )
    return _encode(tokenizer, template.text([dict(message) for message in messages], to_answer=True))


@dataclass(frozen=True)
class _Template:
    """The template with what it is told besides the turns."""

    tokenizer: Tokenizer
    tools: list[dict[str, Any]] | None
    where: str

    def text(self, turns: list[dict[str, Any]], *, to_answer: bool = False) -> str:
        """Turns as text; `to_answer`: and the beginning of the assistant's next one."""
        if not self.tokenizer.chat_template:
            raise ChatTemplateError(
                f"{self.where}the tokenizer has no chat template, so nobody knows how a dialogue is written for this model; "
                "take an instruct model as reference, or give its tokenizer a chat_template"
            )
        variables = {} if self.tools is None else {"tools": self.tools}
        try:
            with at_most(RENDERING_SECONDS, self._took_too_long):
                return str(
                    self.tokenizer.apply_chat_template(
                        turns, tokenize=False, add_generation_prompt=to_answer, **variables
                    )
                )
        except ChatTemplateError:
            raise
        except Exception as error:  # a template is foreign code: it can raise anything
            raise ChatTemplateError(f"{self.where}the chat template refused the dialogue: {error}") from error

    def _took_too_long(self) -> ChatTemplateError:
        return ChatTemplateError(f"{self.where}the chat template did not end within {RENDERING_SECONDS:g} s of work")


def control_pattern(tokenizer: Tokenizer) -> re.Pattern[str]:
    """Matches any control token; nothing where there are none."""
    hashable: Any = tokenizer
    return _pattern(hashable, str(tokenizer.chat_template))


@functools.lru_cache(maxsize=8)
def _pattern(tokenizer: Any, chat_template: str) -> re.Pattern[str]:
    """Gathered once: some tokenizers have thousands. The template is named since it says what counts."""
    texts = sorted(control_tokens(tokenizer), key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, texts)) if texts else r"(?!)")


def _answer_span(
    template: _Template,
    whole: str,
    turns: list[dict[str, Any]],
    index: int,
    controls: re.Pattern[str],
    where: str,
) -> tuple[int, int]:
    """Where turn `index` begins and ends in the text of the dialogue, in characters."""
    before = template.text(turns[:index], to_answer=True)
    if not whole.startswith(before):
        raise ChatTemplateError(
            f"{where}the chat template writes turn {index + 1} (an answer) differently in a whole dialogue than it asks for it: it "
            f"asks with {_tail(before)} and the dialogue has {_at_difference(whole, before)} there; use a template that writes "
            "both alike"
        )
    start = len(before)
    through = whole if index == len(turns) - 1 else template.text(turns[: index + 1])
    is_prefix = whole.startswith(through) and len(through) > start
    turn = whole[start : len(through)] if is_prefix else whole[start:]
    content = str(turns[index].get("content") or "").strip()
    if turns[index].get("tool_calls") or not content:
        if not is_prefix:
            raise ChatTemplateError(
                f"{where}it cannot be told where turn {index + 1} (an answer) ends: the chat template writes it differently when "
                "more turns follow"
            )
        return start, start + len(turn.rstrip())
    bare = controls.sub(lambda match: "\0" * len(match[0]), turn)
    found = bare.rfind(content) if is_prefix else bare.find(content)
    if found < 0:
        if is_prefix:  # rewritten by the template (a thought, escapes): all of the turn
            return start, start + len(turn.rstrip())
        raise ChatTemplateError(f"{where}the chat template does not write turn {index + 1} (an answer) as it is")
    end = found + len(content)
    closing = re.compile(rf"\s*(?:{controls.pattern})").match(turn, end)
    return start, start + (closing.end() if closing else end)


def _tokens(
    tokenizer: Tokenizer,
    whole: str,
    spans: list[tuple[int, int]],
    turns: list[dict[str, Any]],
    controls: re.Pattern[str],
    where: str,
) -> Rendered:
    """Token ids of the text, cut where answers begin and end."""
    token_ids = _encode(tokenizer, whole)
    marks = [0, *(place for span in spans for place in span)]
    befores = [_encode(tokenizer, whole[:mark]) if mark < len(whole) else token_ids for mark in marks]
    cuts = [len(before) for before in befores]
    exact = all(token_ids[: len(before)] == before for before in befores)
    if not exact:  # a token would stand across the border: the model is asked with whole tokens, so it is cut there
        token_ids, cuts = [], [0]
        for start, end in zip(marks, [*marks[1:], len(whole)], strict=True):
            token_ids += _encode(tokenizer, whole[start:end])
            cuts.append(len(token_ids))
        cuts.pop()
        told = tokenizer.decode(token_ids, skip_special_tokens=False)
        if told != tokenizer.decode(_encode(tokenizer, whole), skip_special_tokens=False):
            raise ChatTemplateError(
                f"{where}the tokenizer cannot read the answers apart from what is before them without changing the text"
            )
    is_answer = [False] * len(token_ids)
    for number in range(len(spans)):
        start, end = cuts[1 + 2 * number], cuts[2 + 2 * number]
        is_answer[start:end] = [True] * (end - start)
    if spans and turns[-1]["role"] == "assistant":
        _, end = spans[-1]
        closed = any(match.end() == end for match in controls.finditer(whole, spans[-1][0]))
        end_id = getattr(tokenizer, "eos_token_id", None)
        if not closed and isinstance(end_id, int):
            token_ids, is_answer = [*token_ids[: cuts[-1]], end_id], [*is_answer[: cuts[-1]], True]
    return Rendered(token_ids, is_answer)


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _tail(text: str) -> str:
    return repr(text[-40:])


def _at_difference(whole: str, before: str) -> str:
    same = next((place for place, (own, other) in enumerate(zip(whole, before, strict=False)) if own != other), None)
    place = min(len(whole), len(before)) if same is None else same
    return repr(whole[max(0, place - 10) : place + 30])
