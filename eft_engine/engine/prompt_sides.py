"""The prompts of a prompt pair, worked out from the request's own prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eft_engine.config import Prompt, TokenIds, Without
from eft_engine.errors import ChatTemplateError, InvalidOptionError
from eft_engine.prompt_pairs import Side


def side_prompt(side: Side, prompt: Prompt, *, named: str) -> Prompt:
    """The prompt of one side; `named` is what errors call it.

    >>> side_prompt({"system": "Be brief."}, [{"role": "user", "content": "hi"}], named="negative")
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'hi'}]
    >>> side_prompt(Without(texts=["b"]), "a b c", named="negative")
    'a  c'

    Raises:
        InvalidOptionError: a text to take out is not there, a role is not there, or nothing is left.
    """
    match side:
        case None:
            return prompt
        case Without(texts=texts):
            return _without(texts, prompt, named)
        case Mapping():
            return _by_role(side, prompt, named)
        case str() if not isinstance(prompt, str | TokenIds):
            raise InvalidOptionError(
                f"{named} is a raw text and the request has messages; give {{'system': ...}} to replace its system message, or "
                "whole messages",
                option=named,
                value=side,
            )
    return side


def _by_role(texts: Mapping[str, str | None], prompt: Prompt, named: str) -> Prompt:
    messages = _messages(prompt, named, texts)
    changed: list[Mapping[str, Any]] = []
    for message in messages:
        role = message.get("role")
        if role not in texts:
            changed.append(message)
        elif (text := texts[str(role)]) is not None:
            changed.append({**message, "content": text})
    there = {message.get("role") for message in messages}
    for role, text in texts.items():
        if role in there:
            continue
        if role != "system":
            raise InvalidOptionError(
                f"{named} has a text for the role {role!r}, and the request has no such message; roles there are "
                f"{', '.join(sorted(map(str, there)))}",
                option=named,
                value=dict(texts),
            )
        if text is not None:
            changed.insert(0, {"role": role, "content": text})
    if not changed:
        raise InvalidOptionError(f"{named} takes all messages away", option=named, value=dict(texts))
    return changed


def _messages(prompt: Prompt, named: str, value: object) -> list[Mapping[str, Any]]:
    if isinstance(prompt, str | TokenIds):
        raise InvalidOptionError(
            f"{named} is by role, and the request is a raw prompt without roles; give a text", option=named, value=value
        )
    for position, message in enumerate(prompt):
        if not isinstance(message, Mapping):
            raise ChatTemplateError(f'message {position} must be a mapping with "role" and "content", got {message!r}')
    return list(prompt)


def _without(texts: tuple[str, ...], prompt: Prompt, named: str) -> Prompt:
    if isinstance(prompt, TokenIds):
        raise InvalidOptionError(
            f"{named} takes texts out, and the request is token ids; give its own TokenIds", option=named, value=texts
        )
    found: set[str] = set()

    def taken_out(value: Any) -> Any:
        match value:
            case str():
                # Longer ones first: one may be a part of another.
                for text in sorted(texts, key=len, reverse=True):
                    if text in value:
                        found.add(text)
                        value = value.replace(text, "")
                return value
            case Mapping():
                return {name: taken_out(own) if name != "role" else own for name, own in value.items()}
            case list() | tuple():
                return [taken_out(own) for own in value]
        return value

    left: Prompt = taken_out(prompt) if isinstance(prompt, str) else [taken_out(message) for message in prompt]
    missing = [text for text in texts if text not in found and not any(text in other for other in found)]
    if missing:
        raise InvalidOptionError(
            f"{named}: the request does not hold {len(missing)} of {len(texts)} texts to take out, as {missing[0][:80]!r}; give "
            "them as they stand in its messages",
            option=named,
            value=texts,
        )
    return left
