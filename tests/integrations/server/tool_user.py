"""A backend that behaves like a model that uses its tools, for agents of any framework."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from eft_engine.config import resolve_weights
from eft_integrations.backends.replies import Reply
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import Message, ToolCall
from eft_integrations.chat.request import ChatRequest

OBJECT = {"city": "Paris", "sunny": True}


class ToolUser(ScriptedBackend):
    """Calls the first tool that has a `place`, or else the first, with `place="Paris"`, then repeats the result and the weights of
    its request.

    Where a JSON schema is asked for and no tool is left to call, it answers with `OBJECT`.
    """

    def __init__(self, reply: Callable[[ChatRequest], Reply] | None = None) -> None:
        super().__init__(reply or self._reply)

    def _reply(self, request: ChatRequest) -> Message:
        called = [message for message in request.messages if message.role == "tool"]
        tools = request.tools if request.tool_choice.mode != "none" else ()
        if tools and not called:
            named = [tool for tool in tools if request.tool_choice.name in (None, tool.name)]
            named.sort(key=lambda tool: "place" not in tool.parameters.get("properties", {}))
            arguments: dict[str, Any] = {"place": "Paris"}
            return Message("assistant", "", (ToolCall("call_1", named[0].name, json.dumps(arguments)),))
        if request.response_schema is not None:
            return Message("assistant", json.dumps(OBJECT))
        said = called[-1].content if called else request.messages[-1].content
        weights = resolve_weights(request.reward_weights, self.weights)
        return Message("assistant", f"{said} {json.dumps(weights)}")
