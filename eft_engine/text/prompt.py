"""Prompts to token ids, for every member that may need its own rendering.

A string is a raw prompt. Messages go through a chat template (by default the tuned model's), once, and every member reads the
same ids, unless `PromptOptions` gives a member its own rendering.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eft_engine.config import ChatTemplate, PlainText, Prompt, PromptOptions, Rendering, Verbatim
from eft_engine.errors import ChatTemplateError, EmptyPromptError
from eft_engine.text.control import neutralise
from eft_engine.text.tokenizer import Tokenizer, control_tokens


@dataclass(frozen=True)
class PromptTokenizers:
    """Whose tokenizer renders and encodes: the base's, and those of the first pair (all of one vocabulary, by proof)."""

    base: Tokenizer
    tuned: Tokenizer
    reference: Tokenizer

    def of(self, role: str) -> Tokenizer:
        """The tokenizer of base, tuned or reference."""
        return {"base": self.base, "tuned": self.tuned, "reference": self.reference}[role]

    @functools.cached_property
    def control_tokens(self) -> list[str]:
        """Texts that any of them reads as a control token, the longest first. Gathered once: some tokenizers add thousands."""
        texts = set().union(*(control_tokens(own) for own in (self.base, self.tuned, self.reference)))
        return sorted(texts, key=lambda text: (-len(text), text))


@dataclass(frozen=True)
class RenderedPrompt:
    """Token ids of one prompt as the base, the tuned and the reference models read it (often one and the same list)."""

    base: tuple[int, ...]
    tuned: tuple[int, ...]
    reference: tuple[int, ...]


def render_prompt(prompt: Prompt, options: PromptOptions, tokenizers: PromptTokenizers) -> RenderedPrompt:
    """Token ids of `prompt` for each role.

    Raises:
        EmptyPromptError: no text or no messages.
        ChatTemplateError: a message is malformed, there is no chat template, or the template failed.
    """
    if not prompt:
        raise EmptyPromptError("the prompt is empty; give a text or at least one message")
    controls = tokenizers.control_tokens if options.control_tokens == "neutralise" else []
    messages = None if isinstance(prompt, str) else _checked_messages(prompt, controls)
    options = options.model_copy(update={"template_variables": neutralise(options.template_variables, controls)})
    encoded: dict[str, tuple[int, ...]] = {}

    def encode(role: str) -> tuple[int, ...]:
        rendering: Rendering = getattr(options, role) or options.chat_template
        key = f"{type(rendering).__name__} {rendering.model_dump_json()}"
        if key not in encoded:
            encoded[key] = _encode(prompt, messages, rendering, options, tokenizers)
        return encoded[key]

    return RenderedPrompt(encode("base"), encode("tuned"), encode("reference"))


def _encode(
    prompt: Prompt,
    messages: list[dict[str, Any]] | None,
    rendering: Rendering,
    options: PromptOptions,
    tokenizers: PromptTokenizers,
) -> tuple[int, ...]:
    tokenizer = tokenizers.base
    match rendering:
        case Verbatim(text=text):
            add_special_tokens = options.add_special_tokens
        case _ if messages is None:
            assert isinstance(prompt, str), "a prompt without messages is a string"
            text, add_special_tokens = prompt, options.add_special_tokens
        case PlainText():
            text, add_special_tokens = _plain_text(messages, rendering), True
        case ChatTemplate():
            tokenizer = tokenizers.of(rendering.of)
            text = _apply_template(messages, rendering, tokenizer, options.template_variables)
            add_special_tokens = False  # the template writes them itself
    token_ids = tuple(tokenizer.encode(text, add_special_tokens=add_special_tokens))
    if not token_ids:
        raise EmptyPromptError(f"the prompt {text!r} has no tokens; give a text with at least one")
    return token_ids


def _plain_text(messages: list[dict[str, Any]], rendering: PlainText) -> str:
    lines = [
        rendering.template.format(
            role=rendering.role_names.get(message["role"], message["role"]), content=message["content"]
        )
        for message in messages
    ]
    return "".join(lines) + rendering.closing


def _apply_template(
    messages: list[dict[str, Any]],
    rendering: ChatTemplate,
    tokenizer: Tokenizer,
    variables: Mapping[str, Any],
) -> str:
    if rendering.jinja is None and not tokenizer.chat_template:
        raise ChatTemplateError(
            f"the {rendering.of} model's tokenizer has no chat template; pass a plain string, "
            "or PromptOptions(chat_template=ChatTemplate(of=...)) of a member that has one, or ChatTemplate(jinja=...)"
        )
    arguments: dict[str, Any] = {"add_generation_prompt": True, **variables}
    if rendering.jinja is not None:
        arguments["chat_template"] = rendering.jinja
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **arguments))
    except Exception as error:  # a template is foreign code: it can raise anything
        raise ChatTemplateError(f"the chat template refused these messages: {error}") from error


def _checked_messages(prompt: Any, controls: Sequence[str]) -> list[dict[str, Any]]:
    """A copy of the messages, each with a role and text content, in which control tokens are broken up wherever they stand."""
    messages: list[dict[str, Any]] = []
    for position, message in enumerate(prompt):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ChatTemplateError(f'message {position} must be a mapping with "role" and "content", got {message!r}')
        content = neutralise(_content_text(message.get("content"), position), controls)
        further = {name: own for name, own in message.items() if name not in ("role", "content")}
        messages.append({"role": message["role"], "content": content, **neutralise(further, controls)})
    return messages


def _content_text(content: Any, position: int) -> str:
    """Content as text: a string, None (an assistant turn that only calls tools), or a list of text parts."""
    match content:
        case str():
            return content
        case None:
            return ""
        case list() if all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
            return "".join(part["text"] for part in content)
    raise ChatTemplateError(
        f'message {position}: content must be a string or a list of {{"type": "text", "text": ...}} parts, got {content!r}'
    )
