"""The part of a transformers tokenizer that the engine uses, as a protocol: any object with these methods will do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Tokenizer(Protocol):
    """What `text/` needs of a tokenizer; every `PreTrainedTokenizerBase` has it."""

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the control tokens."""

    @property
    def all_special_tokens(self) -> list[str]:
        """Texts of the control tokens."""

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
