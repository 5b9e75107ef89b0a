"""The benchmark of agents without a model: its judge, its tools and tasks, and each framework of this process over a script."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from typer.testing import CliRunner

from benchmarks.agents import calls, loops
from benchmarks.agents.__main__ import LOOP_KINDS, app
from benchmarks.agents.engine import Listener
from benchmarks.agents.frameworks import IN_PROCESS, Limits
from benchmarks.agents.judging import has_facts, judge, normal, num_common, written_calls
from benchmarks.agents.task_list import TASKS, chosen, money, order, weather
from benchmarks.agents.tasks import KINDS, Call, Task
from benchmarks.agents.tools import TOOLS, Desk, run_tool
from eft_engine import SamplingParams
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import Message, ToolCall
from tests.toy import ToyTrio

BARE = '{"name": "look_up_order", "arguments": {"order_id": 1042}}'
LIMITS = Limits(weight=1.0, max_tokens=64, max_steps=3)


# ---- the judge -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        BARE,
        f"```json\n{BARE}\n```",
        f"<tool_call>\n{BARE}\n</tool_call>",
        f"<tools>\n{BARE}\n</tools>",
        f"I will look it up: {BARE}. One moment {{please}}.",
        f"{{{BARE}}}",
        f"[{BARE}]",
        f'{{"tool_calls": [{{"type": "function", "function": {BARE}}}]}}',
        '{"name": "look_up_order", "parameters": {"order_id": 1042}}',
        '{"name": "look_up_order", "arguments": "{\\"order_id\\": 1042}"}',
        '{\n  "arguments": {"order_id": 1042},\n  "name": "look_up_order"\n}',
        f'{{"answer": {BARE}}}',
        f"{BARE}}}",
    ],
)
def test_judge_finds_a_call_in_every_form(raw: str) -> None:
    written = written_calls(raw)
    assert written.calls == [Call("look_up_order", {"order_id": 1042})]
    assert (written.odd, written.num_broken) == ([], 0)


def test_judge_finds_several_calls_in_their_order() -> None:
    other = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'
    for raw in (f"{BARE}\n{other}", f"[{BARE}, {other}]", f"First {BARE}, then\n```json\n{other}\n```"):
        assert [call.name for call in written_calls(raw).calls] == ["look_up_order", "get_weather"]


@pytest.mark.parametrize("key", ["function", "tool", "function_name"])
def test_calls_under_other_keys_are_counted_apart(key: str) -> None:
    written = written_calls(f'{{"answer": {{"{key}": "look_up_order", "arguments": {{"order_id": 1042}}}}}}')
    assert (written.calls, written.odd) == ([], [Call("look_up_order", {"order_id": 1042})])


@pytest.mark.parametrize(
    "raw",
    [
        "Order 1042 is shipped.",
        '{"answer": "It is shipped.", "topic": "order"}',
        '{"name": "fly", "arguments": {}}',
        '{"name": "look_up_order"}',
        '{"name": "look_up_order", "description": "Look up an order.", "parameters": {"type": "object"}}',
        "",
    ],
)
def test_other_texts_hold_no_call(raw: str) -> None:
    assert written_calls(raw).all == []


@pytest.mark.parametrize("raw", [BARE[:-4], BARE.replace('"', "'"), f"<tool_call>\n{BARE[:-2]}\n</tool_call>"])
def test_calls_that_are_no_json_are_broken(raw: str) -> None:
    written = written_calls(raw)
    assert (written.all, written.num_broken) == ([], 1)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("get_weather", {"city": " oslo"}, {"city": "Oslo", "day": "today", "unit": "celsius"}),
        ("look_up_order", {"order_id": "1042"}, {"order_id": 1042}),
        ("find_products", {"query": "Kettles"}, {"query": "kettle", "max_price": None, "sort": "price"}),
        ("calculate", {"expression": "129 + 37*48"}, {"expression": "48 * 37 + 129"}),
        (
            "create_event",
            {"title": "A", "date": "2026-03-14", "attendees": ["ben", "Ana"]},
            {"title": "B", "date": "2026-03-14", "attendees": ["Ana", "Ben"], "reminder": None},
        ),
    ],
)
def test_calls_that_ask_for_the_same_are_equal(name: str, first: dict[str, Any], second: dict[str, Any]) -> None:
    assert normal(Call(name, first)) == normal(Call(name, second))


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("get_weather", {"city": "Oslo"}, {"city": "Oslo", "day": "tomorrow"}),
        ("get_weather", {"city": "Oslo"}, {"city": "Oslo", "country": "Norway"}),
        ("convert_currency", {"amount": 1, "source": "EUR"}, {"amount": 1, "source": "EUR", "target": "USD"}),
        ("find_products", {"query": "lamp"}, {"query": "lamp", "max_price": 30}),
    ],
)
def test_calls_that_ask_for_something_else_differ(name: str, first: dict[str, Any], second: dict[str, Any]) -> None:
    assert normal(Call(name, first)) != normal(Call(name, second))


def test_verdict_parts_right_wrong_missing_and_superfluous_calls() -> None:
    wanted = [weather("Oslo"), order(1042)]
    verdict = judge([weather("oslo"), weather("Oslo"), order(7), Call("calculate", {"expression": "1"})], wanted)
    assert verdict.right == [weather("oslo")]
    assert verdict.wrong_arguments == [order(7)]
    assert [call.name for call in verdict.superfluous] == ["get_weather", "calculate"]
    assert not verdict.nothing_wrong
    half = judge([weather("Oslo")], wanted)
    assert half.nothing_wrong
    assert not half.complete
    assert judge([], []).complete
    assert not judge([], wanted).nothing_wrong
    assert judge([*wanted, Call("calculate", {"expression": "2"})], wanted, allowed=("calculate",)).complete


def test_common_calls_are_counted_once_each() -> None:
    assert num_common([order(1), order(1), order(2)], [order(1), order(3)]) == 1


@pytest.mark.parametrize(
    ("answer", "facts", "holds"),
    [
        ("That makes **11,200 JPY**.", (11200.0,), True),
        ("75.20°F", (75.2,), True),
        ("It costs 1559.9 EUR", (59.9,), False),
        ("The Desk Lamp.", ("desk",), True),
        ("Salut !", ("bonjour|salut",), True),
        ("sleet in Oslo", ("sleet", "overcast"), False),
    ],
)
def test_facts(answer: str, facts: tuple[Any, ...], holds: bool) -> None:
    assert has_facts(answer, facts) is holds


# ---- tools and tasks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_expected_calls_give_the_facts_which_the_question_does_not(task: Task) -> None:
    for turn in task.turns:
        results = [call.result() for step in turn.steps for call in step]
        assert not any(result.startswith(("error", "no product")) for result in results)
        assert not results or has_facts(" ".join(results), turn.facts)
        assert not turn.steps or not has_facts(turn.question, turn.facts)
        assert not turn.answer or has_facts(turn.answer, turn.facts) or task.kind == "follow_up"


def test_tasks_are_of_all_kinds_and_many() -> None:
    assert len(TASKS) >= 40
    assert len({task.name for task in TASKS}) == len(TASKS)
    assert {task.kind for task in TASKS} == set(KINDS)
    assert {call.name for task in TASKS for call in task.all_calls} == set(TOOLS)
    assert [task.kind for task in chosen(6)] == list(KINDS)
    assert len(chosen(0)) == len(TASKS)
    assert {task.kind for task in chosen(8, kinds=LOOP_KINDS)} == set(LOOP_KINDS)
    with pytest.raises(ValueError, match="no task 'nothing'"):
        chosen(0, names=["nothing"])


@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        ("get_weather", {"city": "Paris"}, "error: no weather"),
        ("convert_currency", {"amount": 1, "source": "EUR", "target": "SEK"}, "error: currencies"),
        ("look_up_order", {"order_id": 1}, "error: there is no order"),
        ("find_products", {"query": "piano"}, "no product"),
        ("calculate", {"expression": "__import__('os')"}, "error:"),
        ("calculate", {"expression": "1 / 0"}, "error:"),
        ("create_event", {"title": "x", "date": "14 March", "attendees": []}, "error: date"),
    ],
)
def test_tools_answer_with_errors_instead_of_raising(name: str, arguments: dict[str, Any], answer: str) -> None:
    assert run_tool(name, arguments).startswith(answer)


def test_desk_writes_down_calls_however_arguments_are_given() -> None:
    desk = Desk()
    look_up = next(tool for tool in desk.tools if tool.__name__ == "convert_currency")
    assert look_up(10, "EUR", target="USD") == "10 EUR = 12.5 USD"
    assert [Call(*call) for call in desk.executed] == [money(10, "EUR", "USD")]


# ---- one request per task ------------------------------------------------------------------------------------------------


def test_conversation_is_rendered_up_to_its_one_request() -> None:
    (chain,) = chosen(0, names=["order_in_dollars"])
    assert [message.type for message in calls.conversation(chain)] == ["system", "human", "ai", "tool"]
    assert chain.next_calls == (money(112, "EUR", "USD"),)
    (follow_up,) = chosen(0, names=["and_tomorrow"])
    types = [message.type for message in calls.conversation(follow_up)]
    assert types == ["system", "human", "ai", "tool", "ai", "human"]


def test_summary_of_answers() -> None:
    (task,) = chosen(0, names=["order_status"])
    call = {"name": "look_up_order", "args": {"order_id": 3305}, "id": "1"}
    raw = '{"name": "look_up_order", "arguments": {"order_id": 3305}}'
    options: dict[str, Any] = {"weight": 1.0, "choice": "auto", "seconds": 1.0}
    seen = calls.read(task, AIMessage("", tool_calls=[call]), raw, **options)
    missed = calls.read(task, AIMessage(raw), raw, **options)
    summary = calls.summary([seen, missed])
    assert (summary["recognised"].hits, summary["recognised"].total) == (1, 2)
    assert (summary["complete"].hits, summary["superfluous"]) == (1, 0)
    assert (seen.is_failure, missed.is_failure) == (False, True)
    assert json.dumps(seen.as_json())


async def test_raw_texts_of_an_engine_are_heard(toy_trio: ToyTrio) -> None:
    options = {"sampling": SamplingParams(temperature=0.0, max_tokens=4), "reward_weights": 1.0}
    with toy_trio.engine() as engine:
        listener = Listener(engine)
        heard = "".join(delta.text_delta for delta in listener.stream("hello", **options))
        later = "".join([delta.text_delta async for delta in listener.astream("hello", **options)])
        assert listener.take() == [heard, later]
        assert heard == later == engine.generate("hello", **options).text
        assert listener.context_len == engine.context_len
    assert listener.take() == []


# ---- agents --------------------------------------------------------------------------------------------------------------


def called(name: str, **arguments: Any) -> Message:
    """A reply that calls a tool."""
    return Message("assistant", "", (ToolCall(f"id_{name}", name, json.dumps(arguments)),))


def code(text: str) -> str:
    """A reply of a model that writes code."""
    return f"Thought: go.\n<code>\n{text}\n</code>"


SCRIPTS: dict[str, Callable[[Call, str], list[str | Message]]] = {
    "langchain": lambda call, answer: [called(call.name, **call.arguments), answer],
    "llama-index": lambda call, answer: [called(call.name, **call.arguments), answer],
    "smolagents-tools": lambda call, answer: [
        called(call.name, **call.arguments),
        called("final_answer", answer=answer),
    ],
    "smolagents-code": lambda call, answer: [
        code(f"print({call.name}(**{call.arguments}))"),
        code(f"final_answer({answer!r})"),
    ],
}


@pytest.mark.parametrize("framework", IN_PROCESS)
def test_agent_makes_the_calls_and_gives_the_answer(framework: str) -> None:
    (task,) = chosen(0, names=["and_tomorrow"])
    today, tomorrow = task.all_calls
    replies = [*SCRIPTS[framework](today, "Sleet."), *SCRIPTS[framework](tomorrow, "Tomorrow there is fog.")]
    backend = ScriptedBackend(replies)
    (done,) = loops.run_here(framework, {"backend": backend}, [task], LIMITS)
    assert done.error is None
    assert (done.answer, done.has_facts, done.at_limit) == ("Tomorrow there is fog.", True, False)
    assert done.verdict.complete
    assert [request.sampling["max_tokens"] for request in backend.requests] == [64] * 4
    assert any("Sleet" in message.content or message.tool_calls for message in backend.requests[-1].messages)


@pytest.mark.parametrize("framework", IN_PROCESS)
def test_agent_ends_at_its_limit_of_steps(framework: str) -> None:
    (task,) = chosen(0, names=["order_status"])
    (wanted,) = task.all_calls
    replies = [SCRIPTS[framework](wanted, "")[0] for _ in range(LIMITS.max_steps)]
    backend = ScriptedBackend([*replies, "I do not know."])
    (done,) = loops.run_here(framework, {"backend": backend}, [task], LIMITS)
    assert done.error is None
    assert done.at_limit
    assert not done.has_facts
    assert len(done.executed) - len(done.verdict.superfluous) == 1


def test_failures_of_an_agent_are_results() -> None:
    (done,) = loops.run_here("langchain", {"backend": ScriptedBackend([IndexError("lost")])}, chosen(1), LIMITS)
    assert str(done.error).startswith("IndexError")
    assert loops.summary([done])["errors"] == 1
    assert json.dumps(done.as_json())


def test_what_is_missing_is_said(tmp_path: Any) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    files = ["--base", str(file), "--reference", str(file), "--adapter", str(tmp_path / "none")]
    told = CliRunner().invoke(app, ["calls", *files])
    assert told.exit_code == 2
    assert "--adapter: there is no" in told.output
    told = CliRunner().invoke(
        app, ["loops", *files, "--framework", "openai-agents", "--client-python", str(tmp_path / "p")]
    )
    assert "make test-clients" in told.output
    told = CliRunner().invoke(app, ["loops", *files, "--framework", "crew"])
    assert "there is no framework 'crew'" in told.output
