"""gpt-oss: an answer is messages in channels; calls are messages to a function."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from eft_integrations.chat.forms import WrittenCall
from eft_integrations.chat.json_text import json_end
from eft_integrations.chat.lark import Rules, sequence
from eft_integrations.chat.messages import Tool, ToolCall
from eft_integrations.chat.notations.base import NAME, BrokenCall, Notation, Zone, overlap

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
    thought: tuple[str, str] = ("<|channel|>analysis<|message|>", "<|end|>")

    def write(self, calls: Sequence[ToolCall]) -> str:
        """See `Notation`."""
        return "<|start|>assistant".join(
            f"<|channel|>commentary to=functions.{call.name} <|constrain|>json<|message|>{call.arguments}<|call|>"
            for call in calls
        )

    def opening_texts(self, tools: Sequence[Tool]) -> Sequence[str]:
        """See `Notation`."""
        return ("to=functions.",)

    def rule(self, tools: Sequence[Tool], rules: Rules, *, several: bool, behind: str = "") -> str:
        """See `Notation`. `<|call|>` ends the turn, so there is one."""
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

    def _thought(self, rules: Rules) -> str:
        """A thought and the beginning of the next message, or nothing."""
        if rules.reasoning_budget == 0:
            return ""
        literal = rules.literal
        often = "*" if rules.reasoning_budget is None else f"{{0,{rules.reasoning_budget}}}"
        structure = [token_id for marker in self.markers if (token_id := rules.token_of(marker)) is not None]
        begun = sequence(literal("<|end|><|start|>"), '"assistant"', literal("<|channel|>"))
        rules.add("thinking", f"<[^{','.join(map(str, structure))}]>{often}" if structure else r"/(.|\n)*/")
        rules.add("thought", sequence(literal("analysis<|message|>"), "thinking", begun))
        return "thought?"

    def read(self, text: str, tools: Sequence[Tool], *, is_over: bool) -> Zone:
        """See `Notation`. What is said goes on behind its header as text."""
        if (over := END.match(text)) is not None:
            return Zone(end=over.end())
        head = CALL.match(text)
        if head is None:
            return self._cut_header(text) if is_over else Zone()
        recipient = RECIPIENT.search(f"{head['role']} {head['channel'] or ''}")
        end = END.search(text, head.end())
        if recipient is not None:
            whole = json_end(text, head.end()) if text[head.end() :].lstrip()[:1] == "{" else None
            if whole is None and not (is_over or end):
                return Zone((), WrittenCall(recipient["name"], text[head.end() :]))
            if whole is None:
                begun = WrittenCall(recipient["name"], text[head.end() : None if end is None else end.start()])
                broken = BrokenCall(text, "the arguments are no whole JSON", begun)
                return Zone((broken,), end=len(text) if end is None else end.end())
            return Zone((WrittenCall(recipient["name"], text[head.end() : whole].strip()),), end=whole)
        if (head["channel"] or "").strip().startswith("analysis"):
            if end is not None:
                return Zone(thought=text[head.end() : end.start()].strip(), end=end.end())
            kept = 0 if is_over else max(overlap(text, marker) for marker in self.markers)
            return Zone(thought=text[head.end() : len(text) - kept].strip(), end=len(text) if is_over else None)
        return Zone(end=head.end())

    @staticmethod
    def _cut_header(text: str) -> Zone:
        """A message of which nothing is there but a part of its header: a call has begun where it names whom it is for."""
        if "to=" not in text:
            return Zone(end=len(text))
        known = re.search(rf"{RECIPIENT.pattern}(?=[^\w.\-])", text)
        begun = None if known is None else WrittenCall(known["name"], "")
        return Zone((BrokenCall(text, "the text ended at the beginning of a call", begun),), end=len(text))
