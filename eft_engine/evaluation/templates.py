"""Chat templates that differ: which member would render the same messages otherwise than what all of them read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from eft_engine.config import ChatTemplate, Messages, PromptOptions, TokenIds
from eft_engine.errors import ChatTemplateError
from eft_engine.evaluation.questions import Question

if TYPE_CHECKING:
    from eft_engine.engine.engine import Engine

SHOWN = 60
"""Characters that are shown from the first difference on."""
ROLES: tuple[Literal["base", "reference"], ...] = ("base", "reference")


def template_differences(engine: Engine, questions: Sequence[Question]) -> list[str]:
    """What of the members' chat templates differs for these questions, in sentences; empty: nothing, or there are no messages.

    All members read what the tuned model's template makes of messages. A member whose own template makes another text of them is
    compared under a prompt that it was not tuned for; weight 0 then is not the base as it is used alone.
    """
    found: dict[str, str] = {}
    for messages in _kinds(questions):
        used = _rendered(engine, messages, ChatTemplate())
        if used is None:
            return []  # asking will say it
        for role in ROLES:
            if role not in found and (own := _rendered(engine, messages, ChatTemplate(of=role))) not in (None, used):
                found[role] = (
                    f"the {role}'s own chat template renders messages otherwise: {_difference(own or '', used)}"
                )
        for pair in engine.weights:
            text = engine.chat_template_of(pair)
            if pair in found or text is None or text == engine.chat_template:
                continue
            own = _rendered(engine, messages, ChatTemplate(jinja=text))
            if own not in (None, used):
                found[pair] = (
                    f"the chat template of {pair}.tuned renders messages otherwise: {_difference(own or '', used)}"
                )
    return list(found.values())


def _kinds(questions: Sequence[Question]) -> Iterator[Messages]:
    """A conversation of each sequence of roles: templates differ in what they make of turns, as of a missing system message."""
    seen = set()
    for question in questions:
        prompt = question.as_prompt()
        if not isinstance(prompt, str | TokenIds):
            roles = tuple(message["role"] for message in prompt)
            if roles not in seen:
                seen.add(roles)
                yield prompt


def _rendered(engine: Engine, messages: Messages, template: ChatTemplate) -> str | None:
    """What is read with a template; None: the member has none, or it refuses these messages."""
    if engine.template_text(template) is None:
        return None
    try:
        return engine.decode(engine.prompt_ids(messages, prompt_options=PromptOptions(chat_template=template)))
    except ChatTemplateError:
        return None


def _difference(own: str, used: str) -> str:
    """Where two texts part.

    >>> _difference("<s>Be kind. Hi", "<s>Hi")
    "'Be kind. Hi' where all members read 'Hi' (behind '<s>')"
    """
    place = next((at for at, (one, other) in enumerate(zip(own, used, strict=False)) if one != other), None)
    place = min(len(own), len(used)) if place is None else place
    behind = used[max(0, place - SHOWN // 2) : place]
    return f"{own[place:][:SHOWN]!r} where all members read {used[place:][:SHOWN]!r} (behind {behind!r})"
