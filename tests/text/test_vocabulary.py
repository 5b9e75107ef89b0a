"""Members are composed only where they mean the same token by the same id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from eft_engine.errors import VocabularyMismatchError
from eft_engine.text.vocabulary import MemberVocabulary, prove_vocabulary
from tests.toy import VOCAB_SIZE, make_tokenizer


@dataclass(frozen=True)
class FakeTokenizer:
    """Only a vocabulary."""

    tokens: tuple[str | None, ...]

    def get_vocab(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.tokens) if token is not None}


def member(tokens: list[str | None], width: int | None = None) -> Any:
    return MemberVocabulary(FakeTokenizer(tuple(tokens)), width or len(tokens))  # type: ignore[arg-type]


WORDS: list[str | None] = [f"w{index}" for index in range(300)]


def test_equal_vocabularies_share_everything() -> None:
    shared = prove_vocabulary({"base": member(WORDS), "tuned": member(WORDS)})
    assert (shared.width, shared.masked_ids, shared.shared_vocab_size) == (300, (), 300)


def test_padded_widths_are_cut_to_the_tokens() -> None:
    shared = prove_vocabulary(
        {"base": member(WORDS, 384), "tuned": member(WORDS, 320), "reference": member(WORDS, 320)}
    )
    assert (shared.width, shared.masked_ids) == (300, ())


def test_added_tokens_of_one_side_are_masked() -> None:
    shared = prove_vocabulary({"base": member([*WORDS, None, "<x>"]), "tuned": member([*WORDS, "<pad>", "<x>"])})
    assert (shared.width, shared.masked_ids, shared.shared_vocab_size) == (302, (300,), 301)


def test_tokens_beyond_the_logits_are_ignored() -> None:
    shared = prove_vocabulary({"base": member(WORDS, 290), "tuned": member(WORDS)})
    assert (shared.width, shared.masked_ids) == (290, ())


def test_tokenizers_of_equal_length_that_disagree_are_refused_by_id() -> None:
    members = {
        "base": MemberVocabulary(make_tokenizer(), VOCAB_SIZE),
        "chat.tuned": MemberVocabulary(make_tokenizer(shuffle=True), VOCAB_SIZE),
    }
    assert len(make_tokenizer()) == len(make_tokenizer(shuffle=True))
    with pytest.raises(VocabularyMismatchError) as caught:
        prove_vocabulary(members)
    assert caught.value.num_differences == 2
    assert [difference.token_id for difference in caught.value.differences] == [40, 41]
    assert "id 40 is 'I' in base, 'J' in chat.tuned" in str(caught.value)
    assert "mismatched_tokens='mask'" in str(caught.value)


def test_shifted_ids_are_refused_as_another_vocabulary() -> None:
    with pytest.raises(VocabularyMismatchError, match="different vocabularies") as caught:
        prove_vocabulary({"base": member(WORDS), "tuned": member(["<s>", *WORDS[:-1]])})
    assert caught.value.differences[0].token_id == 0


def test_different_special_tokens_under_one_id_are_refused() -> None:
    with pytest.raises(VocabularyMismatchError, match="id 300 is '<a>' in base, '<b>' in tuned"):
        prove_vocabulary({"base": member([*WORDS, "<a>"]), "tuned": member([*WORDS, "<b>"])})


def test_few_differences_may_be_masked() -> None:
    members = {"base": member([*WORDS, "<a>"]), "tuned": member([*WORDS, "<b>"])}
    shared = prove_vocabulary({**members}, mismatched_tokens="mask")
    assert shared.width == 300
    assert [difference.token_id for difference in shared.differences] == [300]


def test_many_differences_are_refused_even_when_masking() -> None:
    other = [*WORDS[:290], *(f"v{index}" for index in range(10))]
    with pytest.raises(VocabularyMismatchError, match="10 of 300"):
        prove_vocabulary({"base": member(WORDS), "tuned": member(other)}, mismatched_tokens="mask")


def test_too_little_in_common_is_refused() -> None:
    with pytest.raises(VocabularyMismatchError, match="share only 0 token ids"):
        prove_vocabulary({"base": member(WORDS), "tuned": member([None] * 300 + WORDS)})
