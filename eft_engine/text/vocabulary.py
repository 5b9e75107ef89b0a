"""Proof that all members mean the same token by the same id.

Adding log-probabilities of different models is meaningful only id by id. Model families make that harder than it looks: logits
are padded to round widths, checkpoints of one family have different paddings, a fine-tune adds a token or renames a reserved
one. So every id is classified:

    shared    every member has a token there, and it is the same one       composed
    kept      all tuned members have the same token there, others do not   on request: the tuned models' own probability
    missing   at least one member has no token there (padding, additions)  masked: never generated
    differs   two members have different tokens there                      refused (or masked, on request, if rare)

A fine-tune that adds the tokens of its chat format is common, and the one that ends a turn is then a token that only the tuned
model has. Such a trio is refused unless its tokens are kept: its texts would have no end.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from eft_engine.errors import TokenDifference, VocabularyMismatchError
from eft_engine.text.tokenizer import Tokenizer

MAX_MASKED_DIFFERENCES = 0.01
"""Share of ids that may differ under `mismatched_tokens="mask"`; beyond it the vocabularies are simply different ones."""

MIN_SHARED = 0.9
"""Share of the smallest vocabulary that all members must have in common; below it the members are not one family."""

NUM_NAMED_DIFFERENCES = 5


@dataclass(frozen=True)
class MemberVocabulary:
    """One member's view: its tokenizer, the number of logits its model returns, and the tokens that end its texts."""

    tokenizer: Tokenizer
    logits_width: int
    end_ids: frozenset[int] = frozenset()


@dataclass(frozen=True)
class SharedVocabulary:
    """The ids that can be generated.

    `width` is one above the largest of them: logits are cut to it. `masked_ids` are the ids below `width` that must never be
    generated. `kept` are those that only the tuned members, all of them, are sure to have, with their texts. `differences` are the
    ids that mean different tokens: masked, kept or cut off (empty unless that was asked for). `unknown_ids` has by member the ids
    that some member has and this one has not, or means otherwise: it cannot read them. `spellings` has by member how it reads those
    of them that are kept: in tokens of its own.
    """

    width: int
    masked_ids: tuple[int, ...]
    differences: tuple[TokenDifference, ...] = ()
    kept: Mapping[int, str] = field(default_factory=dict)
    unknown_ids: Mapping[str, frozenset[int]] = field(default_factory=dict)
    spellings: Mapping[str, Mapping[int, tuple[int, ...]]] = field(default_factory=dict)

    @property
    def kept_ids(self) -> tuple[int, ...]:
        """The ids of `kept`, in order."""
        return tuple(self.kept)

    @property
    def shared_vocab_size(self) -> int:
        """Number of ids on which all members agree."""
        return self.width - len(self.masked_ids) - len(self.kept)

    def generates(self, token_id: int) -> bool:
        """Whether this token may come in a text."""
        return 0 <= token_id < self.width and token_id not in self._masked

    @functools.cached_property
    def _masked(self) -> frozenset[int]:
        return frozenset(self.masked_ids)


def prove_vocabulary(
    members: Mapping[str, MemberVocabulary],
    *,
    mismatched_tokens: Literal["refuse", "mask"] = "refuse",
    tuned_only_tokens: Literal["refuse", "keep"] = "refuse",
) -> SharedVocabulary:
    """Classify every id of the members' vocabularies.

    Args:
        members: at least one member by name, as `planning.member_names` has them; the first one is named first in messages.
        mismatched_tokens: what to do with ids that mean different tokens. `mask` still refuses when more than 1 % differ.
        tuned_only_tokens: `keep` makes ids that all tuned members agree on, and others lack or mean otherwise, generable.

    Raises:
        VocabularyMismatchError: ids mean different tokens, or too little is shared; it names the first differing ids. Or a token
            that ends texts of a tuned member, or all that end texts of the others, would never be generated.
    """
    tokens = {
        name: {
            token_id: text for text, token_id in member.tokenizer.get_vocab().items() if token_id < member.logits_width
        }
        for name, member in members.items()
    }
    tuned = [vocab for name, vocab in tokens.items() if name.endswith(".tuned")]
    keeps = tuned_only_tokens == "keep" and bool(tuned)
    differences: list[TokenDifference] = []
    num_refused = 0
    shared: list[int] = []
    kept: dict[int, str] = {}
    unshared: dict[int, dict[str, str]] = {}
    all_ids = sorted(set().union(*tokens.values()))
    for token_id in all_ids:
        texts = {name: vocab[token_id] for name, vocab in tokens.items() if token_id in vocab}
        differs = len(set(texts.values())) > 1
        if differs:
            differences.append(TokenDifference(token_id, tuple(texts.items())))
        elif len(texts) == len(tokens):
            shared.append(token_id)
            continue
        unshared[token_id] = texts
        if keeps and len({vocab.get(token_id) for vocab in tuned}) == 1 and token_id in tuned[0]:
            kept[token_id] = tuned[0][token_id]
        elif differs:
            num_refused += 1

    allowed = int(MAX_MASKED_DIFFERENCES * len(all_ids))
    if len(differences) > allowed or (num_refused and mismatched_tokens == "refuse"):
        raise _mismatch(differences, num_ids=len(all_ids))
    smallest = min(len(vocab) for vocab in tokens.values())
    if len(shared) < max(1, MIN_SHARED * smallest):
        sizes = ", ".join(f"{name} {len(vocab)}" for name, vocab in tokens.items())
        raise VocabularyMismatchError(
            f"the members share only {len(shared)} token ids (vocabularies: {sizes}); "
            "use models of one family, whose tokenizers agree",
            differences=(),
            num_differences=0,
        )
    width = max([shared[-1], *kept]) + 1
    present = {*shared, *kept}
    unknown = _unknown_ids(members, unshared)
    vocabulary = SharedVocabulary(
        width,
        masked_ids=tuple(token_id for token_id in range(width) if token_id not in present),
        differences=tuple(differences),
        kept=kept,
        unknown_ids=unknown,
        spellings=_spellings(members, kept, unknown),
    )
    _check_ends(vocabulary, members, tokens)
    return vocabulary


def _unknown_ids(names: Iterable[str], unshared: Mapping[int, Mapping[str, str]]) -> dict[str, frozenset[int]]:
    """By member, of the ids that are not shared, those that it cannot read in somebody else's sense.

    A tuned member's sense of an id counts before the others'.

    Args:
        names: all members.
        unshared: of each such id, its text by the members that have it.
    """
    meant = {
        token_id: next((text for name, text in texts.items() if name.endswith(".tuned")), next(iter(texts.values())))
        for token_id, texts in unshared.items()
    }
    return {
        name: frozenset(token_id for token_id, texts in unshared.items() if texts.get(name) != meant[token_id])
        for name in names
    }


def _spellings(
    members: Mapping[str, MemberVocabulary], kept: Collection[int], unknown: Mapping[str, frozenset[int]]
) -> dict[str, dict[int, tuple[int, ...]]]:
    """How members read kept tokens that they do not know: each as the text that the tuned members write for it."""
    if not kept:
        return {}
    tuned = next(member.tokenizer for name, member in members.items() if name.endswith(".tuned"))
    texts = {token_id: str(tuned.decode([token_id], skip_special_tokens=False)) for token_id in kept}
    spellings: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, member in members.items():
        spellings[name] = {
            token_id: tuple(member.tokenizer.encode(text, add_special_tokens=False))
            for token_id, text in texts.items()
            if token_id in unknown[name]
        }
        for token_id, pieces in spellings[name].items():
            if not pieces or not unknown[name].isdisjoint(pieces):
                raise VocabularyMismatchError(
                    f"the token {texts[token_id]!r} (id {token_id}) of the tuned model cannot be written in tokens of {name}, "
                    "which would have to read it; use members whose tokenizers have it too",
                    differences=(),
                    num_differences=0,
                )
    return spellings


def _check_ends(
    vocabulary: SharedVocabulary, members: Mapping[str, MemberVocabulary], tokens: Mapping[str, Mapping[int, str]]
) -> None:
    """No text may go on for ever because the token that ends it is never generated."""
    has_end = any(vocabulary.generates(token_id) for member in members.values() for token_id in member.end_ids)
    for name, member in members.items():
        lost = {
            token_id: tokens[name][token_id]
            for token_id in sorted(member.end_ids & tokens[name].keys())
            if not vocabulary.generates(token_id)
        }
        if lost and (name.endswith(".tuned") or not has_end):
            raise _unreachable(vocabulary, tokens, name, lost)


def _unreachable(
    vocabulary: SharedVocabulary, tokens: Mapping[str, Mapping[int, str]], name: str, lost: Mapping[int, str]
) -> VocabularyMismatchError:
    named = ", ".join(f"{text!r} (id {token_id})" for token_id, text in lost.items())
    lacking = [other for other, own in tokens.items() if any(own.get(token_id) != lost[token_id] for token_id in lost)]
    advice = "use members whose tokenizers have it too"
    if not any(other.endswith(".tuned") for other in lacking) and name.endswith(".tuned"):
        advice = (
            "EngineConfig(tuned_only_tokens='keep') keeps the probability that the tuned model gives to the tokens that only it "
            f"has, and lets the other members read prompts in tokens of their own; otherwise {advice}"
        )
    return VocabularyMismatchError(
        f"{name} ends its texts with {named}, which {', '.join(lacking)} cannot read, so that it would never be generated and "
        f"texts would run on to max_tokens. What to do: {advice}.",
        differences=[own for own in vocabulary.differences if own.token_id in lost],
        num_differences=len(vocabulary.differences),
    )


def _mismatch(differences: list[TokenDifference], *, num_ids: int) -> VocabularyMismatchError:
    first = "; ".join(str(difference) for difference in differences[:NUM_NAMED_DIFFERENCES])
    share = len(differences) / num_ids
    if share > MAX_MASKED_DIFFERENCES:
        advice = "these are different vocabularies: use members of one model family (same tokenizer)"
    else:
        advice = (
            "if these few tokens are not needed, EngineConfig(mismatched_tokens='mask') never generates them; if the tuned models "
            "renamed them and need them, EngineConfig(tuned_only_tokens='keep') takes them as the tuned models do; otherwise use "
            "members whose tokenizers agree"
        )
    return VocabularyMismatchError(
        f"{len(differences)} of {num_ids} token ids mean different tokens: {first}. What to do: {advice}.",
        differences=differences,
        num_differences=len(differences),
    )
