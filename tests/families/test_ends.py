"""What families' templates write behind an answer is among the ends of their models, and is missed where nothing names it."""

from __future__ import annotations

import pytest

from eft_engine.text.ends import MemberEnds, NamedEnd, TrioEnds, ends_of_tokenizer, trio_ends
from eft_engine.text.vocabulary import MemberVocabulary, prove_vocabulary
from tests.families.imitations import FAMILIES, Family


def ends_of(family: Family, *named: str) -> TrioEnds:
    """What ends texts of a family when its generation configuration alone names these tokens; without any, as they are."""
    tokenizer = family.make_tokenizer()
    vocab = tokenizer.get_vocab()
    ends = tuple(NamedEnd(vocab[text], "generation_config.json") for text in named or family.further_ends)
    of_tokenizer = () if named else ends_of_tokenizer(tokenizer)
    vocabulary = prove_vocabulary({"base": MemberVocabulary(tokenizer, len(tokenizer))})
    return trio_ends({"base": MemberEnds((*ends, *of_tokenizer), tokenizer)}, vocabulary, chat=tokenizer)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda own: own.name)
def test_no_family_is_warned_about(family: Family) -> None:
    ends = ends_of(family)
    assert {end.token for end in ends.table} == {family.end, *family.further_ends}
    assert ends.warnings == ()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda own: own.name)
def test_every_family_is_warned_about_without_its_end(family: Family) -> None:
    other = next(token for token in (*family.control_tokens, *family.markers) if token not in family.further_ends)
    (warning,) = ends_of(family, other).warnings
    assert f"{family.end!r} (" in warning
    assert f"the tokens that end a text are {other!r} (" in warning
