"""A thought is told from the answer while the text comes, in whatever pieces, and grammars leave room for it in front."""

from __future__ import annotations

from typing import Literal

import pytest

from eft_integrations.chat.tags import TAGS, Tags, tags_of
from eft_integrations.chat.template import NO_TEMPLATE, TemplateTraits
from eft_integrations.chat.thought_reader import Thought, ThoughtReader
from eft_integrations.chat.thoughts import Thoughts, switched, thoughts_of

THINK = Tags("<think>", "</think>")
GRANITE = Tags("<think>", "</think>", ("<response>", "</response>"))
State = Literal["open", "possible", "over"]


def told(text: str, step: int, *, tags: Tags = THINK, state: State = "possible") -> tuple[str, str]:
    """Thought and answer of a text that arrives in steps."""
    reader = ThoughtReader(Thoughts(tags, state))
    pieces = [piece for start in range(0, len(text), step) for piece in reader.feed(text[start : start + step])]
    pieces += reader.finish()
    thought = "".join(piece.text for piece in pieces if isinstance(piece, Thought))
    return thought, "".join(piece for piece in pieces if isinstance(piece, str))


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("state", "text", "thought", "answer"),
    [
        ("possible", "<think>\nhm, so\n</think>\n\nYes.\n", "hm, so", "Yes.\n"),
        ("possible", "\n<think>hm</think>Yes.", "hm", "Yes."),
        ("possible", "Yes. <think>hm</think>", "", "Yes. <think>hm</think>"),
        ("possible", "  <thin air", "", "  <thin air"),
        ("possible", "", "", ""),
        ("possible", "<think>", "", ""),
        ("possible", "<think>\n\n</think>\n\nYes.", "", "Yes."),
        ("possible", "<think>a < b </thin c", "a < b </thin c", ""),
        ("possible", "<think>a\n\n  b </thi", "a\n\n  b </thi", ""),
        ("possible", "<think>a</think>b</think>c", "a", "b</think>c"),
        ("possible", "<think>a</think> <think>b</think>c", "a", "<think>b</think>c"),
        ("open", "hm, so\n</think>\n\nYes.", "hm, so", "Yes."),
        ("open", "<think>\nhm\n</think>Yes.", "hm", "Yes."),
        ("open", "</think>\n\nYes.", "", "Yes."),
        ("open", "hm", "hm", ""),
        ("over", "Yes.", "", "Yes."),
        ("over", "<think>hm</think>Yes.", "hm", "Yes."),
    ],
)
def test_thought_and_answer(state: State, text: str, thought: str, answer: str, step: int) -> None:
    assert told(text, step, state=state) == (thought, answer)


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<think>hm</think><response>\nYes.\n</response>\n", "hm", "Yes."),
        ("<think>hm</think>\n\n<response>a </resp b</response>", "hm", "a </resp b"),
        ("<think>hm</think>Yes.</response>", "hm", "Yes.</response>"),
        ("<think>hm</think><response>cut", "hm", "cut"),
        ("Yes. <response>x</response>", "", "Yes. <response>x</response>"),
    ],
)
def test_marks_around_what_is_said_are_no_part_of_it(text: str, thought: str, answer: str, step: int) -> None:
    assert told(text, step, tags=GRANITE) == (thought, answer)


def test_a_thought_passes_while_it_comes() -> None:
    reader = ThoughtReader(Thoughts(THINK))
    assert list(reader.feed("<think>first ")) == [Thought("first")]
    assert reader.is_thinking
    assert list(reader.feed("second </th")) == [Thought(" second")]
    assert list(reader.feed("ink>\n")) == []
    assert not reader.is_thinking
    assert list(reader.feed("\nsaid")) == ["said"]


@pytest.mark.parametrize("tags", TAGS, ids=lambda own: own.opening.strip())
def test_tags_of_families(tags: Tags) -> None:
    template = f"... {tags.opening}{{{{ x }}}}{tags.closing} {''.join(tags.said or ())}"
    assert tags_of(template) == tags
    assert told(f"{tags.opening}hm{tags.closing}\nYes.", 2, tags=tags) == ("hm", "Yes.")


def test_a_template_without_tags_and_a_tokenizer_with_them() -> None:
    known = {"<think>": 7, "</think>": 8}
    asked = {"tags": tags_of("{{ messages }}"), "budget": 9}
    assert thoughts_of("{{ messages }}", [], {}, known_tokens={}, **asked) is None
    found = thoughts_of("{{ messages }}", [], {}, known_tokens=known, **asked)
    assert found is not None
    assert (found.tags.opening, found.is_expected) == ("<think>", False)


USERS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>"


@pytest.mark.parametrize(
    ("tail", "variables", "state"),
    [
        ("", {}, "possible"),
        ("<think>\n", {}, "open"),
        ("{% if thinking is defined and not thinking %}<think>\n\n</think>\n{% endif %}", {}, "possible"),
        ("{% if thinking is defined and not thinking %}<think>\n\n</think>\n{% endif %}", {"thinking": False}, "over"),
        ("{{ '<think>' if thinking else '</think>' }}", {}, "over"),
        ("{{ '<think>' if thinking else '</think>' }}", {"thinking": True}, "open"),
    ],
)
def test_state_is_what_the_prompt_ends_with(tail: str, variables: dict[str, bool], state: str) -> None:
    template = f"{USERS}{tail}{{% endif %}}{{# </think> #}}"
    for said in ("one", "what does <think> do?", "and </think>?"):
        messages = [{"role": "user", "content": said}]
        found = thoughts_of(template, messages, variables, tags=tags_of(template), known_tokens={}, budget=None)
        assert found is not None
        assert found.state == state


@pytest.mark.parametrize(
    ("reasoning", "names", "told_variables", "is_told"),
    [
        ("auto", {"enable_thinking"}, {}, True),
        ("off", {"enable_thinking"}, {"enable_thinking": False}, True),
        ("high", {"enable_thinking"}, {"enable_thinking": True}, True),
        ("low", {"reasoning_effort"}, {"reasoning_effort": "low"}, True),
        ("off", {"reasoning_effort"}, {"reasoning_effort": "none"}, True),
        ("off", {"thinking_budget"}, {"thinking_budget": 0}, True),
        ("high", set(), {}, False),
        ("off", set(), {}, False),
    ],
)
def test_one_option_reaches_the_variable_of_the_template(
    reasoning: str, names: set[str], told_variables: dict[str, object], is_told: bool
) -> None:
    traits = TemplateTraits(variables=frozenset(names))
    found = switched(reasoning, None, traits, in_channels=False)
    assert (found.variables, found.is_told) == (told_variables, is_told)


def test_channels_take_no_effort_of_none_and_a_budget_reaches_its_variable() -> None:
    efforts = TemplateTraits(variables=frozenset({"reasoning_effort"}))
    found = switched("off", None, efforts, in_channels=True)
    assert (found.variables, found.is_told) == ({"reasoning_effort": "low"}, False)
    budgets = TemplateTraits(variables=frozenset({"thinking_budget"}))
    assert switched("auto", 64, budgets, in_channels=False).variables == {"thinking_budget": 64}
    assert switched("auto", 64, NO_TEMPLATE, in_channels=False).variables == {}
