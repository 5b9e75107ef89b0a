"""Constrained decoding over llguidance: which tokens may come next, and how to end in time.

A compiled grammar is a state that only committed tokens advance. Drafts are tried on it and taken back by exactly their number.
End-of-sequence tokens are never fed to the matcher: it would not count them, and a later rollback would remove real tokens.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from llguidance import LLMatcher, LLTokenizer

from eft_engine.config import Grammar, JsonSchema, Lark, Regex
from eft_engine.errors import InvalidGrammarError
from eft_engine.text.tokenizer import Tokenizer, control_tokens

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

CLOSERS = (
    "}]}",
    "}}",
    "]}",
    "}",
    "]",
    '"}',
    '"]',
    '""',
    '"',
    ",",
    *"0123456789",
    "null",
    "true",
    "false",
    *"ntfea",
    ":",
    " ",
)
"""Texts of tokens that bring a JSON value to its end, the best first; tried when the budget runs short. A comma ends a number
that a further digit would only make longer."""

ONLY_IN_STRINGS, QUOTE = "#", '"'
"""Where the first may come, the text is inside a string, and the second ends it."""

WHITESPACE: dict[str, dict[str, Any]] = {
    "none": {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"},
    "spaces": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
    "any": {"whitespace_flexible": True},
}


class GrammarCompiler:
    """Compiles grammars for one tokenizer. May be used from any thread.

    Args:
        tokenizer: a fast transformers tokenizer.
        width: token ids from here on are never generated.
        eos_token_ids: tokens that may end a complete text.
    """

    def __init__(self, tokenizer: Tokenizer, *, width: int, eos_token_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._width = width
        self._eos_token_ids = eos_token_ids
        self._lock = threading.Lock()

    def compile(self, grammar: Grammar) -> GrammarState:
        """A fresh state.

        Raises:
            InvalidGrammarError: with llguidance's reason.
        """
        with self._lock:  # the first use builds a token trie, about a second
            ll_tokenizer, closers = self._ll_tokenizer, self._closers
        source = _source(grammar)
        matcher = LLMatcher(ll_tokenizer, source, log_level=0)
        if matcher.is_error():
            raise InvalidGrammarError(f"this {grammar.kind} cannot be enforced: {matcher.get_error()}")
        return GrammarState(matcher, closers=closers, eos_token_ids=self._eos_token_ids, width=self._width)

    @functools.cached_property
    def _ll_tokenizer(self) -> LLTokenizer:
        import llguidance.hf  # brings transformers, which only engines need

        n_vocab = max([self._width, *(token_id + 1 for token_id in self._tokenizer.get_vocab().values())])
        eos = sorted(self._eos_token_ids)
        try:
            return llguidance.hf.from_tokenizer(self._tokenizer, n_vocab=n_vocab, eos_token=eos or None)
        except Exception as error:  # a tokenizer of a kind that llguidance cannot read: it raises what it likes
            raise InvalidGrammarError(f"grammars need a fast tokenizer that llguidance can read: {error}") from error

    @functools.cached_property
    def _closers(self) -> Closers:
        vocab = self._tokenizer.get_vocab()
        marker, quote = vocab.get(ONLY_IN_STRINGS), vocab.get(QUOTE)
        structure = [vocab[text] for text in CLOSERS if text in vocab]
        control = sorted(vocab[text] for text in control_tokens(self._tokenizer) if text in vocab)
        ends = tuple(token_id for token_id in control if token_id not in self._eos_token_ids)
        in_string = structure if quote is None else [quote, *structure]
        return Closers(marker, (*ends, *in_string), (*ends, *structure))


@dataclass(frozen=True)
class Closers:
    """Token ids of control tokens and of `CLOSERS`, in the order in which they are tried inside a string (where `marker` may come)
    and outside.
    """

    marker: int | None
    in_string: tuple[int, ...]
    in_structure: tuple[int, ...]


def _source(grammar: Grammar) -> str:
    try:
        match grammar:
            case JsonSchema(json_schema=schema, whitespace=whitespace):
                text = json.dumps(schema, ensure_ascii=False)
                overrides = cast("JsonCompileOptions", WHITESPACE[whitespace])
                return str(LLMatcher.grammar_from_json_schema(text, overrides=overrides))
            case Regex(pattern=pattern):
                return str(LLMatcher.grammar_from_regex(pattern))
            case Lark(grammar=text):
                return str(LLMatcher.grammar_from_lark(text))
    except (TypeError, ValueError) as error:
        raise InvalidGrammarError(f"this {grammar.kind} cannot be read: {error}") from error


class GrammarState:
    """Where one text stands in its grammar. Belongs to the engine's thread once its request is submitted."""

    def __init__(self, matcher: LLMatcher, *, closers: Closers, eos_token_ids: frozenset[int], width: int) -> None:
        self._matcher = matcher
        self._closers = closers
        self._eos_token_ids = eos_token_ids
        self._width = width

    @property
    def is_complete(self) -> bool:
        """The text is a sentence, and nothing may follow."""
        return bool(self._matcher.is_stopped())

    @property
    def is_accepting(self) -> bool:
        """The text is a sentence; more may follow."""
        return bool(self._matcher.is_stopped() or self._matcher.is_accepting())

    def ends(self, token_id: int) -> bool:
        """Whether this is an end-of-sequence token."""
        return token_id in self._eos_token_ids

    def commit(self, token_id: int) -> None:
        """Advance by a token that the masks allowed; an end-of-sequence token changes nothing."""
        if not self.ends(token_id):
            assert self._matcher.consume_token(token_id), (
                f"token {token_id} was not allowed: {self._matcher.get_error()}"
            )

    def valid_prefix(self, token_ids: Sequence[int]) -> list[int]:
        """The first of these tokens that may follow, none of which ends the text."""
        usable = []
        for token_id in token_ids:
            if token_id in self._eos_token_ids or token_id >= self._width:
                break
            usable.append(token_id)
        return usable[: self._matcher.validate_tokens(usable)] if usable and not self.is_complete else []

    def forced(self) -> list[int]:
        """Tokens that the grammar leaves no choice about, as the tokenizer would write them."""
        return [] if self.is_complete else self.valid_prefix(self._matcher.compute_ff_tokens())

    def masks(self, drafts: Sequence[int]) -> list[bytes]:
        """What may come after 0, 1, ... all of `drafts` (valid ones): a bit per token id, the lowest bit of a byte first.

        What comes after an end-of-sequence token is never looked at; its mask is that of the end.
        """
        masks = [self._mask()]
        for count, token_id in enumerate(drafts, start=1):
            if self.ends(token_id):
                return masks + masks[-1:] * (len(drafts) + 1 - count)
            with self._after(drafts[:count]):
                masks.append(self._mask())
        return masks

    def _mask(self) -> bytes:
        return bytes(self._matcher.compute_bitmask())

    @contextmanager
    def _after(self, token_ids: Sequence[int]) -> Iterator[None]:
        taken = self._matcher.try_consume_tokens(list(token_ids))
        try:
            assert taken == len(token_ids), "tokens that are tried are valid"
            yield
        finally:
            if taken:
                self._matcher.rollback(taken)

    def in_time(self, drafts: Sequence[int], token_id: int, *, remaining: int) -> int:
        """`token_id`, or, when after it the text could not be ended inside the budget, a token on the way to an end.

        Args:
            drafts: valid tokens that come before it.
            token_id: an allowed token.
            remaining: tokens that may still be generated, this one included.
        """
        if remaining > self._horizon or any(self.ends(own) for own in (*drafts, token_id)):
            return token_id
        with self._after([*drafts, token_id]):
            if self._way_out(remaining - 1) is not None:
                return token_id
        with self._after(drafts):
            way_out = self._way_out(remaining)
        if way_out is None:
            return token_id
        return way_out[0] if way_out else min(self._eos_token_ids, default=token_id)

    @functools.cached_property
    def _horizon(self) -> int:
        """From how many remaining tokens on an end is looked for."""
        return max(64, 2 * len(self._way_out(256) or []))

    def _way_out(self, max_len: int) -> list[int] | None:
        """At most `max_len` tokens to a complete text, [] where it is one; None when none were found. Not the fewest there are:
        what is forced, else the best closer, else the first token that is allowed.
        """
        way: list[int] = []
        try:
            while not self.is_accepting:
                step = self.forced() or self._closing_token()
                if len(way) + len(step) > max_len:
                    return None
                taken = self._matcher.try_consume_tokens(step)
                assert taken == len(step), "a way out consists of allowed tokens"
                way += step
            return way
        finally:
            if way:
                self._matcher.rollback(len(way))

    def _closing_token(self) -> list[int]:
        mask = self._mask()
        closers = self._closers
        in_string = closers.marker is not None and _is_set(mask, closers.marker)
        for token_id in closers.in_string if in_string else closers.in_structure:
            if _is_set(mask, token_id):
                return [token_id]
        first = next(index for index, byte in enumerate(mask) if byte)
        return [8 * first + (mask[first] & -mask[first]).bit_length() - 1]


def _is_set(mask: bytes, token_id: int) -> bool:
    return bool(mask[token_id >> 3] >> (token_id & 7) & 1)
