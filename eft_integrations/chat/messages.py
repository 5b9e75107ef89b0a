"""The one form in which adapters and backends speak of conversations and tools: OpenAI's, as plain frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

LOOSE = "call_loose_"
"""What ids begin with of calls that a model wrote in another form than its template's.

Callers send ids back with the results, which then come in words: models that do not write their template's notation do not read it
either, and call again (`benchmarks.result_forms`).
"""

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class ToolCall:
    """A call that the model asks for. `arguments` is JSON text, as it was generated."""

    call_id: str
    name: str
    arguments: str

    def as_openai(self) -> dict[str, Any]:
        """OpenAI's form."""
        return {
            "id": self.call_id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


@dataclass(frozen=True)
class InvalidToolCall:
    """Text that began as a tool call and did not become one that may be run: cut off, not JSON, or not what its schema says.

    `text` is what the model wrote of it. `name`, `call_id` and `arguments` (JSON text, perhaps only its beginning) are there as far
    as they are known; a stream has sent its pieces under the same id.
    """

    text: str
    reason: str
    name: str | None = None
    call_id: str | None = None
    arguments: str | None = None


@dataclass(frozen=True)
class Message:
    """One turn. `tool_calls` and `reasoning` (what the model thought before it answered) belong to assistant turns, `tool_call_id`
    and `name` to tool results.
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str = ""

    def as_openai(self) -> dict[str, Any]:
        """OpenAI's form.

        >>> Message("user", "hi").as_openai()
        {'role': 'user', 'content': 'hi'}
        """
        form: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning:
            form["reasoning_content"] = self.reasoning
        if self.name is not None:
            form["name"] = self.name
        if self.tool_call_id is not None:
            form["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            form["tool_calls"] = [call.as_openai() for call in self.tool_calls]
        return form


@dataclass(frozen=True)
class Tool:
    """A function that the model may call; `parameters` is a JSON schema of type object. `strict`: a schema of which a mask cannot
    hold every keyword is refused.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool = False

    def as_openai(self) -> dict[str, Any]:
        """OpenAI's form, which chat templates read."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}
