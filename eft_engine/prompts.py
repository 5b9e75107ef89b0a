"""What a prompt is, and how it becomes token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from eft_engine.options import Options


class ChatTemplate(Options):
    """Render messages through a chat template: the named member's own, or the given Jinja text."""

    of: Literal["base", "tuned", "reference"] = Field(default="tuned", description="whose template")
    jinja: str | None = Field(default=None, description="template text to use instead of a member's own")


class PlainText(Options):
    """Render messages as lines of plain text, which pre-trained bases often continue better than chat markup.

    `template` is applied to each message, `closing` ends the prompt and opens the answer.
    """

    template: str = Field(default="{role}: {content}\n\n", description="one message; fields {role} and {content}")
    closing: str = Field(default="Answer:", description="text after the last message")
    role_names: dict[str, str] = Field(
        default_factory=lambda: {"user": "Question", "assistant": "Answer", "system": "Instruction"},
        description="how each role is written",
    )

    @field_validator("template")
    @classmethod
    def _has_content(cls, value: str) -> str:
        try:
            filled = [value.format(role="user", content=content) for content in ("one", "two")]
        except (LookupError, ValueError, AttributeError) as error:
            raise ValueError(f"may have the fields {{role}} and {{content}} only ({error!r})") from None
        if filled[0] == filled[1]:
            raise ValueError("must contain {content}")
        return value


class Verbatim(Options):
    """Give a member exactly this text as its prompt."""

    text: str = Field(min_length=1)


class TokenIds(Options):
    """A raw prompt, or a completion to score, as tokens: ids of `Engine.tokenizer`. Nothing is added to them.

    A member that does not know one of them reads its text in tokens of its own.
    """

    ids: tuple[Annotated[int, Field(strict=True, ge=0)], ...] = Field(min_length=1)


Rendering = ChatTemplate | PlainText | Verbatim


class PromptOptions(Options):
    """How prompts become token ids.

    By default messages are rendered and tokenised once and every member reads the same ids. A member named here gets its own
    rendering and so its own prompt length; only the generated tokens are shared.
    """

    chat_template: ChatTemplate = Field(default_factory=ChatTemplate, description="for members not named below")
    base: Rendering | None = None
    tuned: Rendering | None = Field(default=None, description="for the tuned model of every pair")
    reference: Rendering | None = Field(default=None, description="for the reference model of every pair")
    add_special_tokens: bool = Field(
        default=True, description="add the tokenizer's own start token to raw string prompts"
    )
    control_tokens: Literal["neutralise", "parse"] = Field(
        default="neutralise",
        description="control tokens written inside of messages, tools and documents: break them up (nobody can end a turn or forge "
        "a call with text), or honour them",
    )
    template_variables: dict[str, Any] = Field(
        default_factory=dict,
        description="further variables for the chat template (tools, enable_thinking, ...)",
    )


Messages = Sequence[Mapping[str, Any]]
Prompt = str | Messages | TokenIds
"""A raw string, or a conversation: a list of {"role", "content"} mappings."""
