"""How a model thinks before it answers: the tags around a thought, whether the prompt has begun one, and what switches it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from eft_integrations.chat.lark import Rules, sequence
from eft_integrations.chat.messages import Message
from eft_integrations.chat.tags import BUDGETS, EFFORTS, SWITCHES, TAGS, Tags
from eft_integrations.chat.template import TemplateTraits, generation_prompt
from eft_integrations.json_types import Json, JsonObject

GAP = r"/[ \t\r\n]{0,4}/"
"""Whitespace around tags. Without a bound a small model writes it without end."""

CHARACTERS_PER_TOKEN = 4
"""A budget in characters, where tags are no tokens of their own: a grammar cannot count tokens of text and take them back."""


@dataclass(frozen=True)
class Thoughts:
    """How one answer may begin with a thought.

    `state`: the prompt has begun a thought (open), one may come (possible), or the prompt has dealt with it (over). `budget`: most
    tokens of a thought. `is_expected`: the model is known to think; otherwise its tokenizer merely has the tags.
    `is_counted_in_characters`: the closing tag is no token of its own, so that the budget is one of characters.
    """

    tags: Tags
    state: Literal["open", "possible", "over"] = "possible"
    budget: int | None = None
    is_expected: bool = True
    is_counted_in_characters: bool = False

    def before(self, body: str, rules: Rules, *, barred: Sequence[str] = ()) -> str:
        """A Lark expression: the thought that may or must come, and behind it `body`. In a thought none of the control tokens
        `barred` can be written.
        """
        if not self.is_expected or (self.state != "open" and (self.state == "over" or self.budget == 0)):
            return body
        said = behind = rules.add("said", body)
        if self.tags.said is not None:
            begin, end = (rules.literal(text) for text in self.tags.said)
            behind = f"({begin} {GAP})? {said} ({GAP} {end})?"
        rest = sequence(self._rest(rules, barred), GAP, behind)
        if self.state == "open":
            return rest
        rules.add("thought", sequence(GAP, rules.literal(self.tags.opening), rest))
        return f"thought | {said}"

    def _rest(self, rules: Rules, barred: Sequence[str]) -> str:
        """What is thought, and the closing tag."""
        closing = self.tags.closing
        if self.budget == 0:
            return rules.literal(closing)
        if (token_id := rules.token_of(closing)) is not None:
            often = "*" if self.budget is None else f"{{0,{self.budget}}}"
            others = {own for text in barred if (own := rules.token_of(text)) is not None}
            return f"<[^{','.join(map(str, sorted({token_id, *others})))}]>{often} <[{token_id}]>"
        often = "*" if self.budget is None else f"{{0,{self.budget * CHARACTERS_PER_TOKEN}}}"
        return rules.add("thinking[lazy]", rf"/(.|\n){often}{in_regex(closing)}/")

    def text(self, rules: Rules) -> str:
        """A Lark expression of free text that begins with no thought."""
        if (token_id := rules.token_of(self.tags.opening)) is not None:
            return f"<[^{token_id}]>*"
        return rules.add("SPEECH", rf"/(.|\n)*/{self.excluded(rules)}")

    def excluded(self, rules: Rules) -> str:
        """What a terminal of free text is intersected with, so that it begins with no thought."""
        if not self.is_expected or rules.token_of(self.tags.opening) is not None:
            return ""  # text never holds a control token
        return rf" & ~/\s*{in_regex(self.tags.opening.strip())}(.|\n)*/"


def in_regex(text: str) -> str:
    r"""A literal in a regular expression of a Lark grammar.

    >>> print(in_regex("</a.b>"))
    <\/a\.b>
    """
    return re.escape(text).replace("/", r"\/").replace("\n", r"\n")


def split_thought(message: Message, tags: Tags | None) -> Message:
    """An assistant's turn whose content begins with a thought, with the thought as a part of its own."""
    if tags is None or message.role != "assistant" or message.reasoning:
        return message
    opening, closing = re.escape(tags.opening.strip()), re.escape(tags.closing)
    found = re.match(rf"\s*{opening}(?P<thought>.*?){closing}\s*", message.content, re.DOTALL)
    if found is None:
        return message
    return dataclasses.replace(message, content=message.content[found.end() :], reasoning=found["thought"].strip())


# ---- one request ---------------------------------------------------------------------------------------------------------


def thoughts_of(
    template: str | None,
    messages: Sequence[JsonObject],
    variables: Mapping[str, Json],
    *,
    tags: Tags | None,
    known_tokens: Mapping[str, int],
    budget: int | None,
) -> Thoughts | None:
    """How the answer to a conversation may begin; None where nothing is known of thoughts.

    Args:
        template: the chat template.
        messages: the conversation as the template gets it.
        variables: the variables that it is rendered with.
        tags: those that the caller names or the template shows; None: neither does.
        known_tokens: control tokens of the tokenizer by text.
        budget: most tokens of a thought.
    """
    if tags is None:
        known = next((own for own in TAGS if own.opening in known_tokens and own.closing in known_tokens), None)
        return None if known is None else Thoughts(dataclasses.replace(known, said=None), is_expected=False)
    prompt = generation_prompt(template, messages, variables) if template else ""
    opened, closed = prompt.rfind(tags.opening.strip()), prompt.rfind(tags.closing)
    state: Literal["open", "possible", "over"] = "possible"
    if opened > closed:
        state = "open"
    elif closed >= 0:
        state = "over"
    return Thoughts(tags, state, budget, is_counted_in_characters=tags.closing not in known_tokens)


@dataclass(frozen=True)
class Switched:
    """What an option about thinking comes to: variables of the template. `is_told`: the template has a variable for it."""

    variables: JsonObject
    is_told: bool


def switched(reasoning: str, budget: int | None, traits: TemplateTraits, *, in_channels: bool) -> Switched:
    """The variables with which a template is told whether to think and how much.

    Args:
        reasoning: auto, off, or an effort.
        budget: most tokens of a thought.
        traits: of the template.
        in_channels: thoughts are messages in a channel of their own, which take no effort of "none".
    """
    names = traits.variables
    told: JsonObject = {name: budget for name in BUDGETS if name in names and budget is not None}
    if reasoning == "auto":
        return Switched(told, is_told=True)
    switches = {name: reasoning != "off" for name in SWITCHES if name in names}
    least = "low" if in_channels else "none"
    efforts = {name: least if reasoning == "off" else reasoning for name in EFFORTS if name in names}
    budgets = {name: 0 for name in BUDGETS if name in names and reasoning == "off"}
    is_told = bool(switches or budgets or (efforts and not (in_channels and reasoning == "off")))
    return Switched({**told, **switches, **efforts, **budgets}, is_told=is_told)
