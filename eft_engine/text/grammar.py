"""Constrained decoding over llguidance: which tokens may come next.

A compiled grammar is a state that only committed tokens advance. Drafts are tried on it and taken back by exactly their number.
End-of-sequence tokens are never fed to the matcher: it would not count them, and a later rollback would remove real tokens.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, cast

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from eft_engine.config import Grammar, JsonSchema, Lark, Regex
from eft_engine.errors import InvalidGrammarError
from eft_engine.text.closing import Closing
from eft_engine.text.endings import Place
from eft_engine.text.landmarks import Landmarks
from eft_engine.text.spelling import Alphabet
from eft_engine.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

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
        masked_ids: further tokens that are never generated.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        width: int,
        eos_token_ids: frozenset[int],
        masked_ids: Collection[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._width = width
        self._eos_token_ids = eos_token_ids
        self._masked_ids = masked_ids
        self._lock = threading.Lock()

    def compile(self, grammar: Grammar) -> GrammarState:
        """A fresh state.

        Raises:
            InvalidGrammarError: with llguidance's reason.
        """
        with self._lock:  # the first use builds a token trie, about a second
            ll_tokenizer = self._ll_tokenizer
        return GrammarState(_matcher(ll_tokenizer, grammar), eos_token_ids=self._eos_token_ids, width=self._width)

    def closing(self, grammar: Grammar, *, max_tokens: int, never: Collection[int] = ()) -> Closing:
        """What brings a text of the grammar to its end inside `max_tokens`, without writing the tokens of `never`.

        Raises:
            InvalidGrammarError: with llguidance's reason.
        """
        with self._lock:  # the first use reads the whole vocabulary, some tenths of a second
            ll_tokenizer, alphabet = self._ll_tokenizer, self._alphabet
        by_symbol = Lark(grammar=alphabet.translated(grammar.grammar)) if isinstance(grammar, Lark) else grammar
        return Closing(
            Place(_matcher(ll_tokenizer, grammar), _matcher(alphabet.ll_tokenizer, by_symbol)),
            alphabet=alphabet,
            landmarks=Landmarks.of(grammar, alphabet),
            max_tokens=max_tokens,
            eos_token_ids=self._eos_token_ids,
            never=never,
        )

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
    def _alphabet(self) -> Alphabet:
        return Alphabet(
            self._ll_tokenizer, width=self._width, masked_ids=self._masked_ids, eos_token_ids=self._eos_token_ids
        )


def _matcher(ll_tokenizer: LLTokenizer, grammar: Grammar) -> LLMatcher:
    matcher = LLMatcher(ll_tokenizer, _source(grammar), log_level=0, limits=LLParserLimits(verbose_errors=False))
    if matcher.is_error():
        raise InvalidGrammarError(f"this {grammar.kind} cannot be enforced: {_reason(matcher)}")
    return matcher


def _reason(matcher: LLMatcher) -> str:
    """Why a matcher stopped, without the place where llguidance would show its state."""
    return matcher.get_error().partition("\n<")[0]


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

    def __init__(self, matcher: LLMatcher, *, eos_token_ids: frozenset[int], width: int) -> None:
        self._matcher = matcher
        self._eos_token_ids = eos_token_ids
        self._width = width

    @property
    def is_complete(self) -> bool:
        """The text is a sentence, and nothing may follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    @property
    def is_accepting(self) -> bool:
        """The text is a sentence; more may follow."""
        return self.is_complete or bool(self._matcher.is_accepting())

    def ends(self, token_id: int) -> bool:
        """Whether this is an end-of-sequence token."""
        return token_id in self._eos_token_ids

    def commit(self, token_id: int) -> None:
        """Advance by a token that the masks allowed; an end-of-sequence token changes nothing."""
        if not self.ends(token_id) and not self._matcher.consume_token(token_id):
            self._refuse()

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
        mask = bytes(self._matcher.compute_bitmask())
        if self._matcher.is_error():  # the mask is then that of the end, and the text would look whole
            self._refuse()
        return mask

    def _refuse(self) -> NoReturn:
        raise InvalidGrammarError(f"the text cannot be followed any further in its grammar: {_reason(self._matcher)}")

    @contextmanager
    def _after(self, token_ids: Sequence[int]) -> Iterator[None]:
        taken = self._matcher.try_consume_tokens(list(token_ids))
        try:
            if taken != len(token_ids) and self._matcher.is_error():  # it ran out of what a grammar may take
                self._refuse()
            assert taken == len(token_ids), "tokens that are tried are valid"
            yield
        finally:
            if taken:
                self._matcher.rollback(taken)
