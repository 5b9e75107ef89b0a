"""What chat templates can do is found out by asking them, and conversations are put into the order and form that they take."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from eft_engine.errors import InvalidOptionError
from eft_integrations.chat.conversation import arranged, as_mappings, with_documents
from eft_integrations.chat.messages import LOOSE, Message, Tool, ToolCall
from eft_integrations.chat.notations import DEEPSEEK_V3, HERMES
from eft_integrations.chat.request import ToolChoice
from eft_integrations.chat.tags import Tags
from eft_integrations.chat.template import TemplateTraits, traits_of
from eft_integrations.chat.thoughts import split_thought

TOOLS = [Tool("add", "adds", {"type": "object", "properties": {"a": {"type": "integer"}}}), Tool("now")]
PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
EVERYTHING = TemplateTraits(shows_tools=True, arguments="object", shows_results=True, parallel=True)
THINK = Tags("<think>", "</think>")
CALLS = (ToolCall("1", "add", '{"a": 3}'), ToolCall("2", "now", "{}"))
LOOP = [
    Message("user", "3?"),
    Message("assistant", "Let me see.", tool_calls=CALLS),
    Message("tool", "4", tool_call_id="1", name="add"),
    Message("tool", "noon", tool_call_id="2", name="now"),
    Message("assistant", "4 at noon."),
]

CALLING = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ ARGUMENTS }}]{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (PLAIN, TemplateTraits()),
        (PLAIN + "{{ tools }}", TemplateTraits(shows_tools=True, shows_results=True)),
        (
            CALLING.replace("ARGUMENTS", "c.function.arguments | tojson"),
            TemplateTraits(arguments="object", shows_results=True, parallel=True),
        ),
        (
            CALLING.replace("ARGUMENTS", "'' + c.function.arguments"),
            TemplateTraits(arguments="string", shows_results=True, parallel=True),
        ),
        (
            CALLING.replace("ARGUMENTS", "c.function.arguments | tojson").replace(
                "m.tool_calls or []", "(m.tool_calls or [])[:1]"
            ),
            TemplateTraits(arguments="object", shows_results=True, parallel=False),
        ),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN,
            TemplateTraits(system="never"),
        ),
        (
            "{% for m in messages[1:] %}{% if m.role == 'system' %}{{ raise_exception('late') }}{% endif %}{% endfor %}"
            + PLAIN,
            TemplateTraits(system="first"),
        ),
        (
            "{% for m in messages[1:] %}{% if m.role == messages[loop.index0].role %}{{ raise_exception('twice') }}{% endif %}"
            "{% endfor %}" + PLAIN,
            TemplateTraits(alternates=True),
        ),
        (
            CALLING.replace("ARGUMENTS", "c.function.arguments | tojson")
            + "{% for m in messages %}{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('id') }}"
            "{% endif %}{% endfor %}{% endfor %}",
            TemplateTraits(arguments="object", shows_results=True, parallel=True, short_ids=True),
        ),
        ("{{ raise_exception('never') }}", TemplateTraits()),
        ("{% broken", TemplateTraits()),
    ],
)
def test_traits_are_what_a_template_does(template: str, expected: TemplateTraits) -> None:
    assert dataclasses.replace(traits_of(template), reads=None) == expected


@pytest.mark.parametrize(
    ("template", "reads"),
    [
        ("{% for m in messages %}{{ m.role }}{% endfor %}{{ tone }}", {"messages", "tone"}),
        ("{% set own = 1 %}{% if tools %}{{ own }}{% endif %}", {"tools"}),
        ("{% broken", None),
    ],
)
def test_variables_that_a_template_reads_are_known(template: str, reads: set[str] | None) -> None:
    assert traits_of(template).reads == reads


def test_a_template_that_can_do_everything_gets_the_turns_as_they_are() -> None:
    turns = [Message("system", "Be brief."), *LOOP, Message("system", "Now in French."), Message("user", "5?")]
    assert arranged(turns, TOOLS, EVERYTHING, HERMES) == turns


def test_tools_calls_and_results_become_text_for_a_template_that_knows_none() -> None:
    system, user, called, results, answer = arranged(
        [Message("system", "Be brief."), *LOOP], TOOLS, TemplateTraits(), DEEPSEEK_V3
    )
    assert system.content.startswith("Be brief.")
    assert all(json.dumps(tool.as_openai()) in system.content for tool in TOOLS)
    assert "<｜tool▁call▁begin｜>" in system.content, "the model is shown its own notation"
    assert (user, answer) == (LOOP[0], LOOP[-1])
    assert called == Message("assistant", f"Let me see.\n{DEEPSEEK_V3.write(CALLS)}")
    assert results.role == "user"
    assert results.content == "The function add returned:\n4\n\nThe function now returned:\nnoon"


def test_results_of_calls_in_another_form_than_the_templates_come_in_words() -> None:
    call = ToolCall(f"{LOOSE}1", "add", '{"a": 3}')
    turns = [LOOP[0], Message("assistant", "", tool_calls=(call,)), Message("tool", "4", tool_call_id=call.call_id)]
    *before, result = arranged(turns, TOOLS, EVERYTHING, HERMES)
    assert before == turns[:2], "the call itself is the template's"
    assert result == Message("user", "The function add returned:\n4")


def test_calls_of_one_turn_follow_one_another_where_a_turn_has_one() -> None:
    single = TemplateTraits(shows_tools=True, arguments="object", shows_results=True, parallel=False)
    _, first, first_result, second, second_result, _ = arranged(LOOP, TOOLS, single, HERMES)
    assert (first.content, first.tool_calls, first_result) == ("Let me see.", CALLS[:1], LOOP[2])
    assert (second.content, second.tool_calls, second_result) == ("", CALLS[1:], LOOP[3])


@pytest.mark.parametrize("system", ["first", "never"])
def test_system_turns_go_where_the_template_takes_them(system: str) -> None:
    traits = TemplateTraits(system=system)  # type: ignore[arg-type]
    turns = [
        Message("system", "A"),
        Message("user", "b"),
        Message("assistant", "c"),
        Message("system", "D"),
        Message("user", "e"),
    ]
    seen = [(turn.role, turn.content) for turn in arranged(turns, (), traits, HERMES)]
    later = [("assistant", "c"), ("user", "D\n\ne")]
    assert seen == ([("system", "A"), ("user", "b"), *later] if system == "first" else [("user", "A\n\nb"), *later])
    assert arranged([Message("system", "A")], (), TemplateTraits(system="never"), HERMES) == [Message("user", "A")]


def test_turns_of_one_role_become_one() -> None:
    turns = [Message("user", "a", name="x"), Message("user", "b", name="y"), Message("user", "c", name="y")]
    assert arranged(turns, (), EVERYTHING, HERMES) == [turns[0], Message("user", "b\n\nc", name="y")]
    assert arranged(turns, (), TemplateTraits(alternates=True), HERMES) == [Message("user", "a\n\nb\n\nc")]
    assert arranged([], (), EVERYTHING, HERMES) == []


def test_ids_and_arguments_are_the_templates() -> None:
    call = Message("assistant", "", tool_calls=CALLS[:1])
    plain = as_mappings([call], EVERYTHING, None)[0]
    assert plain["tool_calls"] == [{"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 3}}}]
    strict = TemplateTraits(arguments="string", short_ids=True)
    mapping: Any = as_mappings([call], strict, None)[0]
    result = as_mappings([LOOP[2]], strict, None)[0]
    (shown,) = mapping["tool_calls"]
    assert (mapping["content"], shown["function"]["arguments"]) == ("", '{"a": 3}')
    assert len(shown["id"]) == 9
    assert result["tool_call_id"] == shown["id"]
    assert "tool_calls" not in as_mappings([Message("assistant", "a")], EVERYTHING, None)[0], (
        "some templates ask for the key alone"
    )


@pytest.mark.parametrize(
    ("trait", "shown"),
    [
        ("reasoning_content", {"content": "Yes.", "reasoning_content": "hm"}),
        ("thinking", {"content": "Yes.", "thinking": "hm"}),
        ("chunk", {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Yes."}]}),
        ("content", {"content": "<think>\nhm\n</think>\n\nYes."}),
        (None, {"content": "Yes."}),
    ],
)
def test_thoughts_of_earlier_turns_stand_where_the_template_takes_them(trait: Any, shown: dict[str, Any]) -> None:
    turn = Message("assistant", "Yes.", reasoning="hm")
    traits = dataclasses.replace(EVERYTHING, thought=trait)
    assert as_mappings([turn], traits, THINK) == [{"role": "assistant", **shown}]
    in_tags = split_thought(Message("assistant", "<think>\nhm\n</think>\n\nYes."), THINK)
    assert as_mappings([in_tags], traits, THINK) == [{"role": "assistant", **shown}]


def test_a_template_without_thoughts_gets_those_of_the_loop_that_goes_on() -> None:
    turns = [
        Message("user", "a"),
        Message("assistant", "b", reasoning="old"),
        Message("user", "c"),
        Message("assistant", "", CALLS[:1], reasoning="new"),
        Message("tool", "3", tool_call_id="1"),
    ]
    assert [turn.reasoning for turn in arranged(turns, (), EVERYTHING, HERMES)] == ["", "", "", "new", ""]
    asks = dataclasses.replace(EVERYTHING, thought="reasoning_content")
    assert [turn.reasoning for turn in arranged(turns, (), asks, HERMES)] == ["", "old", "", "new", ""]


def test_words_join_the_thought_where_both_cannot_stand() -> None:
    traits = dataclasses.replace(EVERYTHING, thought="thinking", thought_beside_words=False)
    (mapping,) = as_mappings([Message("assistant", "I look.", CALLS[:1], reasoning="hm")], traits, None)
    assert (mapping["thinking"], mapping["content"]) == ("hm\n\nI look.", "")


def test_documents_stand_in_front_of_the_last_question() -> None:
    turns = with_documents([Message("user", "a"), Message("assistant", "b"), Message("user", "c")], [{"text": "D"}])
    assert [turn.content for turn in turns] == ["a", "b", "D\n\nc"]
    assert with_documents([], [{"title": "T", "text": "D"}]) == [Message("user", "T\nD")]


@pytest.mark.parametrize(
    ("value", "mode", "name"),
    [
        (None, "auto", None),
        ("auto", "auto", None),
        ("none", "none", None),
        ("any", "required", None),
        ("required", "required", None),
        (True, "required", None),
        ("add", "named", "add"),
        ({"type": "function", "function": {"name": "now"}}, "named", "now"),
        ({"type": "any"}, "required", None),
    ],
    ids=str,
)
def test_choice_is_understood_in_every_form(value: object, mode: str, name: str | None) -> None:
    choice = ToolChoice.parse(value, TOOLS)
    assert (choice.mode, choice.name) == (mode, name)


@pytest.mark.parametrize(
    ("value", "reason"), [("sub", "the tools are add, now"), (3, "must be auto"), ({}, "must be auto")]
)
def test_choice_that_means_nothing_is_refused(value: object, reason: str) -> None:
    with pytest.raises(InvalidOptionError, match=reason):
        ToolChoice.parse(value, TOOLS)


@pytest.mark.parametrize("value", ["any", "add", True])
def test_demanded_call_needs_tools(value: object) -> None:
    with pytest.raises(InvalidOptionError, match="no tools were given"):
        ToolChoice.parse(value, [])


# ---- histories that were trimmed -----------------------------------------------------------------------------------------

ALTERNATING = dataclasses.replace(EVERYTHING, alternates=True, system="first")
SAID = Message("user", "The function add returned:\n4")
ADD = Message("assistant", "", tool_calls=CALLS[:1])
FOUR = Message("tool", "4", tool_call_id="1", name="add")


@pytest.mark.parametrize("traits", [EVERYTHING, ALTERNATING])
def test_result_whose_call_is_gone_is_something_that_the_user_says(traits: TemplateTraits) -> None:
    assert arranged([FOUR], TOOLS, traits, HERMES) == [SAID]
    begun = [Message("user", "3?"), Message("assistant", "Wait."), FOUR]
    assert arranged(begun, TOOLS, traits, HERMES) == [*begun[:2], SAID]
    assert arranged([Message("user", "3?"), ADD, FOUR], TOOLS, traits, HERMES)[2] == FOUR


@pytest.mark.parametrize("results", [[], [FOUR]])
def test_user_may_go_on_behind_a_call_where_roles_alternate(results: list[Message]) -> None:
    turns = [Message("user", "3?"), ADD, *results, Message("user", "Never mind.")]
    assert arranged(turns, TOOLS, EVERYTHING, HERMES) == turns
    question, call, rest = arranged(turns, TOOLS, ALTERNATING, HERMES)
    assert (question, call.role, call.tool_calls, rest.role) == (turns[0], "assistant", (), "user")
    assert '"add"' in call.content
    assert rest.content.endswith("Never mind.")
    assert (SAID.content in rest.content) == bool(results)


@pytest.mark.parametrize("before", [[], [Message("system", "Be kind.")]])
def test_assistant_may_speak_first_where_roles_alternate(before: list[Message]) -> None:
    turns = [*before, Message("assistant", "Hello!"), Message("user", "3?")]
    assert arranged(turns, [], EVERYTHING, HERMES) == turns
    assert arranged(turns, [], ALTERNATING, HERMES) == [*before, Message("user", ""), *turns[len(before) :]]


# ---- results -------------------------------------------------------------------------------------------------------------

SHOWS_IDS_OF_NONE = TemplateTraits(shows_tools=True, arguments="object", shows_results=True, parallel=True)
NAMES = {"1": "add", "2": "now", "3": "add"}


def asked_for(ids: str) -> Message:
    """A turn that calls some of `NAMES`."""
    return Message("assistant", "", tool_calls=tuple(ToolCall(own, NAMES[own], "{}") for own in ids))


def told(content: str, call_id: str | None = None, name: str | None = None) -> Message:
    """A result."""
    return Message("tool", content, tool_call_id=call_id, name=name)


@pytest.mark.parametrize(
    ("ids", "results", "expected"),
    [
        ("123", [told("c", "3"), told("a", "1"), told("b", "2")], ["a", "b", "c"]),
        ("123", [told("b", "2")], ["(no result)", "b", "(no result)"]),
        ("123", [told("b", name="now"), told("a"), told("c")], ["a", "b", "c"]),
        ("123", [told("a"), told("c", "3"), told("b")], ["a", "b", "c"]),
        ("11", [told("first", "1"), told("second", "1"), told("more", "1")], ["first", "second", "more"]),
        ("12", [told("of another", "9"), told("b", "2"), told("a", "1")], ["a", "b", "of another"]),
        ("1", [told("a", "9")], ["a"]),
        ("12", [], []),
    ],
    ids=["late", "missing", "by name", "by place", "one id", "of no call", "one call", "none yet"],
)
@pytest.mark.parametrize("parallel", [True, False])
def test_results_come_in_the_order_of_their_calls(
    ids: str, results: list[Message], expected: list[str], parallel: bool
) -> None:
    turns = [Message("user", "go"), asked_for(ids), *results, Message("user", "on")]
    traits = dataclasses.replace(SHOWS_IDS_OF_NONE, parallel=parallel)
    shown = arranged(turns, (), traits, HERMES)
    assert [turn.content for turn in shown if turn.role == "tool"] == expected
    assert [call.call_id for turn in shown for call in turn.tool_calls] == list(ids)
    assert turns[1].tool_calls == asked_for(ids).tool_calls
    if not parallel and len(results) == len(ids) > 1:
        assert [turn.role for turn in shown[1:3]] == ["assistant", "tool"]


def test_result_without_an_id_gets_that_of_its_call() -> None:
    shown = arranged([asked_for("12"), told("b", name="now"), told("a")], (), SHOWS_IDS_OF_NONE, HERMES)
    assert [(turn.content, turn.tool_call_id, turn.name) for turn in shown[1:]] == [
        ("a", "1", "add"),
        ("b", "2", "now"),
    ]
