"""The part of a transformers tokenizer that the engine uses, as a protocol: any object with these methods will do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from eft_engine.text.control import control_texts


class Tokenizer(Protocol):
    """What `text/` needs of a tokenizer; every `PreTrainedTokenizerBase` has it."""

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the control tokens that have a name."""

    @property
    def all_special_tokens(self) -> list[str]:
        """Texts of the control tokens that have a name (start, end, padding, ...)."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """Tokens added to the trained vocabulary by id; each has `content` and `special` (True: a control token)."""

    @property
    def chat_template(self) -> Any:
        """Jinja text of the chat template, a mapping of several, or None."""

    def get_vocab(self) -> dict[str, int]:
        """Token text to id, added tokens included."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> Any:
        """Text of token ids."""

    def apply_chat_template(
        self, conversation: Sequence[Mapping[str, Any]], *, tokenize: bool, **variables: Any
    ) -> Any:
        """Conversation rendered as text."""


def control_tokens(tokenizer: Tokenizer) -> set[str]:
    """Texts of all control tokens: with a name, with no more than a flag, and those that build conversations without a flag.

    Many tokenizers name their start and end token alone, and flag what opens a turn (Llama 3: `<|start_header_id|>`); others flag
    not even that (DeepSeek), or not what opens a tool call (Qwen).
    """
    try:
        added = [(str(token.content), bool(token.special)) for token in tokenizer.added_tokens_decoder.values()]
    except NotImplementedError:  # mistral-common's tokenizer, which names all of them
        added = []
    template = getattr(tokenizer, "chat_template", None)
    templates = template.values() if isinstance(template, Mapping) else [template]
    return {*tokenizer.all_special_tokens, *control_texts(added, [own for own in templates if isinstance(own, str)])}


def skipped_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    """Texts of the tokens that decoding leaves out with `skip_special_tokens`, by id: those with a name, and all others that are
    flagged.
    """
    skipped = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    try:
        added = tokenizer.added_tokens_decoder
    except NotImplementedError:  # mistral-common's tokenizer, which names all of them
        return skipped
    return skipped | {token_id: str(token.content) for token_id, token in added.items() if token.special}
