"""Whether a text is a call, token by token."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eft_engine import CallDecision
from eft_engine.call_decision import Thought
from eft_engine.engine.deciding import Deciding

THOUGHT = Thought(opening="<think>", closing="</think>")
OPEN = Thought(opening="<think>", closing="</think>", is_open=True)


def deciding(tokens: Sequence[str], *, thought: Thought | None = None, num_tokens: int = 4) -> Deciding:
    """Token number i is the i-th text."""
    decision = CallDecision(openings=("<call>", "```json"), num_tokens=num_tokens, thought=thought)
    return Deciding(decision, lambda token_id: tokens[token_id].encode())


def followed(tokens: Sequence[str], *, thought: Thought | None = None, ends: bool = False) -> list[str | None]:
    """What is known behind each token; `ends`: the last one is the text's last."""
    own = deciding(tokens, thought=thought)
    found: list[str | None] = []
    for index in range(len(tokens)):
        own.commit(index, is_last=ends and index == len(tokens) - 1)
        found.append("thinking" if own.is_thinking else own.verdict)
    return found


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        (["<call>"], ["call"]),
        (["I", " call <call>now"], [None, "call"]),
        (["<", "ca", "ll>"], [None, None, "call"]),
        (["``", "`js", "on", "{"], [None, None, "call", "call"]),
        (["a", "b", "c", "d"], [None, None, None, "words"]),
        (["a", "b", "c", "<call>"], [None, None, None, "call"]),  # the last token within which it may begin
        (["a", "b", "c", "<cal", "l>"], [None, None, None, "words", "words"]),  # begun, and not there
        (["<call>", "x", "y", "z", "u", "v"], ["call"] * 6),
        (["<think>", "<call>"], [None, "call"]),  # no thought is spoken of
    ],
)
def test_a_call_is_decided_by_its_opening_and_words_by_their_number(tokens: list[str], found: list[str | None]) -> None:
    assert followed(tokens) == found


def test_words_that_end_before_are_words() -> None:
    assert followed(["a", "b"], ends=True) == [None, "words"]
    assert followed(["a", "<call>"], ends=True) == [None, "call"]
    assert followed([""], ends=True) == ["words"]  # nothing but the end of a turn


@pytest.mark.parametrize(
    ("tokens", "found", "start"),
    [
        (["<think>", "a", "</think>", "<call>"], ["thinking", "thinking", None, "call"], 3),
        (["<th", "ink>a", "</th", "ink>"], [None, "thinking", "thinking", None], 4),
        (["\n ", "<think>", "</think>"], [None, "thinking", None], 3),
        (["<think></think><call>"], ["call"], 1),
        (["<think>a</think>b", "c", "d", "e", "f"], [None, None, None, None, "words"], 1),
        (["<think>", *"abcdefg", "</think>", *"hijk"], ["thinking"] * 8 + [None] * 4 + ["words"], 9),
        (["<think>", "<call>", "</think>", "a"], ["thinking", "thinking", None, None], 3),  # thought of, not made
        (["<thing>", "a", "b", "<call>"], [None, None, None, "call"], 0),
        (["<thi", "ng>", "<call>"], [None, None, "call"], 0),
        (["a", "<think>", "b", "</think>"], [None, None, None, "words"], 0),  # a thought comes first or not at all
        (["</think>", "a", "b", "<call>"], [None, None, None, "call"], 0),
        (["<think></think>", "<think>", "b", "</think>", "<call>"], [None, None, None, None, "call"], 1),
    ],
)
def test_a_thought_that_comes_first_belongs_to_neither(tokens: list[str], found: list[str | None], start: int) -> None:
    assert followed(tokens, thought=THOUGHT) == found
    own = deciding(tokens, thought=THOUGHT)
    for index in range(len(tokens)):
        own.commit(index, is_last=False)
    assert own.start == start


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        (["a", "</think>", "<call>"], ["thinking", None, "call"]),
        (["a</th", "ink><call>"], ["thinking", "call"]),
        (["<call>", "</think>", "b"], ["thinking", None, None]),
        (["<think>", "</think>", "<think>", "<call>"], ["thinking", None, None, "call"]),
    ],
)
def test_a_thought_that_the_prompt_has_begun(tokens: list[str], found: list[str | None]) -> None:
    assert followed(tokens, thought=OPEN) == found


def test_a_text_that_is_all_thought_stays() -> None:
    assert followed(["<think>", "a"], thought=THOUGHT, ends=True)[-1] == "thinking"
    own = deciding(["a"], thought=OPEN)
    own.commit(0, is_last=True)
    assert own.verdict == "call"


@pytest.mark.parametrize("thought", [None, THOUGHT, OPEN], ids=["none", "closed", "open"])
@given(
    st.lists(st.sampled_from(["a", "<th", "ink>", "<think>", "</think>", "<", "/think>", "<call>", "c"]), max_size=9)
)
def test_a_lookahead_is_what_following_it_finds(thought: Thought | None, tokens: list[str]) -> None:
    """Drafts are tried without being taken."""
    for num_written in range(len(tokens) + 1):
        own = deciding(tokens, thought=thought, num_tokens=99)
        for index in range(num_written):
            own.commit(index, is_last=False)
        ahead = own.decides(range(num_written, len(tokens)))
        slow = deciding(tokens, thought=thought, num_tokens=99)
        for index in range(num_written):
            slow.commit(index, is_last=False)
        expected = [not slow.is_thinking]
        for index in range(num_written, len(tokens)):
            slow.commit(index, is_last=False)
            expected.append(not slow.is_thinking)
        assert ahead == expected


def test_what_is_decided_holds_for_every_token_ahead() -> None:
    tokens = ["<call>", "a", "b", "c", "d"]
    call, words = deciding(tokens), deciding(tokens)
    call.commit(0, is_last=False)
    for token_id in (1, 2, 3, 4):
        words.commit(token_id, is_last=False)
    assert (call.decides([1, 2]), words.decides([1, 2])) == ([True] * 3, [False] * 3)
