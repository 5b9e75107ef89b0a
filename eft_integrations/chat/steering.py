"""The weights of a request by part of its answer (thought, call, words), and the prompts of its prompt pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eft_engine import Between, PromptPair, RewardWeights, TokenIds, Weight, Without
from eft_engine.call_decision import Thought
from eft_engine.config import resolve_weights
from eft_engine.errors import InvalidOptionError
from eft_engine.prompt_pairs import Side
from eft_engine.weights import is_schedule
from eft_integrations.chat.messages import Message, ToolCall
from eft_integrations.chat.notations.base import Notation
from eft_integrations.chat.request import ChatRequest
from eft_integrations.chat.thoughts import Thoughts
from eft_integrations.json_types import JsonObject

ROLES = ("system", "user", "assistant", "tool")


def pairs_of(request: ChatRequest) -> dict[str, PromptPair]:
    """All prompt pairs of a request, by name.

    Raises:
        InvalidOptionError: two of them have one name.
    """
    whole = {} if request.composition is None else request.composition.prompt_pairs
    for name, pair in request.prompt_pairs.items():
        if whole.get(name, pair) != pair:
            raise InvalidOptionError(
                f"prompt_pairs.{name}: composition has another one of this name",
                option=f"prompt_pairs.{name}",
                value=pair,
            )
    return {**whole, **request.prompt_pairs}


def weights_over(
    given: RewardWeights,
    own: Mapping[str, Weight],
    prompt_pairs: Mapping[str, PromptPair],
    *,
    over: Mapping[str, Weight] | None = None,
    owner: str = "this engine",
) -> dict[str, Weight]:
    """Weights of all pairs as an engine reads them: one for all is for its own pairs, a mapping may name prompt pairs too.

    >>> weights_over(0.5, {"chat": 1.0}, {"brief": PromptPair(negative={"system": "Be long."})})
    {'chat': 0.5, 'brief': 1.0}

    Args:
        given: what is asked for.
        own: the engine's pairs.
        prompt_pairs: those of the request.
        over: what holds where `given` is silent; None: the pairs' own weights.
        owner: of the pairs, named in errors.

    Raises:
        UnknownPairError: there is no such pair.
        InvalidWeightError: a weight is no finite number and no schedule.
    """
    known = {**own, **{name: pair.weight for name, pair in prompt_pairs.items()}} if over is None else dict(over)
    if isinstance(given, Mapping) and not is_schedule(given):
        return resolve_weights(given, known, owner=owner)
    return {**known, **resolve_weights(given, {name: known[name] for name in own}, owner=owner)}


def within_thought(
    answer: Mapping[str, Weight], thought: Mapping[str, Weight], *, opening: str, closing: str, is_open: bool
) -> dict[str, Weight]:
    """The weights of an answer, with others between the texts around a thought; `is_open`: the prompt has begun it."""
    return {
        name: weight
        if thought[name] == weight
        else Between(opening=opening, closing=closing, weight=thought[name], outside=weight, starts_inside=is_open)
        for name, weight in answer.items()
    }


def first_thought(notation: Notation, thoughts: Thoughts | None) -> Thought | None:
    """The thought that may come first, or has begun; None where none can be known."""
    if notation.thought is not None:
        opening, closing = notation.thought
        return Thought(opening=opening, closing=closing)
    if thoughts is None or thoughts.state == "over":
        return None
    tags = thoughts.tags
    return Thought(opening=tags.opening.strip(), closing=tags.closing, is_open=thoughts.state == "open")


def weights_by_part(
    request: ChatRequest,
    own: Mapping[str, Weight] | None,
    pairs: Mapping[str, PromptPair],
    thought: Thought | None,
) -> tuple[RewardWeights, dict[str, Weight] | None]:
    """The weights of the whole answer, and those that decide whether it is a call; None where nothing is to be decided."""
    if request.call_weight is None and request.reasoning_weight is None:
        return request.reward_weights, None
    if own is None:
        option = "reasoning_weight" if request.call_weight is None else "call_weight"
        raise InvalidOptionError(
            f"{option}: whoever answers here takes one weight for a whole answer; name the models (base=, tuned=, "
            "reference=), or ask a server that runs `eft serve` with an engine of its own",
            option=option,
            value=getattr(request, option),
        )
    if (
        request.call_weight is not None
        and request.composition is not None
        and request.composition.call_decision is not None
    ):
        raise InvalidOptionError(
            "call_weight: composition has a call_decision; give one of them",
            option="call_weight",
            value=request.call_weight,
        )
    answer = weights_over(request.reward_weights, own, pairs)
    calling = weights_over(request.call_weight, own, pairs, over=answer) if request.call_weight is not None else answer
    decided: dict[str, Weight] | None = None
    if request.tools and request.tool_choice.mode in ("required", "named"):
        answer = calling  # the whole answer is a call
    elif request.tools and request.tool_choice.mode == "auto" and calling != answer:
        decided = calling
    if request.reasoning_weight is None or thought is None:
        return answer, decided
    inside = weights_over(request.reasoning_weight, own, pairs, over=answer)
    opening, closing = thought.opening, thought.closing
    return within_thought(answer, inside, opening=opening, closing=closing, is_open=thought.is_open), decided


# ---- prompt pairs ------------------------------------------------------------------------------------------------------------


def side_request(side: Side, request: ChatRequest, *, named: str) -> ChatRequest | None:
    """The request whose prompt one side of a prompt pair is; None where the side is no conversation: the request's own prompt, a
    text, or tokens.

    Args:
        side: what is given.
        request: what is asked.
        named: what errors call the side.

    Raises:
        InvalidOptionError: a text to take out is not there, a role is not there, a message is malformed, or nothing is left.
    """
    match side:
        case None | str() | TokenIds():
            return None
        case Without(texts=texts):
            return _without(texts, request, named)
        case Mapping():
            return dataclasses.replace(request, messages=_by_role(side, request.messages, named))
    messages = tuple(_as_message(message, f"{named}.{place}") for place, message in enumerate(side))
    return dataclasses.replace(request, messages=messages, documents=())


def shown_sides(
    pairs: Mapping[str, PromptPair], request: ChatRequest, shown: Callable[[ChatRequest], list[JsonObject]]
) -> dict[str, PromptPair]:
    """Prompt pairs whose conversations are in the form of the request's own."""
    found = {}
    for name, pair in pairs.items():
        update: dict[str, object] = {}
        for place in ("positive", "negative"):
            side = side_request(getattr(pair, place), request, named=f"prompt_pairs.{name}.{place}")
            if side is not None:
                update[place] = shown(side)
        found[name] = pair.model_copy(update=update)
    return found


def _without(texts: Sequence[str], request: ChatRequest, named: str) -> ChatRequest:
    found: set[str] = set()

    def left(value: str) -> str:
        for text in sorted(texts, key=len, reverse=True):  # one may be a part of another
            if text in value:
                found.add(text)
                value = value.replace(text, "")
        return value

    messages = tuple(
        dataclasses.replace(message, content=left(message.content), reasoning=left(message.reasoning))
        for message in request.messages
    )
    documents = [{name: left(text) for name, text in document.items()} for document in request.documents]
    missing = [text for text in texts if not any(text in other for other in found)]
    if missing:
        raise InvalidOptionError(
            f"{named}: the request does not hold {len(missing)} of {len(texts)} texts to take out, as {missing[0][:80]!r}; give "
            "them as they stand in its messages or documents",
            option=named,
            value=texts,
        )
    kept = tuple(document for document in documents if any(text.strip() for text in document.values()))
    return dataclasses.replace(request, messages=messages, documents=kept)


def _by_role(texts: Mapping[str, str | None], messages: Sequence[Message], named: str) -> tuple[Message, ...]:
    roles = {str(message.role) for message in messages}
    for role in texts:
        if role not in roles and role != "system":
            raise InvalidOptionError(
                f"{named} has a text for the role {role!r}, and the request has no such message; roles there are "
                f"{', '.join(sorted(roles))}",
                option=named,
                value=dict(texts),
            )
    changed = [
        message if message.role not in texts else dataclasses.replace(message, content=text)
        for message in messages
        if (text := texts.get(message.role, "")) is not None
    ]
    if (system := texts.get("system")) is not None and "system" not in roles:
        changed.insert(0, Message("system", system))
    if not changed:
        raise InvalidOptionError(f"{named} takes all messages away", option=named, value=dict(texts))
    return tuple(changed)


def _as_message(message: Mapping[str, Any], named: str) -> Message:
    """A message in OpenAI's form."""
    match message:
        case {"role": str(role), "content": str() | None as content, **rest} if role in ROLES:
            calls = tuple(_as_call(call, named) for call in rest.get("tool_calls") or ())
            reasoning = rest.get("reasoning_content") or ""
            return Message(role, content or "", calls, rest.get("tool_call_id"), rest.get("name"), reasoning)  # type: ignore[arg-type]
    raise InvalidOptionError(
        f'{named} must be a message, as {{"role": "user", "content": "..."}}, with one of the roles {", ".join(ROLES)}, got '
        f"{message!r}",
        option=named,
        value=message,
    )


def _as_call(call: object, named: str) -> ToolCall:
    match call:
        case {"function": {"name": str(name), "arguments": str(arguments)}, **rest}:
            return ToolCall(str(rest.get("id") or ""), name, arguments)
    raise InvalidOptionError(f"{named} has a call that is not in OpenAI's form: {call!r}", option=named, value=call)
