"""How hosts write down what a model thought, and how they ask for it.

A thought is a field of an assistant's message, called `reasoning_content` (DeepSeek, vLLM) or `reasoning` (OpenRouter), or parts of
its content (LangChain, Anthropic, Bedrock, OpenAI's responses).
"""

from __future__ import annotations

from collections.abc import Mapping

from eft_integrations.json_types import JsonObject

FIELDS = ("reasoning_content", "reasoning")
"""Names of a thought in a message and in a piece of one; clients read one or the other."""
PARTS = frozenset({"reasoning", "reasoning_content", "thinking"})
"""Types of parts that hold a thought."""
TEXTS = ("reasoning", "thinking", "reasoning_content", "content", "text", "summary")
"""Where the text of such a part is; the first that is there counts."""


def to_thought(message: Mapping[str, object]) -> str:
    """The thought of an assistant's message, from its fields or else from the parts of its content.

    >>> to_thought({"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Yes."}]})
    'hm'
    """
    for name in FIELDS:
        if thought := thought_text(message.get(name)):
            return thought
    content = message.get("content")
    if not isinstance(content, list | tuple):
        return ""
    return thought_text([part for part in content if isinstance(part, Mapping) and part.get("type") in PARTS])


def thought_text(value: object) -> str:
    """The text of a thought in any of its forms: a text, a part, or a list of them. What holds none (a signature) has none."""
    match value:
        case str():
            return value
        case list() | tuple():
            return "\n\n".join(filter(None, map(thought_text, value)))
        case Mapping():
            return next((text for name in TEXTS if (text := thought_text(value.get(name)))), "")
    return ""


def thought_form(thought: str) -> JsonObject:
    """A thought, or a piece of one, under both names; nothing where there is none."""
    return dict.fromkeys(FIELDS, thought) if thought else {}


def reasoning_of(value: object) -> object:
    """`ChatRequest.reasoning` of what hosts write: a switch, an effort, or a mapping with one. What is none of these is left as it
    is.

    >>> [reasoning_of(value) for value in (None, True, False, "none", {"effort": "low"}, 3)]
    ['auto', 'medium', 'off', 'off', 'low', 3]
    """
    match value:
        case True:
            return "medium"
        case False:
            return "off"
        case None | str():
            return asked_reasoning(value)
        case {"effort": None | str() as effort}:
            return asked_reasoning(effort)
    return value


def asked_reasoning(effort: str | None) -> str:
    """`ChatRequest.reasoning` of OpenAI's effort, in which "none" turns thinking off.

    >>> asked_reasoning(None), asked_reasoning("none"), asked_reasoning("high")
    ('auto', 'off', 'high')
    """
    return "auto" if effort is None else "off" if effort == "none" else effort


def effort_of(reasoning: str) -> str | None:
    """OpenAI's effort of `ChatRequest.reasoning`; None: not said.

    >>> effort_of("auto"), effort_of("off"), effort_of("high")
    (None, 'none', 'high')
    """
    return None if reasoning == "auto" else "none" if reasoning == "off" else reasoning
