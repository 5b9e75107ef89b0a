"""Proof that all members mean the same token by the same id.

Adding log-probabilities of different models is meaningful only id by id. Model families make that harder than it looks: logits
are padded to round widths, checkpoints of one family have different paddings, a fine-tune adds a token or renames a reserved
one. So every id is classified:

    shared    every member has a token there, and it is the same one       composed
    missing   at least one member has no token there (padding, additions)  masked: never generated
    differs   two members have different tokens there                      refused (or masked, on request, if rare)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    """One member's view: its tokenizer and the number of logits its model returns."""

    tokenizer: Tokenizer
    logits_width: int


@dataclass(frozen=True)
class SharedVocabulary:
    """The ids that can be composed.

    `width` is one above the largest shared id: logits are cut to it. `masked_ids` are the ids below `width` that must never be
    generated. `differences` are the ids that mean different tokens, masked or cut off (empty unless masking was asked for).
    """

    width: int
    masked_ids: tuple[int, ...]
    differences: tuple[TokenDifference, ...] = ()

    @property
    def shared_vocab_size(self) -> int:
        """Number of ids on which all members agree."""
        return self.width - len(self.masked_ids)


def prove_vocabulary(
    members: Mapping[str, MemberVocabulary], *, mismatched_tokens: Literal["refuse", "mask"] = "refuse"
) -> SharedVocabulary:
    """Classify every id of the members' vocabularies.

    Args:
        members: at least one member by name; the first one is named first in messages.
        mismatched_tokens: what to do with ids that mean different tokens. `mask` still refuses when more than 1 % differ.

    Raises:
        VocabularyMismatchError: ids mean different tokens, or too little is shared. It names the first differing ids.
    """
    tokens = {
        name: {
            token_id: text for text, token_id in member.tokenizer.get_vocab().items() if token_id < member.logits_width
        }
        for name, member in members.items()
    }
    all_ids = sorted(set().union(*tokens.values()))
    differences: list[TokenDifference] = []
    shared: list[int] = []
    for token_id in all_ids:
        texts = {name: vocab[token_id] for name, vocab in tokens.items() if token_id in vocab}
        if len(set(texts.values())) > 1:
            differences.append(TokenDifference(token_id, tuple(texts.items())))
        elif len(texts) == len(tokens):
            shared.append(token_id)

    allowed = int(MAX_MASKED_DIFFERENCES * len(all_ids)) if mismatched_tokens == "mask" else 0
    if len(differences) > allowed:
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
    width = shared[-1] + 1
    present = set(shared)
    masked = tuple(token_id for token_id in range(width) if token_id not in present)
    return SharedVocabulary(width, masked, tuple(differences))


def _mismatch(differences: list[TokenDifference], *, num_ids: int) -> VocabularyMismatchError:
    first = "; ".join(str(difference) for difference in differences[:NUM_NAMED_DIFFERENCES])
    share = len(differences) / num_ids
    if share > MAX_MASKED_DIFFERENCES:
        advice = "these are different vocabularies: use members of one model family (same tokenizer)"
    else:
        advice = (
            "if these few tokens are not needed, EngineConfig(mismatched_tokens='mask') never generates them; "
            "otherwise use members whose tokenizers agree"
        )
    return VocabularyMismatchError(
        f"{len(differences)} of {num_ids} token ids mean different tokens: {first}. What to do: {advice}.",
        differences=differences,
        num_differences=len(differences),
    )
