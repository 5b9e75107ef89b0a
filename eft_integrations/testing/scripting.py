"""A script in place of every model of an application, without a change of its code."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, TypedDict, Unpack

from eft_engine.errors import InvalidOptionError
from eft_integrations.backends.replaced import replaced_by
from eft_integrations.backends.replies import Reply
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import Message, ToolCall
from eft_integrations.chat.request import ChatRequest
from eft_integrations.json_types import Json


class ScriptOptions(TypedDict, total=False):
    """Keywords of `ScriptedBackend`."""

    when: Mapping[str | re.Pattern[str], Reply]
    otherwise: Reply
    call_tools: Collection[str] | Literal["all"]
    arguments: Mapping[str, Mapping[str, Json]]
    text: str
    thought: str
    seed: int
    model_name: str
    weights: Mapping[str, float]
    takes_any_pair: bool
    context_len: int


@contextmanager
def scripted(
    replies: Sequence[Reply] | Callable[[ChatRequest], Reply | None] | ScriptedBackend | None = None,
    **options: Unpack[ScriptOptions],
) -> Iterator[ScriptedBackend]:
    """One script answers for every `EFTChatModel`, `EFTLLM` and smolagents' `EFTModel` that is asked inside the block, those that
    were made before and those of other threads included; of nested blocks the inner one answers. Nothing is loaded.

    Args:
        replies: as for `ScriptedBackend`, or one that is made already.
        options: keywords of `ScriptedBackend`. Unless `weights` says which pairs there are, requests may name any.
    """
    if isinstance(replies, ScriptedBackend):
        if options:
            raise InvalidOptionError(
                f"{', '.join(options)} belong to a script that is made here; this one is made already",
                option=next(iter(options)),
            )
        backend = replies
    else:
        options.setdefault("takes_any_pair", "weights" not in options)
        backend = ScriptedBackend(replies, **options)
    with replaced_by(backend):
        yield backend


def tool_call(name: str, /, **arguments: Json) -> Message:
    """A reply that calls one tool.

    >>> tool_call("weather", city="Paris").tool_calls[0].arguments
    '{"city": "Paris"}'
    """
    return Message("assistant", "", (ToolCall(f"call_{uuid.uuid4().hex[:8]}", name, json.dumps(arguments)),))
