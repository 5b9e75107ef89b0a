"""How models write tool calls: one notation per family, told from the chat template or named."""

from __future__ import annotations

import re
from collections.abc import Callable

from eft_engine.errors import InvalidOptionError
from eft_integrations.chat.notations.base import Notation
from eft_integrations.chat.notations.harmony import Harmony
from eft_integrations.chat.notations.json_calls import JsonCalls
from eft_integrations.chat.notations.named_calls import NamedCalls
from eft_integrations.chat.notations.pythonic import PythonicCalls
from eft_integrations.chat.notations.xml_calls import XmlCalls

HERMES = JsonCalls("hermes", before="<tool_call>\n", after="\n</tool_call>")
LLAMA3 = JsonCalls("llama3", between="; ", arguments_key="parameters", prefixes=("<|python_tag|>",))
MISTRAL = JsonCalls("mistral", before_all="[TOOL_CALLS][", between=", ", after_all="]", has_ids=True)
MISTRAL_V11 = NamedCalls(
    "mistral-v11",
    before="[TOOL_CALLS]",
    middle="[ARGS]",
    id_marker="[CALL_ID]",
    neck=r"(?:\[CALL_ID\]\s*\w*)?\s*(?:\[ARGS\])?\s*",
)
DEEPSEEK_V3 = NamedCalls(
    "deepseek-v3",
    before_all="<｜tool▁calls▁begin｜>",
    before="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    middle="\n```json\n",
    after="\n```<｜tool▁call▁end｜>",
    between="\n",
    after_all="<｜tool▁calls▁end｜>",
    head=r"<｜tool▁call▁begin｜>\s*(?:function)?\s*<｜tool▁sep｜>\s*",
    neck=r"(?:```(?:json)?)?\s*",
)
DEEPSEEK_V31 = NamedCalls(
    "deepseek-v3.1",
    before_all="<｜tool▁calls▁begin｜>",
    before="<｜tool▁call▁begin｜>",
    middle="<｜tool▁sep｜>",
    after="<｜tool▁call▁end｜>",
    after_all="<｜tool▁calls▁end｜>",
)
KIMI = NamedCalls(
    "kimi-k2",
    before_all="<|tool_calls_section_begin|>",
    before="<|tool_call_begin|>functions.",
    middle=":{index}<|tool_call_argument_begin|>",
    after="<|tool_call_end|>",
    after_all="<|tool_calls_section_end|>",
)
GRANITE3 = JsonCalls("granite3", before_all="<|tool_call|>[", between=", ", after_all="]")
PHI4_MINI = JsonCalls("phi4-mini", before_all="<|tool_call|>[", between=", ", after_all="]<|/tool_call|>")
HUNYUAN = JsonCalls("hunyuan", before_all="<tool_calls>[", between=", ", after_all="]</tool_calls>")
NEMOTRON = JsonCalls("nemotron", before_all="<TOOLCALL>[", between=", ", after_all="]</TOOLCALL>")
XML = XmlCalls()
PYTHONIC = PythonicCalls("pythonic", prefixes=("<|python_start|>", "<|python_tag|>"))
LFM2 = PythonicCalls("lfm2", opening="<|tool_call_start|>", closing="<|tool_call_end|>")
HARMONY = Harmony()

NOTATIONS: dict[str, Notation] = {
    notation.name: notation
    for notation in (
        HERMES, LLAMA3, MISTRAL, MISTRAL_V11, DEEPSEEK_V3, DEEPSEEK_V31, KIMI, GRANITE3, PHI4_MINI, HUNYUAN, NEMOTRON, XML,
        PYTHONIC, LFM2, HARMONY,
    )
}  # fmt: skip
"""By name."""


def _has(*texts: str) -> Callable[[str], bool]:
    return lambda template: all(text in template for text in texts)


DETECTION: tuple[tuple[Callable[[str], bool], Notation], ...] = (
    (_has("<|channel|>", "<|start|>"), HARMONY),
    (_has("[TOOL_CALLS]", "[ARGS]"), MISTRAL_V11),
    (_has("[TOOL_CALLS]"), MISTRAL),
    (lambda template: "<｜tool▁sep｜>" in template and "```" in template, DEEPSEEK_V3),
    (_has("<｜tool▁sep｜>"), DEEPSEEK_V31),
    (_has("<|tool_calls_section_begin|>"), KIMI),
    (_has("<TOOLCALL>"), NEMOTRON),
    (_has("<function=", "<parameter="), XML),
    (lambda template: "<|tool_call_start|>" in template or "List of tools: [" in template, LFM2),
    (_has("<tool_calls>["), HUNYUAN),
    (lambda template: "<|start_of_role|>" in template and "<tool_call>" not in template, GRANITE3),
    (lambda template: "<|tool|>" in template or "functools[" in template, PHI4_MINI),
    (_has("<tool_call>"), HERMES),
    (lambda template: re.search(r"\[\w*func\w*\(", template) is not None, PYTHONIC),
    (lambda template: "ipython" in template or ('"parameters"' in template and "tools" in template), LLAMA3),
)
"""What a template of each family holds; the first that fits counts."""


def notation_of(chat_template: str | None, name: str | None = None) -> Notation:
    """The notation that is named, else the one that a chat template shows the model; Hermes' where it shows none.

    Raises:
        InvalidOptionError: there is no notation of that name.
    """
    if name is not None:
        if name not in NOTATIONS:
            raise InvalidOptionError(
                f"there is no tool notation {name!r}; there are {', '.join(NOTATIONS)}",
                option="tool_notation",
                value=name,
            )
        return NOTATIONS[name]
    template = chat_template or ""
    return next((notation for fits, notation in DETECTION if fits(template)), HERMES)
