"""The way to an end is found wherever there is one, and is as short as it can be."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from eft_engine import JsonSchema, Lark, Regex
from eft_engine.config import Grammar
from eft_engine.text.closing import EFFORT_AT_START
from eft_engine.text.endings import EndingSearch, Place, leads_to_end, taken
from eft_engine.text.grammar import GrammarCompiler
from eft_engine.text.landmarks import Landmarks
from eft_engine.text.spelling import FIRST_SPECIAL, Spelling
from tests.sentences import SENTENCES, TOO_COMPLEX
from tests.toy import END_ID, make_tokenizer

THOUGHT, END_OF_THOUGHT = "<think>", "</think>"
TOKENIZER = make_tokenizer(extra_tokens=[THOUGHT, END_OF_THOUGHT])
COMPILER = GrammarCompiler(TOKENIZER, width=len(TOKENIZER), eos_token_ids=frozenset([END_ID]))


def find(grammar: Grammar, max_tokens: int, *, behind: str = "", never: frozenset[int] = frozenset()) -> str | None:
    """Text of an ending behind a text, each token of which the grammar was asked about."""
    alphabet = COMPILER._alphabet
    start = COMPILER.closing(grammar, max_tokens=0)._place
    tokens = taken(start.tokens, TOKENIZER.encode(behind, add_special_tokens=False))
    symbols = taken(start.symbols, list(behind.encode()))
    assert tokens is not None
    assert symbols is not None
    search = EndingSearch(alphabet, Landmarks.of(grammar, alphabet), never=never)
    found = search.find(Place(tokens, symbols), max_tokens, effort=EFFORT_AT_START)
    if found is None:
        return None
    token_ids = found.tokens_behind(0)
    assert len(token_ids) == found.costs[0] <= max_tokens
    assert leads_to_end(tokens, token_ids)
    return str(TOKENIZER.decode(token_ids, skip_special_tokens=False))


@pytest.mark.parametrize("name", SENTENCES)
def test_shortest_sentence_is_found_and_nothing_shorter(name: str) -> None:
    """The tokens are bytes here, so the sentence told by hand says how many there must be."""
    sentences = SENTENCES[name]
    num_tokens = len(sentences.shortest.encode())
    text = find(sentences.grammar, num_tokens)
    assert text is not None
    sentences.check(text)
    assert len(text.encode()) == num_tokens
    assert find(sentences.grammar, num_tokens - 1) is None


@pytest.mark.parametrize("name", SENTENCES)
def test_with_room_the_first_descent_or_few_find_an_end(name: str) -> None:
    text = find(SENTENCES[name].grammar, 200)
    assert text is not None
    SENTENCES[name].check(text)


def random_regex(chance: random.Random, depth: int = 0) -> str:
    """An expression over a, b and c."""
    match chance.choice(["letter", "class"] if depth > 2 else ["letter", "class", "both", "either", "often", "often"]):
        case "letter":
            return chance.choice("abc")
        case "class":
            return chance.choice(["[ab]", "[bc]", "[ac]", "[abc]"])
        case "both":
            return random_regex(chance, depth + 1) + random_regex(chance, depth + 1)
        case "either":
            return f"({random_regex(chance, depth + 1)}|{random_regex(chance, depth + 1)})"
    return f"({random_regex(chance, depth + 1)}){chance.choice(['*', '+', '?', '{2}', '{1,3}', '{2,}'])}"


def test_an_end_is_found_exactly_where_trying_all_texts_finds_one() -> None:
    """From somewhere in random expressions: Python's matcher on every text of at most six letters is the judge."""
    chance = random.Random(0)
    texts = ["".join(letters) for size in range(7) for letters in itertools.product("abc", repeat=size)]
    num_checked = 0
    while num_checked < 300:
        pattern = "".join(random_regex(chance) for _ in range(3))
        whole = [text for text in texts if re.fullmatch(pattern, text)]
        beginnings = sorted({text[:size] for text in whole for size in range(len(text))})
        for behind in chance.sample(beginnings, min(3, len(beginnings))):
            shortest = min(len(text) for text in whole if text.startswith(behind)) - len(behind)
            grammar = Regex(pattern=pattern)
            assert find(grammar, shortest, behind=behind) is not None, (pattern, behind, shortest)
            assert shortest == 0 or find(grammar, shortest - 1, behind=behind) is None, (pattern, behind, shortest)
            num_checked += 1


@pytest.mark.parametrize(
    ("behind", "text"),
    [
        ('{"name": "Ann', '", "age": 1}'),
        ('{"name": "Ann\\', None),
        ('{"name": "", "age": 12', "}"),
        ('{"name": "", "age": -', "1}"),
        ('{"nam', 'e": "", "age": 1}'),
    ],
)
def test_end_is_found_from_the_middle_of_strings_escapes_numbers_and_keys(behind: str, text: str | None) -> None:
    properties = {"name": {"type": "string"}, "age": {"type": "integer"}}
    schema = {"type": "object", "properties": properties, "required": ["name", "age"], "additionalProperties": False}
    found = find(JsonSchema(json_schema=schema), 60, behind=behind)
    assert found is not None
    assert text in (None, found)


def test_end_is_found_behind_half_a_character() -> None:
    grammar = Regex(pattern="é+x")
    alphabet = COMPILER._alphabet
    start = COMPILER.closing(grammar, max_tokens=0)._place
    half = list("é".encode()[:1])
    tokens, symbols = (
        taken(start.tokens, TOKENIZER.encode("é", add_special_tokens=False)[:1]),
        taken(start.symbols, half),
    )
    assert tokens is not None
    assert symbols is not None
    search = EndingSearch(alphabet, Landmarks.of(grammar, alphabet))
    found = search.find(Place(tokens, symbols), 2, effort=100)
    assert found is not None
    assert bytes([*half, *found.symbols]).decode() == "éx"


@pytest.mark.parametrize("often", ["*", "{0,3}"])
def test_thought_is_ended_by_its_token_whether_it_is_counted_or_not(often: str) -> None:
    end = TOKENIZER.convert_tokens_to_ids(END_OF_THOUGHT)
    grammar = Lark(grammar=f'start: <think> <[^{end}]>{often} <[{end}]> "yes"')
    assert find(grammar, 5) == f"{THOUGHT}{END_OF_THOUGHT}yes"
    assert find(grammar, 4) is None


def test_landmarks_are_the_special_tokens_and_words_that_a_grammar_names() -> None:
    end = TOKENIZER.convert_tokens_to_ids(END_OF_THOUGHT)
    alphabet = COMPILER._alphabet
    lark = Lark(
        grammar=f'start: <think> <[^{end}]>* /.*<done>[0-9]+/ "then" json\njson: %json {{"pattern": "^.*_id$"}}'
    )
    found = Landmarks.of(lark, alphabet)
    assert [own - FIRST_SPECIAL for own in found.special] == [TOKENIZER.convert_tokens_to_ids(THOUGHT), end]
    assert [bytes(word).decode() for word in found.words] == ["<done>", "then", "_id"]
    schema = {"type": "object", "properties": {"key": {"pattern": r"(png|jpe?g)\.bak$"}}, "description": "some words"}
    assert [bytes(word).decode() for word in Landmarks.of(JsonSchema(json_schema=schema), alphabet).words] == [
        "png",
        "jpe",
        "bak",
    ]


def test_tokens_that_must_not_be_written_are_gone_around() -> None:
    never = frozenset(TOKENIZER.encode("1", add_special_tokens=False))
    assert find(Regex(pattern="[0-9]x"), 2) == "1x"
    assert find(Regex(pattern="[0-9]x"), 2, never=never) not in (None, "1x")
    assert find(Regex(pattern="1x"), 2, never=never) is None


def test_part_of_a_grammar_that_is_too_complex_is_gone_around() -> None:
    """Behind y there are more rules than llguidance follows, which breaks the matcher that looks there, and no other."""
    start = COMPILER.closing(TOO_COMPLEX, max_tokens=0)._place
    search = EndingSearch(COMPILER._alphabet, Landmarks.of(TOO_COMPLEX, COMPILER._alphabet))
    assert search.find(start, 10, effort=100) == COMPILER._alphabet.spell(b"xn")
    assert search.find(start, 1, effort=100) is None
    assert not start.tokens.is_error()
    assert not start.symbols.is_error()


def test_spelling_of_nothing_takes_nothing() -> None:
    assert COMPILER._alphabet.spell(()) == Spelling((), (0.0,), (-1,), (0,))
