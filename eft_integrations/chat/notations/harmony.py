"""gpt-oss: an answer is messages in channels; calls are messages to a function."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from eft_integrations.chat.forms import WrittenCall
from eft_integrations.chat.json_text import json_end
from eft_integrations.chat.lark import Rules, sequence
from eft_integrations.chat.messages import Tool, ToolCall
from eft_integrations.chat.notations.base import NAME, BrokenCall, Notation, Zone

CALL = re.compile(
    r"(?:<\|start\|>assistant)?(?P<role>[^<]*)(?:<\|channel\|>(?P<channel>[^<]*))?(?:<\|constrain\|>\w*)?\s*<\|message\|>"
)
RECIPIENT = re.compile(rf"to=functions\.(?P<name>{NAME})")
END = re.compile(r"<\|(?:end|call|return)\|>")


@dataclass(frozen=True)
class Harmony(Notation):
    """`<|channel|>commentary to=functions.name <|constrain|>json<|message|>{...}<|call|>`, one call per message."""

    name: str = "harmony"
    markers: tuple[str, ...] = ("<|channel|>", "<|start|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>")
    is_shared: bool = False
    has_headers: bool = True

    def write(self, calls: Sequence[ToolCall]) -> str:
        """See `Notation`."""
        return "<|start|>assistant".join(
            f"<|channel|>commentary to=functions.{call.name} <|constrain|>json<|message|>{call.arguments}<|call|>"
            for call in calls
        )

    def rule(self, tools: Sequence[Tool], rules: Rules, *, several: bool, behind: str = "") -> str:
        """See `Notation`. `<|call|>` ends the turn, so there is one; a thought may come before it."""
        literal = rules.literal
        for index, tool in enumerate(tools):
            header = literal(f"commentary to=functions.{tool.name} <|constrain|>json<|message|>")
            rules.add(f"message_{index}", sequence(header, rules.arguments(tools, tool), f"({literal('<|call|>')})?"))
        call = rules.add("message", " | ".join(f"message_{index}" for index in range(len(tools))))
        return sequence(literal("<|channel|>".removeprefix(behind)), self._thought(rules), call)

    def answer_rule(self, rules: Rules, body: str) -> str:
        """See `Notation`: in the final channel, after thoughts or none."""
        literal = rules.literal
        return sequence(literal("<|channel|>"), self._thought(rules), literal("final<|message|>"), body)

    @staticmethod
    def _thought(rules: Rules) -> str:
        """A thought and the beginning of the next message, or nothing."""
        literal = rules.literal
        rules.add("THOUGHT", r"/(.|\n)*/")
        begun = sequence(literal("<|end|><|start|>"), '"assistant"', literal("<|channel|>"))
        rules.add("thought", sequence(literal("analysis<|message|>"), "THOUGHT", begun))
        return "thought?"

    def read(self, text: str, tools: Sequence[Tool], *, is_over: bool) -> Zone:
        """See `Notation`. A message that is no call is left out here: thoughts are none of the answer, and what is said goes on
        behind its header as text.
        """
        if (over := END.match(text)) is not None:
            return Zone(end=over.end())
        head = CALL.match(text)
        if head is None:
            return Zone(end=len(text)) if is_over else Zone()
        recipient = RECIPIENT.search(f"{head['role']} {head['channel'] or ''}")
        end = END.search(text, head.end())
        if recipient is not None:
            whole = json_end(text, head.end()) if text[head.end() :].lstrip()[:1] == "{" else None
            if whole is None and not (is_over or end):
                return Zone((), WrittenCall(recipient["name"], text[head.end() :]))
            if whole is None:
                return Zone(
                    (BrokenCall(text, "the arguments are no whole JSON"),), end=len(text) if end is None else end.end()
                )
            return Zone((WrittenCall(recipient["name"], text[head.end() : whole].strip()),), end=whole)
        if (head["channel"] or "").strip().startswith("analysis"):
            if end is None:
                return Zone(end=len(text)) if is_over else Zone()
            return Zone(end=end.end())
        return Zone(end=head.end())
