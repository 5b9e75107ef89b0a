"""The bodies of POST /v1/messages and POST /v1/messages/count_tokens: Anthropic's API."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from eft_integrations.server.bodies.body import Body, FreeJson, Part, unused_of
from eft_integrations.server.bodies.idle_fields import QUIET_IN_MESSAGES
from eft_integrations.server.bodies.protocol import AskedReasoning, GenerationBody, PartsBody
from eft_integrations.wire.anthropic import is_own_tool
from eft_integrations.wire.reasoning import asked_reasoning

QUIET = tuple(QUIET_IN_MESSAGES)
BLOCK = ("type", "text", "thinking", "signature", "data", "id", "name", "input", "tool_use_id", "content", "is_error", "source",
         "title", "context", "caller", "toolset_name")  # fmt: skip


class ThinkingOptions(Part):
    """Whether and how long the model thinks."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = Field(default=None, ge=0, description="most tokens of a thought")
    display: str | None = Field(default=None, description="thoughts are always told in full")


class OutputConfig(Part):
    """How much effort, and what the answer must look like."""

    effort: str | None = None
    format: FreeJson | None = Field(default=None, description="json_schema")


class Turn(Part):
    """One turn; a system's text may stand between others."""

    role: Literal["user", "assistant", "system"]
    content: str | list[FreeJson]


class ConversationBody(Body):
    """What both routes read."""

    QUIET: ClassVar[frozenset[str]] = frozenset({"betas", "diagnostics"})

    model: str = Field(description="a composition, perhaps with weights behind it: name@pair=0.5")
    messages: list[Turn] = Field(min_length=1)
    system: str | list[FreeJson] | None = None
    tools: list[FreeJson] | None = None
    tool_choice: FreeJson | None = None
    thinking: ThinkingOptions | None = None
    output_config: OutputConfig | None = None
    output_format: FreeJson | None = Field(default=None, description="an older name of output_config.format")
    chat_template_kwargs: FreeJson | None = Field(default=None, description="variables of the chat template")
    eft_reasoning_tags: tuple[str, str] | None = None

    def unused_inside(self) -> Iterator[str]:
        """See `Body`."""
        yield from super().unused_inside()
        for turn in self.messages:
            yield from unused_of("messages", turn.model_extra or {}, quiet=QUIET)
            yield from _unused_blocks("messages.content", turn.content)
        yield from _unused_blocks("system", self.system)
        for tool in self.tools or ():
            if is_own_tool(tool):
                known = ("type", "name", "description", "input_schema", "strict", "eager_input_streaming")
                yield from unused_of("tools", tool, known, quiet=QUIET)
            else:
                yield f"tools.{tool['type']}"
        yield from unused_of("tool_choice", self.tool_choice, ("type", "name", "disable_parallel_tool_use"))
        if self.thinking is not None:
            yield from unused_of("thinking", self.thinking.model_extra or {})
            if self.thinking.display == "omitted":
                yield "thinking.display"
            if self.thinking.type == "between_tools":
                yield "thinking.between_tools"
        if self.output_config is not None:
            yield from unused_of("output_config", self.output_config.model_extra or {})

    def asked_reasoning(self) -> AskedReasoning:
        """What is asked of thoughts; a body that says nothing leaves it to the model."""
        effort = None if self.output_config is None else self.output_config.effort
        budget = None
        match self.thinking:
            case ThinkingOptions(type="disabled"):
                effort = "none"
            case ThinkingOptions(type="enabled"):
                effort, budget = effort or "medium", self.thinking.budget_tokens
        return AskedReasoning(
            reasoning=asked_reasoning(effort), reasoning_budget=budget, reasoning_tags=self.eft_reasoning_tags
        )


def _unused_blocks(where: str, content: object) -> Iterator[str]:
    for block in content if isinstance(content, list) else ():
        yield from unused_of(where, block, BLOCK, quiet=QUIET)
        if block.get("type") == "redacted_thinking":
            yield f"{where}.redacted_thinking"
        yield from _unused_blocks(f"{where}.content", block.get("content"))


class MessagesBody(ConversationBody, PartsBody, GenerationBody):
    """POST /v1/messages."""

    max_tokens: int = Field(description="most tokens to generate")
    stop_sequences: list[str] | None = Field(default=None, description="strings that end the text")
    eft_lenient_tool_calls: bool | None = Field(
        default=None, description="false: text is a tool call only in the form of the model's own chat template"
    )
    eft_strict: bool | None = Field(
        default=None,
        description="true: refuse a schema with a keyword that no mask can hold, where a tool does not say its own",
    )


class CountTokensBody(ConversationBody):
    """POST /v1/messages/count_tokens."""

    QUIET: ClassVar[frozenset[str]] = ConversationBody.QUIET | {
        "max_tokens",
        "stop_sequences",
        "temperature",
        "top_p",
        "top_k",
    }
