"""Answers that fit any request, without a model: tools are called, schemas are filled, and results are told.

pydantic-ai's `TestModel` has the same idea: https://ai.pydantic.dev/testing/
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from eft_engine import Lark, Regex
from eft_engine.errors import InvalidOptionError
from eft_integrations.chat.example import example_of
from eft_integrations.chat.messages import Message, Tool, ToolCall
from eft_integrations.chat.request import ChatRequest
from eft_integrations.chat.schema import unenforced
from eft_integrations.chat.schema_check import fault_of
from eft_integrations.json_types import Json, JsonObject

PLAIN = "scripted answer"
"""What is said where nothing else is asked for and no tool has answered."""


@dataclass(frozen=True)
class Automatic:
    """How requests are answered.

    `call_tools`: names of the tools that are called where the model may choose. `arguments`: by tool, arguments that go before
    those that are made up. `text`: the final text. `thought`: what is thought before every answer, unless a request switches that
    off. `seed`: another one gives other values.
    """

    call_tools: Collection[str] | Literal["all"] = "all"
    arguments: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    text: str | None = None
    thought: str = ""
    seed: int = 0

    def answer(self, request: ChatRequest, number: int) -> Message:
        """What fits a request. `number`: of the request, for ids of calls that differ.

        Raises:
            InvalidOptionError: a schema is none, arguments that were given do not fit one, or a grammar is asked for.
            InvalidGrammarError: no value was found that fits a schema.
        """
        thought = "" if request.reasoning == "off" else self.thought
        tools = self._next_tools(request)
        if tools:
            calls = [
                ToolCall(f"call_{number}_{index}", tool.name, json.dumps(self._arguments_of(tool), ensure_ascii=False))
                for index, tool in enumerate(tools)
            ]
            return Message("assistant", "", tuple(calls), reasoning=thought)
        if request.response_schema is not None:
            value = example_of(request.response_schema, seed=self.seed)
            return Message("assistant", json.dumps(value, ensure_ascii=False), reasoning=thought)
        if request.response_grammar is not None:
            return Message("assistant", self._held_text(request.response_grammar), reasoning=thought)
        return Message("assistant", self._text_for(request), reasoning=thought)

    def report(self, request: ChatRequest) -> JsonObject:
        """What the metadata say of a request that was answered: what no mask holds of its schemas, and what had no use.

        Raises:
            InvalidOptionError: a schema is none, or strict and not held in full.
        """
        found = unenforced(request.tools, request.response_schema, strict_response=request.strict_response)
        is_unknown = bool(request.tools and self.call_tools and not self._wanted(request.tools))
        return {**({"unenforced": found} if found else {}), **({"ignored": ["call_tools"]} if is_unknown else {})}

    def _next_tools(self, request: ChatRequest) -> Sequence[Tool]:
        """The tools that are called now: those that were not since the last turn of the user; where a call must come, any."""
        choice = request.tool_choice
        if choice.mode == "none" or request.prompt is not None:
            return ()
        if choice.mode == "named":
            return [tool for tool in request.tools if tool.name == choice.name]
        wanted = self._wanted(request.tools)
        called = _called(request.messages)
        waiting = [tool for tool in wanted if tool.name not in called]
        if not waiting and choice.mode == "required":
            waiting = list((wanted or request.tools)[-1:])
        return waiting if choice.parallel else waiting[:1]

    def _wanted(self, tools: Sequence[Tool]) -> Sequence[Tool]:
        if self.call_tools == "all":
            return tools
        return [tool for tool in tools if tool.name in self.call_tools]

    def _arguments_of(self, tool: Tool) -> Json:
        given = self.arguments.get(tool.name)
        if given is None:
            return example_of(tool.parameters, arguments=True, seed=self.seed)
        if fault_of(dict(given), tool.parameters) is None:
            return dict(given)
        made = example_of(tool.parameters, arguments=True, seed=self.seed)
        value = {**(made if isinstance(made, dict) else {}), **given}
        if (fault := fault_of(value, tool.parameters)) is not None:
            raise InvalidOptionError(
                f"arguments for tool {tool.name!r} do not fit its schema: {fault}", option="arguments", value=given
            )
        return value

    def _held_text(self, grammar: Regex | Lark) -> str:
        """A text that an expression matches."""
        if isinstance(grammar, Lark):
            raise InvalidOptionError(
                "a scripted backend makes up no text of a grammar; give it a reply, or ask with an expression or a choice",
                option="response_grammar",
                value=grammar.grammar,
            )
        return str(example_of({"type": "string", "pattern": f"^(?:{grammar.pattern})$"}, seed=self.seed))

    def _text_for(self, request: ChatRequest) -> str:
        if self.text is not None:
            return self.text
        results = _results(request.messages)
        return json.dumps(results, ensure_ascii=False) if results else PLAIN


def _since_the_user(messages: Sequence[Message]) -> Sequence[Message]:
    last = max((index for index, message in enumerate(messages) if message.role == "user"), default=-1)
    return messages[last + 1 :]


def _called(messages: Sequence[Message]) -> set[str]:
    return {call.name for message in _since_the_user(messages) for call in message.tool_calls}


def _results(messages: Sequence[Message]) -> JsonObject:
    """What tools answered since the last turn of the user, by their names; several of one tool as a list."""
    names = {call.call_id: call.name for message in messages for call in message.tool_calls}
    found: dict[str, list[Json]] = {}
    for message in _since_the_user(messages):
        if message.role == "tool":
            name = message.name or names.get(message.tool_call_id or "", "tool")
            found.setdefault(name, []).append(message.content)
    return {name: own[0] if len(own) == 1 else own for name, own in found.items()}
