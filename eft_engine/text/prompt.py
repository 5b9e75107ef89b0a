"""Prompts to token ids, for every member that may need its own rendering.

A string is a raw prompt. Messages go through a chat template (by default the tuned model's), once, and every member reads the
same ids, unless `PromptOptions` gives a member its own rendering. A member that has not all tokens of the others reads the same
text in tokens of its own: `<|im_start|>` is then a few ordinary ones.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from eft_engine.config import ChatTemplate, PlainText, Prompt, PromptOptions, Rendering, TokenIds, Verbatim
from eft_engine.errors import ChatTemplateError, EFTError, EmptyPromptError
from eft_engine.overdue import at_most
from eft_engine.text.control import neutralise
from eft_engine.text.encoding import Encoder
from eft_engine.text.tokenizer import Tokenizer, control_tokens

RENDERING_SECONDS = 5.0
"""Most time of a thread that a chat template may take."""


@dataclass(frozen=True)
class PromptTokenizers:
    """Whose tokenizer renders and encodes: the base's, and those of the first pair (all of one vocabulary, by proof).

    `own` has those of members that cannot read every id of the others, and `unknown` these ids. `keeps_tuned`: texts may
    have tokens that only tuned members have, so that theirs is the tokenizer that can read them.
    """

    base: Tokenizer
    tuned: Tokenizer
    reference: Tokenizer
    own: Mapping[str, Tokenizer] = field(default_factory=dict)
    unknown: Mapping[str, frozenset[int]] = field(default_factory=dict)
    keeps_tuned: bool = False

    @property
    def output(self) -> Tokenizer:
        """What reads generated tokens."""
        return self.tuned if self.keeps_tuned else self.base

    def of(self, role: str) -> Tokenizer:
        """The tokenizer of base, tuned or reference."""
        return {"base": self.base, "tuned": self.tuned, "reference": self.reference}[role]

    @functools.cached_property
    def control_tokens(self) -> list[str]:
        """Texts that any of them reads as a control token, the longest first. Gathered once: some tokenizers add thousands."""
        tokenizers = (self.base, self.tuned, self.reference, *self.own.values())
        texts = set().union(*(control_tokens(own) for own in tokenizers))
        return sorted(texts, key=lambda text: (-len(text), text))


@dataclass(frozen=True)
class RenderedPrompt:
    """Token ids of one prompt as the base, the tuned and the reference models read it (often one and the same list).

    `own` has by name the members that read it otherwise.
    """

    base: tuple[int, ...]
    tuned: tuple[int, ...]
    reference: tuple[int, ...]
    own: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def of(self, member: str) -> tuple[int, ...]:
        """What a member reads."""
        if member in self.own:
            return self.own[member]
        return {"base": self.base, "tuned": self.tuned, "reference": self.reference}[_role(member)]

    @property
    def max_len(self) -> int:
        """Tokens of the longest."""
        return max(map(len, (self.base, self.tuned, self.reference, *self.own.values())))


def _role(member: str) -> str:
    """`base`, `tuned` or `reference`, of a member's name."""
    return member.rpartition(".")[2]


def render_prompt(
    prompt: Prompt,
    options: PromptOptions,
    tokenizers: PromptTokenizers,
    *,
    encoder: Encoder | None = None,
    context_len: int | None = None,
) -> RenderedPrompt:
    """Token ids of `prompt` for each role, and for members with tokens of their own.

    Args:
        prompt: a text, token ids or messages.
        options: how it is rendered.
        tokenizers: whose ids.
        encoder: turns at the tokenizers; None: nobody else uses them.
        context_len: most tokens that any member could read; None: no bound.

    Raises:
        EmptyPromptError: no text or no messages.
        ChatTemplateError: a message is malformed, there is no chat template, or the template failed or took too long.
        ContextOverflowError: the prompt is certain to be longer than `context_len`; then it is not tokenised.
    """
    encoder = encoder or Encoder()
    if not prompt:
        raise EmptyPromptError("the prompt is empty; give a text or at least one message")
    controls = tokenizers.control_tokens if options.control_tokens == "neutralise" else []
    messages = None if isinstance(prompt, str | TokenIds) else _checked_messages(prompt, controls)
    options = options.model_copy(update={"template_variables": neutralise(options.template_variables, controls)})
    texts: dict[str, _Text] = {}
    encoded: dict[tuple[_Text, int], tuple[int, ...]] = {}

    def encode(role: str, own: Tokenizer | None = None, name: str = "") -> tuple[int, ...]:
        rendering: Rendering = getattr(options, role) or options.chat_template
        if isinstance(prompt, TokenIds) and not isinstance(rendering, Verbatim):
            if own is None:
                return prompt.ids
            with encoder.turn:
                return _spelled(prompt.ids, own, tokenizers, name)
        key = f"{type(rendering).__name__} {rendering.model_dump_json()}"
        if key not in texts:
            texts[key] = _render(prompt, messages, rendering, options, tokenizers, encoder)
        text = texts[key]
        tokenizer = own or tokenizers.of(role if tokenizers.own else text.rendered_by)
        if (text, id(tokenizer)) not in encoded:
            read = functools.partial(encoder.encode, context_len=context_len)
            encoded[text, id(tokenizer)] = text.encode(tokenizer, lead=tokenizers.base, read=read)
        return encoded[text, id(tokenizer)]

    return RenderedPrompt(
        encode("base"),
        encode("tuned"),
        encode("reference"),
        {name: encode(_role(name), own, name) for name, own in tokenizers.own.items()},
    )


def _spelled(token_ids: Sequence[int], own: Tokenizer, tokenizers: PromptTokenizers, name: str) -> tuple[int, ...]:
    """Ids as a member reads them that does not know all of them: the text of those in tokens of its own."""
    unknown = tokenizers.unknown.get(name, frozenset())
    spelled: list[int] = []
    for token_id in token_ids:
        if token_id in unknown:
            text = str(tokenizers.output.decode([token_id], skip_special_tokens=False))
            spelled += own.encode(text, add_special_tokens=False)
        else:
            spelled.append(token_id)
    return tuple(spelled)


class Read(Protocol):
    """Token ids of a text."""

    def __call__(self, tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
        """As `Tokenizer.encode`."""


@dataclass(frozen=True)
class _Text:
    """A prompt as text. `rendered_by`: whose tokenizer it is for."""

    text: str
    add_special_tokens: bool
    rendered_by: Literal["base", "tuned", "reference"] = "base"

    def encode(self, tokenizer: Tokenizer, *, lead: Tokenizer, read: Read) -> tuple[int, ...]:
        """Token ids; where special tokens are wanted, those that `lead` puts around the text."""
        around = self._special_around(lead, read) if self.add_special_tokens and tokenizer is not lead else None
        if around is None:
            token_ids = tuple(read(tokenizer, self.text, add_special_tokens=self.add_special_tokens))
        else:
            before, behind = around
            token_ids = (*before, *read(tokenizer, self.text, add_special_tokens=False), *behind)
        if not token_ids:
            raise EmptyPromptError(f"the prompt {self.text!r} has no tokens; give a text with at least one")
        return token_ids

    def _special_around(self, lead: Tokenizer, read: Read) -> tuple[list[int], list[int]] | None:
        """What `lead` puts before and behind the text; None where its tokens of the text are others then."""
        plain = read(lead, self.text, add_special_tokens=False)
        whole = read(lead, self.text, add_special_tokens=True)
        for start in range(len(whole) - len(plain) + 1):
            if whole[start : start + len(plain)] == plain:
                return whole[:start], whole[start + len(plain) :]
        return None


def _render(
    prompt: Prompt,
    messages: list[dict[str, Any]] | None,
    rendering: Rendering,
    options: PromptOptions,
    tokenizers: PromptTokenizers,
    encoder: Encoder,
) -> _Text:
    match rendering:
        case Verbatim(text=text):
            return _Text(text, options.add_special_tokens)
        case _ if messages is None:
            assert isinstance(prompt, str), "a prompt without messages is a string"
            return _Text(prompt, options.add_special_tokens)
        case PlainText():
            return _Text(_plain_text(messages, rendering), add_special_tokens=True)
        case ChatTemplate(of=role):
            tokenizer = tokenizers.of(role)
            is_read_only = bool(getattr(tokenizer, "is_fast", False))
            with contextlib.nullcontext() if is_read_only else encoder.turn:
                text = _apply_template(messages, rendering, tokenizer, options.template_variables)
            return _Text(text, add_special_tokens=False, rendered_by=role)  # the template writes them itself


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
        with at_most(RENDERING_SECONDS, _took_too_long):
            return str(tokenizer.apply_chat_template(messages, tokenize=False, **arguments))
    except EFTError:
        raise
    except Exception as error:  # a template is foreign code: it can raise anything
        raise ChatTemplateError(f"the chat template refused these messages: {error}") from error


def _took_too_long() -> ChatTemplateError:
    return ChatTemplateError(
        f"the chat template did not end within {RENDERING_SECONDS:g} s of work; send fewer or shorter messages, tools and variables"
    )


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
