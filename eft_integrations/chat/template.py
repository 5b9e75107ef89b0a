"""What a chat template can do by itself, found out by rendering small conversations with it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from eft_integrations.chat.tags import BUDGETS, EFFORTS, SWITCHES, tags_of
from eft_integrations.json_types import Json, JsonObject

ARGUMENTS = {"probe_key": "probe value"}
SHORT_ID = "abcdef123"
"""Nine letters and digits, as Mistral's templates demand."""
LONG_ID = "call_0123456789abcdef"
TOOL: JsonObject = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "probes",
        "parameters": {
            "type": "object",
            "properties": {"probe_key": {"type": "string", "description": "a key"}},
            "required": ["probe_key"],
        },
    },
}
NESTED_TOOL: JsonObject = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "probes",
        "parameters": {
            "type": "object",
            "properties": {"probe_key": {"$ref": "#/$defs/Part"}},
            "$defs": {"Part": {"type": "object", "properties": {"probe_inner": {"type": "string"}}}},
        },
    },
}
RENDERING = frozenset(
    {
        "self", "loop", "conversation", "conversations", "messages", "tools", "chat_template", "add_generation_prompt",
        "continue_final_message", "tokenize", "tokenizer", "sanitize_control_tokens", "padding", "truncation", "max_length",
        "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs",
    }
)  # fmt: skip
"""Names that say what is rendered and how; no variables of a template."""


@dataclass(frozen=True)
class TemplateTraits:
    """What is known of a template.

    `arguments`: how calls are given to it, None where it does not render them. `results_in_json`: results are put into
    JSON as they are, so that they have to be JSON. `system`: where a system turn may stand. `thought`: where a thought of an
    earlier turn belongs: a field of the message, a chunk of its content, the content itself, or nowhere. `thought_beside_words`: a
    turn with calls may have a thought and words too. `shows_definitions`: parts of a tool's schema under `$defs` are shown.
    `variables`: those that switch thinking. `reads`: all that it looks up; None: not known.
    """

    shows_tools: bool = False
    arguments: Literal["object", "string"] | None = None
    shows_results: bool = False
    results_in_json: bool = False
    parallel: bool = False
    short_ids: bool = False
    system: Literal["anywhere", "first", "never"] = "anywhere"
    alternates: bool = False
    thought: Literal["reasoning_content", "reasoning", "thinking", "chunk", "content"] | None = "content"
    thought_beside_words: bool = True
    shows_definitions: bool = True
    variables: frozenset[str] = frozenset()
    reads: frozenset[str] | None = None

    def unread(self, variables: Iterable[str]) -> list[str]:
        """Those of a request's variables that change nothing, as its report names them."""
        return [
            f"chat_template_kwargs.{name}" for name in variables if self.reads is not None and name not in self.reads
        ]


NO_TEMPLATE = TemplateTraits()


@functools.lru_cache(maxsize=64)
def traits_of(template: str) -> TemplateTraits:
    """The traits of a Jinja template. A template that renders nothing at all has none; the engine says what is wrong with it."""
    if _render(template, [_turn("user", "one")]) is None:
        return NO_TEMPLATE
    shown = _render(template, [_turn("system", "s"), _turn("user", "one")], [TOOL])
    shown = shown or _render(template, [_turn("user", "one")], [TOOL])
    shows_tools, calls = shown is not None and "probe_tool" in shown, _calls_trait(template)
    thought, beside = _thought_trait(template, calls)
    names = _variables(template)
    return dataclasses.replace(
        calls,
        shows_tools=shows_tools,
        # A template that writes any role as it is called does not know of results for that.
        shows_results=calls.shows_results
        and (shows_tools or calls.arguments is not None or re.search(r"""['"]tool['"]""", template) is not None),
        system=_system_trait(template),
        alternates=_render(template, [_turn("user", "one"), _turn("user", "two")]) is None,
        thought=thought,
        thought_beside_words=beside,
        shows_definitions=not shows_tools
        or "probe_inner" in (_render(template, [_turn("user", "one")], [NESTED_TOOL]) or "probe_inner"),
        variables=names.intersection((*SWITCHES, *EFFORTS, *BUDGETS)),
        reads=names,
    )


def _variables(template: str) -> frozenset[str]:
    """Which variables the template looks up."""
    from jinja2 import meta
    from transformers.utils.chat_template_utils import _compile_jinja_template

    names = meta.find_undeclared_variables(_compile_jinja_template(template).environment.parse(template))
    return frozenset(names)


ThoughtTrait = Literal["reasoning_content", "reasoning", "thinking", "chunk", "content"] | None


def _thought_trait(template: str, calls: TemplateTraits) -> tuple[ThoughtTrait, bool]:
    """Where a thought of a turn with calls is shown, and whether words may stand beside it."""

    def shown(thought: JsonObject, content: Json) -> str:
        call_ids = [SHORT_ID if calls.short_ids else LONG_ID]
        turns = _loop(call_ids, calls.arguments) if calls.arguments else [_turn("user", "one"), _turn("assistant", "")]
        turns[1] = {**turns[1], "content": content, **thought}
        return _render(template, turns) or _render(template, turns, [TOOL]) or ""

    fields: tuple[Literal["reasoning_content", "reasoning", "thinking"], ...] = (
        "reasoning_content",
        "reasoning",
        "thinking",
    )
    for field in sorted(fields, key=lambda name: name not in template):
        if "probe thought" in shown({field: "probe thought"}, ""):
            return field, "probe thought" in shown({field: "probe thought"}, "probe words")
    chunks: list[Json] = [{"type": "thinking", "thinking": "probe thought"}, {"type": "text", "text": "probe words"}]
    rendered = shown({}, chunks)
    if "probe thought" in rendered and "type" not in rendered:
        return "chunk", True
    tags = tags_of(template)
    if tags is None or "probe thought" in shown({}, f"{tags.opening}\nprobe thought\n{tags.closing}\n\n"):
        return "content", True
    return None, True


def generation_prompt(template: str, messages: Sequence[JsonObject], variables: Mapping[str, Json]) -> str:
    """What a template writes behind a conversation so that the model answers; nothing where it refuses the conversation."""
    asked = _render(template, messages, variables=variables) or ""
    said = _render(template, messages, variables=variables, add_generation_prompt=False) or ""
    shorter = min(len(asked), len(said))
    common = next((place for place in range(shorter) if asked[place] != said[place]), shorter)
    return asked[common:]


def _system_trait(template: str) -> Literal["anywhere", "first", "never"]:
    first = _render(template, [_turn("system", "sysone"), _turn("user", "one")])
    if first is None or "sysone" not in first:
        return "never"
    said = [("system", "sysone"), ("user", "one"), ("assistant", "two"), ("system", "systwo"), ("user", "three")]
    middle = _render(template, [_turn(role, text) for role, text in said]) or ""
    places = [middle.find(text, middle.find("sysone") + len("sysone")) for _, text in said[1:]]
    return "anywhere" if places == sorted(places) and places[0] >= 0 else "first"


def _calls_trait(template: str) -> TemplateTraits:
    """Traits of calls and results."""
    kinds: tuple[Literal["object", "string"], ...] = ("object", "string")
    for call_id, kind, tools in itertools.product((LONG_ID, SHORT_ID), kinds, (None, [TOOL])):
        rendered = _render(template, _loop([call_id], kind), tools)
        if rendered is None or not _shows_call(rendered):
            continue
        several = _render(template, _loop([call_id, call_id[:-1] + "9"], kind), tools)
        return TemplateTraits(
            arguments=kind,
            shows_results="probe result" in rendered,
            results_in_json=re.search(r'"\s*:\s*probe result', rendered) is not None,
            parallel=several is not None and several.count("probe_name") >= 2 * rendered.count("probe_name"),
            short_ids=call_id == SHORT_ID,
        )
    said = [_turn("user", "one"), _turn("assistant", "two"), {**_turn("tool", "probe result"), "tool_call_id": LONG_ID}]
    return TemplateTraits(shows_results="probe result" in (_render(template, said) or ""))


def _shows_call(rendered: str) -> bool:
    """The name, and the arguments as what they are: no JSON inside of a JSON string."""
    return (
        "probe_name" in rendered
        and "probe value" in rendered
        and '\\"probe_key' not in rendered
        and "&#34;" not in rendered
    )


def _loop(call_ids: Sequence[str], kind: str) -> list[JsonObject]:
    arguments: Json = ARGUMENTS if kind == "object" else json.dumps(ARGUMENTS)
    calls: list[Json] = [
        {"id": call_id, "type": "function", "function": {"name": "probe_name", "arguments": arguments}}
        for call_id in call_ids
    ]
    results: list[JsonObject] = [
        {"role": "tool", "content": "probe result", "tool_call_id": call_id, "name": "probe_name"}
        for call_id in call_ids
    ]
    return [_turn("user", "one"), {"role": "assistant", "content": "", "tool_calls": calls}, *results]


def _turn(role: str, content: str) -> JsonObject:
    return {"role": role, "content": content}


def _render(
    template: str,
    messages: Sequence[JsonObject],
    tools: Sequence[JsonObject] | None = None,
    *,
    variables: Mapping[str, Json] | None = None,
    add_generation_prompt: bool = True,
) -> str | None:
    """The conversation as text; None where the template refuses it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    tokens = {"bos_token": "", "eos_token": "", "unk_token": "", "pad_token": ""}
    shown = {} if tools is None else {"tools": [dict(tool) for tool in tools]}
    try:
        rendered, _ = render_jinja_template(
            conversations=[[dict(message) for message in messages]],
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            **{**tokens, **shown, **(variables or {})},
        )
    except Exception:  # a template is foreign code: it can raise anything, and raises what it refuses
        return None
    return str(rendered[0])
