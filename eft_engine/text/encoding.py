"""Texts to token ids for every thread: one at a time, which is all that tokenizers allow, and long texts beside short ones."""

from __future__ import annotations

import threading

from eft_engine.errors import ContextOverflowError
from eft_engine.text.shortest import Shortest
from eft_engine.text.tokenizer import Tokenizer

LONG = 64 * 1024
"""Characters from which on a text is long: a tokenizer reads a million of them a second."""


class Encoder:
    """Turns at the tokenizers of one engine.

    Long texts have a turn of their own, so that short ones do not stand behind them. A fast tokenizer, which is all Rust, may read
    two texts at once; others may not.

    Attributes:
        turn: whoever uses a tokenizer in another way holds it.

    Args:
        lock: what keeps others away from the tokenizers; None: one of its own.
    """

    def __init__(self, lock: threading.Lock | None = None) -> None:
        self.turn = lock or threading.Lock()
        self._long = threading.Lock()

    def encode(
        self, tokenizer: Tokenizer, text: str, *, add_special_tokens: bool, context_len: int | None = None
    ) -> list[int]:
        """Token ids of a text.

        Args:
            tokenizer: whose ids.
            text: what is encoded.
            add_special_tokens: also those around it.
            context_len: most tokens that anybody could read; None: no bound.

        Raises:
            ContextOverflowError: it is certain to have more; then it is not read at all.
        """
        if context_len is not None and len(text) > context_len:
            self._check_length(tokenizer, text, context_len)
        is_fast = bool(getattr(tokenizer, "is_fast", False))
        with self._long if is_fast and len(text) >= LONG else self.turn:
            return tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def _check_length(self, tokenizer: Tokenizer, text: str, context_len: int) -> None:
        with self.turn:
            shortest = Shortest.of(tokenizer)
        at_least = 0 if shortest is None else shortest.at_least(text, most=context_len)
        if at_least > context_len:
            raise ContextOverflowError(
                f"the prompt has {len(text)} characters, which are {at_least} tokens or more, and the context holds {context_len}; "
                "shorten the prompt",
                prompt_len=at_least,
                context_len=context_len,
            )
