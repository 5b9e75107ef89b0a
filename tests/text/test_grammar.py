"""Grammar states: what is allowed, and what is forced."""

from __future__ import annotations

import pytest

from eft_engine import JsonSchema, Lark, Regex
from eft_engine.errors import InvalidGrammarError
from eft_engine.text.grammar import GrammarCompiler, GrammarState
from tests.sentences import TOO_COMPLEX
from tests.toy import END_ID, make_tokenizer

TOKENIZER = make_tokenizer()
COMPILER = GrammarCompiler(TOKENIZER, width=END_ID + 1, eos_token_ids=frozenset([END_ID]))
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def ids(text: str) -> list[int]:
    """Token ids, one per byte."""
    return TOKENIZER.encode(text, add_special_tokens=False)


def after(text: str, grammar: JsonSchema | Regex | Lark) -> GrammarState:
    """The state behind a text."""
    state = COMPILER.compile(grammar)
    for token_id in ids(text):
        state.commit(token_id)
    return state


def allowed(state: GrammarState) -> set[str]:
    """Texts of the tokens that may come next."""
    (mask,) = state.masks([])
    return {
        TOKENIZER.decode([token_id], skip_special_tokens=False)
        for token_id in range(END_ID + 1)
        if mask[token_id // 8] >> token_id % 8 & 1
    }


def test_only_what_the_grammar_continues_with_is_allowed() -> None:
    assert allowed(after("", Regex(pattern="[ab]c|d"))) == {"a", "b", "d"}
    assert allowed(after("a", Regex(pattern="[ab]c|d"))) == {"c"}


def test_end_is_allowed_exactly_where_the_text_is_complete() -> None:
    end = TOKENIZER.decode([END_ID], skip_special_tokens=False)
    state = after("a", Regex(pattern="a(bc)?"))
    assert allowed(state) == {"b", end}
    assert state.is_accepting
    assert not state.is_complete
    state = after("abc", Regex(pattern="a(bc)?"))
    assert state.is_complete
    assert after("ab", Regex(pattern="a(bc)?")).is_accepting is False


def test_masks_behind_drafts_leave_the_state_as_it_was() -> None:
    state = after("", JsonSchema(json_schema=PERSON))
    before = state.masks([])
    drafts = ids('{"name": "x", "age": 1}')
    masks = state.masks(drafts)
    assert len(masks) == len(drafts) + 1
    for count, mask in enumerate(masks[:-1]):
        assert mask == after(TOKENIZER.decode(drafts[:count]), JsonSchema(json_schema=PERSON)).masks([])[0]
    assert state.masks([]) == before


def test_end_token_among_drafts_is_not_fed_and_hides_what_follows() -> None:
    state = after("a", Regex(pattern="a+"))
    masks = state.masks([*ids("a"), END_ID, *ids("zz")])
    assert len(masks) == 5
    assert allowed(state) == {"a", TOKENIZER.decode([END_ID], skip_special_tokens=False)}
    state.commit(END_ID)
    assert state.valid_prefix(ids("aa")) == ids("aa")


def test_drafts_are_cut_where_they_stop_being_valid() -> None:
    state = after('{"na', JsonSchema(json_schema=PERSON))
    assert state.valid_prefix(ids('me": "b", "ag?')) == ids('me": "b", "ag')
    assert state.valid_prefix([]) == []
    assert state.valid_prefix([END_ID, 65]) == []
    assert state.valid_prefix([10**6]) == []


def test_tokens_without_a_choice_are_forced() -> None:
    assert TOKENIZER.decode(after("", JsonSchema(json_schema=PERSON)).forced()) == '{"name": "'
    assert after("", Regex(pattern="[ab]+")).forced() == []
    assert after("ab", Regex(pattern="ab")).forced() == []


def test_text_that_cannot_be_followed_any_further_is_no_sentence() -> None:
    state = after("x", TOO_COMPLEX)
    with pytest.raises(InvalidGrammarError, match="followed any further.*items"):
        state.commit(ids("y")[0])
    assert not state.is_complete
    assert not state.is_accepting
    with pytest.raises(InvalidGrammarError, match="followed any further"):
        state.masks([])


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (JsonSchema(json_schema={"type": "array", "uniqueItems": True}), "uniqueItems"),
        (JsonSchema(json_schema={"type": "thing"}), "thing"),
        (JsonSchema(json_schema={"const": ...}), "serializable"),
        (Regex(pattern="(?=a)b"), "look-around"),
        (Regex(pattern="(a"), "unclosed"),
        (Lark(grammar="start: nowhere"), "nowhere"),
        (Lark(grammar="no rules here"), ""),
    ],
    ids=str,
)
def test_what_cannot_be_enforced_is_refused_with_the_reason(grammar: JsonSchema | Regex | Lark, reason: str) -> None:
    with pytest.raises(InvalidGrammarError, match="cannot be (enforced|read)") as refused:
        COMPILER.compile(grammar)
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    ("whitespace", "text"),
    [("none", '{"name":"x","age":1}'), ("spaces", '{"name": "x", "age": 1}'), ("any", '{ "name" :\n"x","age":  1 }')],
)
def test_whitespace_is_as_asked(whitespace: str, text: str) -> None:
    texts = {"none": '{"name":"x","age":1}', "spaces": '{"name": "x", "age": 1}', "any": '{ "name" :\n"x","age":  1 }'}
    for kind, own in texts.items():
        grammar = JsonSchema.model_validate({"json_schema": PERSON, "whitespace": whitespace})
        fits = len(COMPILER.compile(grammar).valid_prefix(ids(own))) == len(ids(own))
        assert fits == (own == text or whitespace == "any"), (kind, whitespace)


def test_tokenizer_that_cannot_be_read_is_refused() -> None:
    class Slow:
        def get_vocab(self) -> dict[str, int]:
            return {"a": 0}

    compiler = GrammarCompiler(Slow(), width=1, eos_token_ids=frozenset())  # type: ignore[arg-type]
    with pytest.raises(InvalidGrammarError, match="fast tokenizer"):
        compiler.compile(Regex(pattern="a"))
