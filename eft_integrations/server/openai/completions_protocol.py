"""Request bodies of completions, tokenize and detokenize."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from eft_integrations.server.bodies.body import Body, FreeJson
from eft_integrations.server.bodies.nested_fields import unused_messages, unused_tools
from eft_integrations.server.bodies.protocol import MessageBody, ReasoningBody, SamplingBody

TokenList = list[int]


def are_ids(value: object) -> bool:
    """Whether this is a list of whole numbers that could be ids of tokens."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _prompts(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    """One text, texts, one list of ids, or lists of ids; walked once."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value) or are_ids(value):
            return value
        if all(isinstance(item, list) for item in value):
            if all(item and are_ids(item) for item in value):
                return value
            raise ValueError("every list of token ids needs at least one, and ids are whole numbers from 0 on")
    raise ValueError(
        "give a text, a list of texts, a list of token ids or a list of such lists; nothing empty, nothing mixed"
    )


def token_ids(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    """A list of ids; walked once."""
    if not are_ids(value):
        raise ValueError("give a list of token ids, whole numbers from 0 on")
    return value


class CompletionBody(SamplingBody):
    """POST /v1/completions."""

    prompt: Annotated[str | list[str] | TokenList | list[TokenList], WrapValidator(_prompts)] = Field(
        description="a text to continue, or several; or token ids"
    )
    max_tokens: int | None = Field(default=16, description="0 with echo: nothing is written")
    logprobs: int | None = Field(default=None, ge=0, le=20, description="with echo, of the prompt too")
    echo: bool | None = Field(default=None, description="true: the prompt stands before its answer")
    best_of: int | None = None
    add_special_tokens: bool | None = Field(
        default=None, description="false: a text without the start token that prompts get, if any"
    )

    @property
    def prompt_field(self) -> str:
        """See `Body`."""
        return "prompt"

    @property
    def prompts(self) -> list[str] | list[tuple[int, ...]]:
        """All prompts."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        texts = [item for item in self.prompt if isinstance(item, str)]
        if texts:
            return texts
        lists = [tuple(item) for item in self.prompt if isinstance(item, list)]
        return lists or [tuple(item for item in self.prompt if isinstance(item, int))]


class TokenizeBody(ReasoningBody):
    """POST /tokenize: a text, or messages as the chat template renders them."""

    QUIET: ClassVar[frozenset[str]] = frozenset({"tool_choice", "parallel_tool_calls"})

    model: str | None = Field(default=None, description="a composition; without one, the first that the caller may use")
    prompt: str | None = None
    messages: list[MessageBody] | None = Field(default=None, min_length=1)
    tools: list[FreeJson] | None = None
    chat_template_kwargs: FreeJson | None = None
    add_special_tokens: bool = Field(
        default=True, description="of a text: with the start token that prompts get, if any"
    )
    return_token_strs: bool = Field(default=False, description="true: the text of each token too")

    def unused_inside(self) -> Iterator[str]:
        """See `Body`."""
        yield from super().unused_inside()
        yield from unused_messages(self.messages or ())
        yield from unused_tools(self.tools or ())

    @property
    def prompt_field(self) -> str:
        """See `Body`."""
        return "messages" if self.prompt is None else "prompt"

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give prompt or messages")
        return self


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: str | None = Field(default=None, description="a composition; without one, the first that the caller may use")
    tokens: Annotated[TokenList, WrapValidator(token_ids)]

    @property
    def prompt_field(self) -> str:
        """See `Body`."""
        return "tokens"
