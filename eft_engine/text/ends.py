"""Which tokens end a turn, who says so, and whether the chat template agrees.

A model's files name the ends of its texts in several places, and each leaves some out: the generation configuration has the end
of a turn, the tokenizer that of a document, a fine-tune changes one of the two. So whatever any member names ends a text.

Some are listed and not used. A token that is never generated ends nothing, nor does one that is another token for the tuned model,
whose tokens texts are written in (`tuned_only_tokens="keep"`). And many configurations carry an id that was a default of their
class, for the vocabulary of another model: where the tokenizer reads it as ordinary text (Llama's 2 is "#" elsewhere) and something
else of the member names an end, it is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from eft_engine.outputs import TurnEnd
from eft_engine.text.tokenizer import Tokenizer, control_tokens, skipped_tokens
from eft_engine.text.vocabulary import SharedVocabulary

PROBE = "The answer is four."
"""An assistant's turn that no template has a reason to change."""

WHAT_TO_DO = (
    "stop there with SamplingParams(stop_token_ids=[...]) or stop=[...] in every call, or name it for good as eos_token_id in the "
    "generation_config.json of the tuned model"
)

KEEP_IT = (
    "not all members have it, so that it is never generated: keep it with EngineConfig(tuned_only_tokens='keep'), and name it as "
    "eos_token_id in the generation_config.json of the tuned model"
)
RESIZE_IT = (
    "no model of the trio has such a token, only the tokenizer: give the tokenizer that the tuned model was trained with, or the "
    "model whose embeddings were resized for it"
)

NEVER_GENERATED = "never generated: some member does not have this token"
OTHER_TOKEN = "another token for the tuned model"
ORDINARY_TEXT = "ordinary text for its tokenizer, and a configuration alone names it"


@dataclass(frozen=True)
class NamedEnd:
    """A token that a member names as an end. `named_by` is the file or the object that does."""

    token_id: int
    named_by: str
    is_sure: bool = True
    """False: it may be a default of the configuration's class, which nobody meant."""


@dataclass(frozen=True)
class MemberEnds:
    """What one member names, and the tokenizer that it reads."""

    named: tuple[NamedEnd, ...]
    tokenizer: Tokenizer

    @cached_property
    def used(self) -> frozenset[int]:
        """The ids that end its texts, whether or not the trio can generate them."""
        ids = {end.token_id for end in self.named}
        sure = {end.token_id for end in self.named if end.is_sure}
        if ids == sure:
            return frozenset(ids)
        controls = control_tokens(self.tokenizer)
        sure |= {token_id for token_id, text in texts_of(self.tokenizer, ids).items() if text in controls}
        return frozenset(sure or ids)


@dataclass(frozen=True)
class TrioEnds:
    """What ends texts of a trio.

    `table` has every token that a member names, used or not. `warnings` are sentences for people: why texts may not end.
    """

    table: tuple[TurnEnd, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def ids(self) -> frozenset[int]:
        """The tokens that end a text, all of which can be generated."""
        return frozenset(end.token_id for end in self.table if end.unused is None)


def ends_of_tokenizer(tokenizer: Tokenizer) -> tuple[NamedEnd, ...]:
    """The end that a tokenizer names, if it names one."""
    token_id = getattr(tokenizer, "eos_token_id", None)
    return (NamedEnd(token_id, "tokenizer"),) if isinstance(token_id, int) else ()


def trio_ends(members: Mapping[str, MemberEnds], vocabulary: SharedVocabulary, *, chat: Tokenizer) -> TrioEnds:
    """The union of what all members name.

    Args:
        members: by name, in the order in which they are to be told.
        vocabulary: what the trio can generate.
        chat: the tokenizer whose template messages go through.
    """
    named: dict[int, dict[str, tuple[str, ...]]] = {}
    for name, member in members.items():
        for end in member.named:
            own = named.setdefault(end.token_id, {})
            own[name] = tuple(dict.fromkeys((*own.get(name, ()), end.named_by)))
    texts: dict[int, str] = {}
    for tokenizer in _distinct([chat, *(member.tokenizer for member in members.values())]):
        missing = named.keys() - texts.keys()
        texts |= texts_of(tokenizer, missing) if missing else {}
    table = tuple(
        TurnEnd(token_id, texts.get(token_id, ""), named[token_id], _why_unused(token_id, members, vocabulary))
        for token_id in sorted(named)
    )
    warning = _why_texts_may_not_end(TrioEnds(table), chat, vocabulary)
    return TrioEnds(table, (warning,) if warning else ())


def _why_unused(token_id: int, members: Mapping[str, MemberEnds], vocabulary: SharedVocabulary) -> str | None:
    if not vocabulary.generates(token_id):
        return NEVER_GENERATED
    meant_by = [name for name, member in members.items() if token_id in member.used]
    if not meant_by:
        return ORDINARY_TEXT
    known = [name for name in meant_by if token_id not in vocabulary.unknown_ids.get(name, ())]
    return None if known else OTHER_TOKEN


def texts_of(tokenizer: Tokenizer, token_ids: Iterable[int]) -> dict[int, str]:
    """The texts of these ids, as far as the tokenizer has them."""
    wanted = set(token_ids)
    return {token_id: text for text, token_id in tokenizer.get_vocab().items() if token_id in wanted}


def _why_texts_may_not_end(ends: TrioEnds, chat: Tokenizer, vocabulary: SharedVocabulary) -> str | None:
    endings = texts_behind_answers(chat)
    if not endings:
        if ends.ids:
            return None
        return f"no member names a token that ends a text, so texts run on to max_tokens; {WHAT_TO_DO}"
    vocab = chat.get_vocab()
    tokens = [[text for text in _tokens_in(ending, chat) if text in vocab] for ending in endings]
    if any(vocab[text] in ends.ids for written in tokens for text in written):
        return None
    known = ", ".join(f"{end.token!r} ({end.token_id})" for end in ends.table if end.unused is None) or "none"
    if not tokens[0]:
        return (
            f"the chat template ends an answer with {endings[0]!r}, which is no token of the tokenizer, and the tokens that end a "
            f"text are {known}: answers may run on to max_tokens; stop there with SamplingParams(stop=[{endings[0]!r}])"
        )
    written = " and ".join(f"{text!r} ({vocab[text]})" for text in tokens[0])
    return (
        f"the chat template ends an answer with {written}, and the tokens that end a text are {known}: answers may run on to "
        f"max_tokens; {_what_to_do([vocab[text] for text in tokens[0]], vocabulary)}"
    )


def _what_to_do(token_ids: Sequence[int], vocabulary: SharedVocabulary) -> str:
    """About tokens that end an answer in the template and in no file."""
    if any(vocabulary.generates(token_id) for token_id in token_ids):
        return WHAT_TO_DO
    if any(token_id in unknown for unknown in vocabulary.unknown_ids.values() for token_id in token_ids):
        return KEEP_IT
    return RESIZE_IT


def texts_behind_answers(tokenizer: Tokenizer) -> list[str]:
    """What the chat template writes behind the last answer of a conversation, without the space around it.

    Empty where it writes nothing, where there is no template, and where the template does not take a conversation that ends so.
    Some templates end an answer as the model does only where they are given its thought.
    """
    if not getattr(tokenizer, "chat_template", None):
        return []
    system = {"role": "system", "content": "You add numbers."}
    question = {"role": "user", "content": "What is two and two?"}
    answer = {"role": "assistant", "content": PROBE}
    with_thought = {**answer, "thinking": "Two and two."}
    endings: list[str] = []
    for turns in ([question, answer], [question, with_thought], [system, question, answer]):
        if endings and turns[0] is system:  # only where a template takes no conversation without one
            break
        try:
            text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False))
        except Exception:  # a template is foreign code, and says nothing about this conversation
            continue
        _, found, behind = text.rpartition(PROBE)
        if found and behind.strip():
            endings.append(behind.strip())
    return endings


def _tokens_in(text: str, tokenizer: Tokenizer) -> list[str]:
    """The control tokens that are written in a text, in their order."""
    known = sorted({*control_tokens(tokenizer), *skipped_tokens(tokenizer).values()}, key=len, reverse=True)
    return re.findall("|".join(map(re.escape, known)), text) if known else []


def _distinct(tokenizers: Iterable[Tokenizer]) -> Sequence[Tokenizer]:
    return list({id(own): own for own in tokenizers}.values())
