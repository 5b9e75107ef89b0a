"""Members are composed only where they mean the same token by the same id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from eft_engine.errors import TokenDifference, VocabularyMismatchError
from eft_engine.text.vocabulary import NUM_NAMED_DIFFERENCES, MemberVocabulary, prove_vocabulary
from tests.toy import VOCAB_SIZE, make_tokenizer


@dataclass(frozen=True)
class FakeTokenizer:
    """A vocabulary, in which any text is two words."""

    tokens: tuple[str | None, ...]

    def get_vocab(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.tokens) if token is not None}

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str | None:
        return self.tokens[token_ids[0]]

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [0, 1]


def member(tokens: list[str | None], width: int | None = None) -> Any:
    return MemberVocabulary(FakeTokenizer(tuple(tokens)), width or len(tokens))  # type: ignore[arg-type]


WORDS: list[str | None] = [f"w{index}" for index in range(300)]


def with_other_words(*token_ids: int) -> list[str | None]:
    return [f"other{index}" if index in token_ids else word for index, word in enumerate(WORDS)]


def test_equal_vocabularies_share_everything() -> None:
    shared = prove_vocabulary({"base": member(WORDS), "tuned": member(WORDS), "reference": member(WORDS)})
    assert (shared.width, shared.masked_ids, shared.shared_vocab_size, shared.differences) == (300, (), 300, ())


def test_a_single_member_shares_its_vocabulary_with_itself() -> None:
    shared = prove_vocabulary({"base": member([*WORDS, None, "<x>"], 320)})
    assert (shared.width, shared.masked_ids, shared.shared_vocab_size) == (302, (300,), 301)


def test_padded_widths_are_cut_to_the_tokens() -> None:
    tokenizer = make_tokenizer()
    shared = prove_vocabulary({"base": MemberVocabulary(tokenizer, 320), "tuned": MemberVocabulary(tokenizer, 300)})
    assert (shared.width, shared.masked_ids) == (VOCAB_SIZE, ())


@pytest.mark.parametrize("names", [("base", "tuned"), ("tuned", "base")])
def test_added_token_of_one_side_is_never_generated(names: tuple[str, str]) -> None:
    plain, extended = make_tokenizer(), make_tokenizer(extra_tokens=["<|tool|>"])
    members = (MemberVocabulary(plain, 320), MemberVocabulary(extended, 320))
    shared = prove_vocabulary(dict(zip(names, members, strict=True)))
    assert (shared.width, shared.masked_ids) == (VOCAB_SIZE, ())


def test_added_token_below_a_shared_one_is_masked() -> None:
    shared = prove_vocabulary({"base": member([*WORDS, None, "<x>"]), "tuned": member([*WORDS, "<pad>", "<x>"])})
    assert (shared.width, shared.masked_ids, shared.shared_vocab_size) == (302, (300,), 301)


def test_ids_that_any_of_many_members_lacks_are_masked() -> None:
    members = {
        name: member([None if index == missing else word for index, word in enumerate(WORDS)])
        for name, missing in [("base", 5), ("chat.tuned", 7), ("chat.reference", 9)]
    }
    shared = prove_vocabulary(members)
    assert (shared.width, shared.masked_ids, shared.shared_vocab_size) == (300, (5, 7, 9), 297)


@pytest.mark.parametrize("more", [[], ["other290"]])
def test_tokens_without_logits_are_ignored(more: list[str | None]) -> None:
    shared = prove_vocabulary({"base": member([*WORDS[:290], *more], 290), "tuned": member(WORDS)})
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
    assert caught.value.differences == (
        TokenDifference(40, (("base", "I"), ("chat.tuned", "J"))),
        TokenDifference(41, (("base", "J"), ("chat.tuned", "I"))),
    )
    message = str(caught.value)
    assert "id 40 is 'I' in base, 'J' in chat.tuned; id 41 is 'J' in base, 'I' in chat.tuned" in message
    assert "mismatched_tokens='mask'" in message


def test_third_member_that_disagrees_is_found() -> None:
    members = {"base": member(WORDS), "tuned": member(WORDS), "reference": member(with_other_words(8))}
    with pytest.raises(VocabularyMismatchError, match="id 8 is 'w8' in base, 'w8' in tuned, 'other8' in reference"):
        prove_vocabulary(members)


def test_members_that_disagree_where_the_first_has_no_token_are_found() -> None:
    members = {"base": member(WORDS), "tuned": member([*WORDS, "<a>"]), "reference": member([*WORDS, "<b>"])}
    with pytest.raises(VocabularyMismatchError, match="id 300 is '<a>' in tuned, '<b>' in reference"):
        prove_vocabulary(members)


def test_shifted_ids_are_refused_as_another_vocabulary() -> None:
    with pytest.raises(VocabularyMismatchError, match="300 of 300 .* different vocabularies") as caught:
        prove_vocabulary({"base": member(WORDS), "tuned": member(["<s>", *WORDS[:-1]])})
    assert caught.value.differences[0] == TokenDifference(0, (("base", "w0"), ("tuned", "<s>")))
    named = [difference for difference in caught.value.differences if str(difference) in str(caught.value)]
    assert named == list(caught.value.differences[:NUM_NAMED_DIFFERENCES])


def test_different_special_tokens_under_one_id_are_refused() -> None:
    first, second = make_tokenizer(extra_tokens=["<a>"]), make_tokenizer(extra_tokens=["<b>"])
    with pytest.raises(VocabularyMismatchError, match=f"id {VOCAB_SIZE} is '<a>' in base, '<b>' in tuned"):
        prove_vocabulary({"base": MemberVocabulary(first, 300), "tuned": MemberVocabulary(second, 300)})


@pytest.mark.parametrize("token_ids", [(4,), (0, 150, 298)])
def test_up_to_one_percent_of_differences_may_be_masked(token_ids: tuple[int, ...]) -> None:
    members = {"base": member(WORDS), "tuned": member(with_other_words(*token_ids))}
    with pytest.raises(VocabularyMismatchError):
        prove_vocabulary(members)
    shared = prove_vocabulary(members, mismatched_tokens="mask")
    assert (shared.width, shared.masked_ids) == (300, token_ids)
    assert tuple(difference.token_id for difference in shared.differences) == token_ids


def test_differences_above_the_last_shared_id_are_cut_off() -> None:
    members = {"base": member([*WORDS, "<a>"]), "tuned": member([*WORDS, "<b>"])}
    shared = prove_vocabulary(members, mismatched_tokens="mask")
    assert (shared.width, shared.masked_ids) == (300, ())
    assert [difference.token_id for difference in shared.differences] == [300]


@pytest.mark.parametrize("count", [4, 10])
def test_more_than_one_percent_is_refused_even_when_masking(count: int) -> None:
    members = {"base": member(WORDS), "tuned": member(with_other_words(*range(count)))}
    with pytest.raises(VocabularyMismatchError, match=f"{count} of 300 .* different vocabularies") as caught:
        prove_vocabulary(members, mismatched_tokens="mask")
    assert caught.value.num_differences == count
    assert "mismatched_tokens='mask'" not in str(caught.value)


@pytest.mark.parametrize(
    ("num_shared", "other_start"), [(0, 300), (260, 40)], ids=["nothing in common", "less than nine tenths in common"]
)
def test_too_little_in_common_is_refused(num_shared: int, other_start: int) -> None:
    others: list[str | None] = [
        *([None] * other_start),
        *WORDS[other_start:],
        *(f"w{index}" for index in range(300, 300 + other_start)),
    ]
    with pytest.raises(VocabularyMismatchError, match=f"share only {num_shared} token ids .*base 300, tuned 300"):
        prove_vocabulary({"base": member(WORDS), "tuned": member(others)})


def with_ends(tokens: list[str | None], *end_ids: int) -> Any:
    own = member(tokens)
    return MemberVocabulary(own.tokenizer, own.logits_width, frozenset(end_ids))


def test_what_all_tuned_members_have_is_kept_on_request() -> None:
    tokenizers = {
        "base": make_tokenizer(),
        "a.tuned": make_tokenizer(extra_tokens=["<|x|>", "<|y|>"]),
        "a.reference": make_tokenizer(extra_tokens=["<|x|>"]),
        "b.tuned": make_tokenizer(extra_tokens=["<|x|>", "<|y|>", "<|z|>"]),
        "b.reference": make_tokenizer(),
    }
    members = {name: MemberVocabulary(own, 320) for name, own in tokenizers.items()}
    kept = prove_vocabulary(members, tuned_only_tokens="keep")
    assert (kept.width, kept.masked_ids, kept.kept) == (
        VOCAB_SIZE + 2,
        (),
        {VOCAB_SIZE: "<|x|>", VOCAB_SIZE + 1: "<|y|>"},
    )
    assert kept.shared_vocab_size == VOCAB_SIZE
    assert kept.unknown_ids["a.reference"] == {VOCAB_SIZE + 1, VOCAB_SIZE + 2}
    assert kept.unknown_ids["a.tuned"] == {VOCAB_SIZE + 2}
    assert kept.spellings["a.reference"] == {
        VOCAB_SIZE + 1: tuple(tokenizers["base"].encode("<|y|>", add_special_tokens=False))
    }
    assert kept.spellings["b.tuned"] == {}
    refused = prove_vocabulary(members)
    assert (refused.width, refused.kept, refused.spellings) == (VOCAB_SIZE, {}, {})


@pytest.mark.parametrize(
    ("ends", "lost"),
    [
        ({"a.tuned": (300,)}, "a.tuned"),
        ({"base": (299,), "a.tuned": (299, 300), "a.reference": (299,)}, "a.tuned"),
        ({"base": (301,)}, "base"),
        ({"base": (301, 5)}, None),
        ({"base": (301,), "a.tuned": (5,)}, None),
        ({"a.tuned": (400,)}, None),
        ({}, None),
    ],
)
def test_no_end_of_the_tuned_model_and_not_the_last_one_of_the_others_is_lost(
    ends: dict[str, tuple[int, ...]], lost: str | None
) -> None:
    members = {
        "base": with_ends([*WORDS, None, "<base>"], *ends.get("base", ())),
        "a.tuned": with_ends([*WORDS, "<end>"], *ends.get("a.tuned", ())),
        "a.reference": with_ends(WORDS, *ends.get("a.reference", ())),
    }
    if lost is None:
        prove_vocabulary(members)
        return
    with pytest.raises(VocabularyMismatchError, match=f"{lost} ends its texts with"):
        prove_vocabulary(members)


def test_masking_does_not_take_the_last_end() -> None:
    members = {"base": with_ends(with_other_words(7), 7), "a.tuned": with_ends(WORDS), "a.reference": with_ends(WORDS)}
    with pytest.raises(VocabularyMismatchError, match=r"base ends its texts with 'other7' \(id 7\), which a.tuned"):
        prove_vocabulary(members, mismatched_tokens="mask")
    members["a.reference"] = with_ends(WORDS, 8)
    assert prove_vocabulary(members, mismatched_tokens="mask").masked_ids == (7,)


def test_a_token_that_tuned_models_renamed_is_theirs_on_request() -> None:
    members = {
        "base": member(with_other_words(7, 9)),
        "a.tuned": member(WORDS),
        "a.reference": member(with_other_words(7, 9)),
    }
    with pytest.raises(VocabularyMismatchError, match="tuned_only_tokens='keep'"):
        prove_vocabulary(members)
    kept = prove_vocabulary(members, tuned_only_tokens="keep")
    assert (kept.kept, kept.masked_ids, len(kept.differences)) == ({7: "w7", 9: "w9"}, (), 2)
    assert kept.spellings["base"] == {7: (0, 1), 9: (0, 1)}
