"""A sentence of a grammar is brought to its end inside the budget, with no token replaced that needed not be."""

from __future__ import annotations

import json
import random

import pytest

from eft_engine import JsonSchema, Lark, Regex
from eft_engine.config import Grammar
from eft_engine.text.closing import Closing
from eft_engine.text.grammar import GrammarCompiler
from tests.sentences import CASES, SENTENCES, STRING, TOO_COMPLEX, obj
from tests.toy import END_ID, make_tokenizer

END_OF_THOUGHT = "</think>"
TOKENIZER = make_tokenizer(extra_tokens=[END_OF_THOUGHT])
COMPILER = GrammarCompiler(TOKENIZER, width=len(TOKENIZER), eos_token_ids=frozenset([END_ID]))
PERSON = JsonSchema(json_schema=obj(name=STRING, age={"type": "integer"}))


def ids(text: str) -> list[int]:
    """Token ids, one per byte."""
    return TOKENIZER.encode(text, add_special_tokens=False)


def allowed(mask: bytes) -> list[int]:
    """Token ids of a mask."""
    return [token_id for token_id in range(len(TOKENIZER)) if mask[token_id >> 3] >> (token_id & 7) & 1]


def write(grammar: Grammar, budget: int, chance: random.Random, *, ends: bool = True) -> tuple[str, bool, bool]:
    """A text of random tokens (`ends`: that of the end among them), brought to its end: the text, whether it is a sentence, and
    whether a token was replaced. After every token an end is in reach, if one was at the start.
    """
    state, closing = COMPILER.compile(grammar), COMPILER.closing(grammar, max_tokens=budget)
    can_close = closing.num_tokens_left is not None
    token_ids: list[int] = []
    replaced = False
    for remaining in range(budget, 0, -1):
        (mask,) = state.masks([])
        possible = [own for own in allowed(mask) if ends or own != END_ID] or [END_ID]
        wished = chance.choice(possible)
        token_id = closing.choose(wished, remaining=remaining)
        assert token_id in allowed(mask)
        replaced |= token_id != wished
        assert can_close or token_id == wished, "without an end in reach nothing is replaced"
        assert not can_close or (closing.num_tokens_left or 0) <= remaining - 1
        if token_id == END_ID:
            break
        token_ids.append(token_id)
        state.commit(token_id)
        if state.is_complete:
            break
    assert closing.was_steered(budget) == replaced
    return str(TOKENIZER.decode(token_ids, skip_special_tokens=False)), state.is_accepting, replaced


@pytest.mark.parametrize("name", CASES)
def test_random_texts_end_inside_every_budget_that_holds_an_end(name: str) -> None:
    sentences, chance = SENTENCES[name], random.Random(name)
    shortest = len(sentences.shortest.encode())
    for budget in range(shortest, shortest + 21):
        for ends in (True, False):
            text, is_sentence, _ = write(sentences.grammar, budget, chance, ends=ends)
            assert is_sentence, (budget, text)
            sentences.check(text)


@pytest.mark.parametrize("name", CASES)
def test_budget_that_holds_no_end_replaces_nothing_and_cuts(name: str) -> None:
    sentences = SENTENCES[name]
    budget = len(sentences.shortest.encode()) - 1
    assert COMPILER.closing(sentences.grammar, max_tokens=budget).num_tokens_left is None
    _, is_sentence, replaced = write(sentences.grammar, budget, random.Random(0))
    assert not is_sentence
    assert not replaced


def test_tokens_are_replaced_only_from_where_the_budget_is_spent() -> None:
    """The name is the model's until exactly the ending is left."""
    for budget in (30, 50, 200):
        closing = COMPILER.closing(PERSON, max_tokens=budget)
        written = ids('{"name": "')
        for place, token_id in enumerate(written):
            assert closing.choose(token_id, remaining=budget - place) == token_id
        while closing.choose(ids("k")[0], remaining=budget - len(written)) == ids("k")[0]:
            written.append(ids("k")[0])
        ending = len('", "age": 1}')
        assert len(written) == budget - ending


def test_complete_text_is_ended_rather_than_begun_again() -> None:
    """Behind a the only continuation that fits is the end."""
    for remaining, token_id in ((3, END_ID), (4, END_ID), (5, ids("b")[0])):
        closing = COMPILER.closing(Regex(pattern="a(bbbbb)?"), max_tokens=remaining + 1)
        assert closing.choose(ids("a")[0], remaining=remaining + 1) == ids("a")[0]
        assert closing.choose(ids("b")[0], remaining=remaining) == token_id
        assert closing.was_steered(2) == (token_id == END_ID)
        assert not closing.was_steered(1)


def test_complete_text_goes_on_where_no_token_says_that_it_ends() -> None:
    compiler = GrammarCompiler(TOKENIZER, width=len(TOKENIZER), eos_token_ids=frozenset())
    closing = compiler.closing(Regex(pattern="a(bbbbb)?"), max_tokens=4)
    assert closing.choose(ids("a")[0], remaining=4) == ids("a")[0]
    assert closing.choose(ids("b")[0], remaining=3) == ids("b")[0]
    assert closing.num_tokens_left is None
    assert closing.choose(ids("b")[0], remaining=2) == ids("b")[0]
    assert not closing.was_steered(3)


@pytest.mark.parametrize("often", ["*", "{0,9}"])
def test_thought_is_closed_in_time_for_what_is_demanded_behind_it(often: str) -> None:
    """A thought of which a grammar counts the tokens or does not: its end is one token, and the answer two."""
    end = TOKENIZER.convert_tokens_to_ids(END_OF_THOUGHT)
    grammar = Lark(grammar=f'start: <[^{end}]>{often} <[{end}]> ("no" | "maybe")')
    text, is_sentence, replaced = write(grammar, 7, random.Random(1))
    assert is_sentence
    assert replaced
    assert text.endswith(f"{END_OF_THOUGHT}no")


def test_number_of_tokens_that_is_demanded_is_not_seen_and_nothing_is_replaced() -> None:
    grammar = Lark(grammar=f'start: <[^{TOKENIZER.convert_tokens_to_ids(END_OF_THOUGHT)}]>{{3}} "x"')
    assert COMPILER.closing(grammar, max_tokens=9).num_tokens_left is None


def test_taking_tokens_back_leaves_no_trace() -> None:
    chance = random.Random(0)
    straight = COMPILER.closing(PERSON, max_tokens=32)
    crooked = COMPILER.closing(PERSON, max_tokens=32)
    state = COMPILER.compile(PERSON)
    for place in range(32):
        for _ in range(chance.randint(0, 2)):
            try_some(crooked, state.masks([])[0], chance, remaining=32 - place)
            crooked.rewind(place)
        wished = chance.choice(allowed(state.masks([])[0]))
        token_id = straight.choose(wished, remaining=32 - place)
        assert crooked.choose(wished, remaining=32 - place) == token_id
        assert crooked.num_tokens_left == straight.num_tokens_left
        state.commit(token_id)
        if state.is_complete:
            break
    assert state.is_accepting
    assert straight.was_steered(32)
    assert crooked.was_steered(32)


def try_some(closing: Closing, mask: bytes, chance: random.Random, *, remaining: int) -> None:
    """Take a token, and a quote or a space behind it where that may come."""
    closing.choose(chance.choice(allowed(mask)), remaining=remaining)
    if remaining > 1:
        closing.choose(ids(chance.choice('" }'))[0], remaining=remaining - 1)


def test_grammar_that_can_be_followed_no_further_is_not_closed() -> None:
    closing = COMPILER.closing(TOO_COMPLEX, max_tokens=9)
    assert closing.choose(ids("x")[0], remaining=9) == ids("x")[0]
    assert closing.choose(ids("y")[0], remaining=8) == ids("n")[0]


def test_value_that_fits_is_left_alone() -> None:
    value = json.dumps({"name": "Ann", "age": 41})
    for budget in range(len(value), len(value) + 12):
        closing = COMPILER.closing(PERSON, max_tokens=budget)
        chosen = [closing.choose(token_id, remaining=budget - place) for place, token_id in enumerate(ids(value))]
        assert chosen == ids(value)
        assert not closing.was_steered(budget)


def test_long_string_may_be_begun_where_the_budget_holds_it() -> None:
    """An ending of many tokens is known behind each of them, one for a string that need not have been begun among them."""
    schema = {**obj(a=STRING), "properties": {"a": STRING, "b": {"type": "string", "minLength": 600}}}
    written = ids('{"a": "x", "b": "y')
    for budget, is_left in ((len(written) + 601, True), (len(written) + 600, False)):
        closing = COMPILER.closing(JsonSchema(json_schema=schema), max_tokens=budget)
        chosen = [closing.choose(token_id, remaining=budget - place) for place, token_id in enumerate(written)]
        assert (chosen == written) == is_left
        assert closing.num_tokens_left is not None
