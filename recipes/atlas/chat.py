"""Dialogues as text: the chat template and the same rendering in Python, with the spans that fine-tuning needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from recipes.atlas.phrasing import END_SLOT, SLOT
from recipes.atlas.tools import ToolSpec

START, END, PAD = "<|start|>", "<|end|>", "<|pad|>"
ROLES = ("system", "user", "assistant", "tool")
SPECIAL_TOKENS = [PAD, START, END, *(f"<|{role}|>" for role in ROLES)]
PLAIN_TOKENS = ["<tool_call>", "</tool_call>", '{"name": "', '", "arguments": {"', '": "', '"}}']
"""One token each, but text: they must survive decoding, since calls are read from the text. The pieces of JSON are what stands
between a tool's name, its argument and the value, which so come one token after the other."""

CHAT_TEMPLATE = """\
{%- macro announce(tools) -%}
Tools:{% for tool in tools %}{% set f = tool.function if tool.function is defined else tool %}
{{ '\\n' }}{{ f.description or '' }}{{ ' {"name": "' }}{{ f.name }}{{ '", "arguments": {' }}\
{% for key, value in ((f.parameters or {}).properties or {}).items() %}\
{{ ', ' if not loop.first }}"{{ key }}": "{{ value.type or 'any' }}"{% endfor %}{{ '}}' }}{% endfor %}
{%- endmacro -%}
{{- bos_token -}}
{%- set has_system = messages and messages[0].role == 'system' -%}
{%- if has_system or tools -%}
<|system|>{{ messages[0].content if has_system }}{{ '\\n\\n' if has_system and tools }}\
{% if tools %}{{ announce(tools) }}{% endif %}<|end|>
{%- endif -%}
{%- for message in messages -%}
{%- if not (loop.first and has_system) -%}
<|{{ message.role }}|>{{ message.content or '' }}
{%- for call in (message.tool_calls or []) -%}
{%- set f = call.function if call.function is defined else call -%}
{{ '\\n' if message.content or not loop.first }}<tool_call>
{"name": "{{ f.name }}", "arguments": {{ f.arguments if f.arguments is string else f.arguments | tojson }}}
</tool_call>
{%- endfor -%}
<|end|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""


@dataclass(frozen=True)
class Dialogue:
    """Turns as (role, text); text of the assistant may carry slot marks. `tools` are announced in the system turn."""

    turns: list[tuple[str, str]]
    tools: list[ToolSpec] = field(default_factory=list)

    def marked_text(self) -> str:
        """As the chat template writes it, slot marks kept."""
        turns = list(self.turns)
        system = turns.pop(0)[1] if turns and turns[0][0] == "system" else ""
        if self.tools:
            listed = "Tools:\n" + "\n".join(tool.line() for tool in self.tools)
            system = f"{system}\n\n{listed}" if system else listed
        if system:
            turns.insert(0, ("system", system))
        return START + "".join(f"<|{role}|>{text}{END}" for role, text in turns)


@dataclass(frozen=True)
class Spans:
    """Plain text, with the character ranges that the assistant wrote and, inside them, those that are content."""

    text: str
    written: list[tuple[int, int]]
    slots: list[tuple[int, int]]


def strip_marks(text: str) -> str:
    """Plain text of a marked one."""
    return text.replace(SLOT, "").replace(END_SLOT, "")


def find_spans(marked: str) -> Spans:
    r"""Where the assistant writes (its closing token included), and where the content is.

    >>> spans = find_spans("<|user|>Hi<|end|><|assistant|>I am \x01Bo\x02.<|end|>")
    >>> [spans.text[a:b] for a, b in spans.written], [spans.text[a:b] for a, b in spans.slots]
    (['I am Bo.<|end|>'], ['Bo'])
    """
    slots: list[tuple[int, int]] = []
    pieces: list[str] = []
    length = 0
    for number, piece in enumerate(marked.split(SLOT)):
        content, _, rest = piece.partition(END_SLOT) if number else ("", "", piece)
        if number:
            slots.append((length, length + len(content)))
        pieces += [content, rest]
        length += len(content) + len(rest)
    text = "".join(pieces)
    written: list[tuple[int, int]] = []
    opening = "<|assistant|>"
    start = text.find(opening)
    while start >= 0:
        start += len(opening)
        end = text.index(END, start) + len(END)
        written.append((start, end))
        start = text.find(opening, end)
    return Spans(text, written, slots)


def openai_messages(dialogue: Dialogue) -> list[dict[str, Any]]:
    """The turns as messages, marks removed."""
    return [{"role": role, "content": strip_marks(text)} for role, text in dialogue.turns]
