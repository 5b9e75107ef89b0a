"""What one request may hold is counted before anybody works on it, and nothing long runs on the event loop."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import inspect
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from transformers import PreTrainedTokenizerBase

from eft_engine import Engine, errors
from eft_engine.overdue import for_others
from eft_engine.text import prompt as prompts
from eft_integrations.backends import engine as backends
from eft_integrations.backends.engine import EngineBackend
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat import answer, loose, reading
from eft_integrations.chat.forms import MAX_OPENINGS, behind_openings
from eft_integrations.chat.messages import Message, Tool
from eft_integrations.chat.prompt import Asked
from eft_integrations.chat.request import ChatRequest, ToolChoice
from eft_integrations.chat.template import RENDERING
from eft_integrations.server.bodies.bounds import BoundSettings
from eft_integrations.server.seen.wording import MOST_CLEANED, clean
from eft_integrations.server.settings import ServerSettings
from tests.integrations.server.serving import in_process
from tests.toy import make_trio

CHAT, COMPLETIONS, RESPONSES, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize"
SMALL = BoundSettings(
    messages=3, parts=4, documents=2, prompts=3, answers=4, tools=2, stop=2, stop_bytes=8, stop_token_ids=2, schema_bytes=400,
    schema_values=30, all_schemas_bytes=600, logit_bias=2, name_chars=64, json_values=500, json_depth=20,
)  # fmt: skip
HI = {"role": "user", "content": "hi"}
PART = {"type": "text", "text": "a"}


def tool(name: str = "look", description: str = "") -> dict[str, Any]:
    """A tool as chat completions have it."""
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": {"type": "object"}},
    }


def flat(name: str = "look") -> dict[str, Any]:
    """A tool as responses have it."""
    return {"type": "function", "name": name, "parameters": {"type": "object"}}


def long_schema(length: int) -> dict[str, Any]:
    """A schema of so many bytes and more."""
    return {"type": "string", "const": "a" * length}


BROAD: dict[str, Any] = {"enum": list(range(40))}
TOO_MUCH: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "messages": (CHAT, {"messages": [HI] * 4}, "too_many_messages", "messages"),
    "items": (RESPONSES, {"input": [HI] * 4}, "too_many_messages", "input"),
    "messages that are tokenised": (TOKENIZE, {"messages": [HI] * 4}, "too_many_messages", "messages"),
    "parts": (CHAT, {"messages": [{"role": "user", "content": [PART] * 3}] * 2}, "too_many_parts", "messages"),
    "parts of items": (RESPONSES, {"input": [{"role": "user", "content": [PART] * 5}]}, "too_many_parts", "input"),
    "documents": (CHAT, {"messages": [HI], "documents": [{"text": "a"}] * 3}, "too_many_documents", "documents"),
    "prompts": (COMPLETIONS, {"prompt": ["a"] * 4}, "too_many_prompts", "prompt"),
    "prompts times n": (COMPLETIONS, {"prompt": ["a"] * 3, "n": 2}, "too_many_answers", "n"),
    "answers of a chat": (CHAT, {"messages": [HI], "n": 5}, "too_many_answers", "n"),
    "tools": (CHAT, {"messages": [HI], "tools": [tool()] * 3}, "too_many_tools", "tools"),
    "tools of responses": (RESPONSES, {"input": "a", "tools": [flat()] * 3}, "too_many_tools", "tools"),
    "tools that are tokenised": (TOKENIZE, {"messages": [HI], "tools": [tool()] * 3}, "too_many_tools", "tools"),
    "stop strings": (CHAT, {"messages": [HI], "stop": ["a", "b", "c"]}, "too_many_stop", "stop"),
    "bytes of stop strings": (COMPLETIONS, {"prompt": "a", "stop": "ä" * 5}, "too_many_stop_bytes", "stop"),
    "stop tokens": (COMPLETIONS, {"prompt": "a", "stop_token_ids": [1, 2, 3]}, "too_many_stop_token_ids", "stop_token_ids"),
    "logit_bias": (COMPLETIONS, {"prompt": "a", "logit_bias": {"1": 1, "2": 1, "3": 1}}, "too_many_logit_bias", "logit_bias"),
    "name of a tool": (CHAT, {"messages": [HI], "tools": [tool("a" * 65)]}, "name_too_long", "tools.0.function.name"),
    "name of a model": (CHAT, {"model": "m" * 65, "messages": [HI]}, "name_too_long", "model"),
    "name of a speaker": (CHAT, {"messages": [{**HI, "name": "a" * 65}]}, "name_too_long", "messages.0.name"),
    "id of a call": (RESPONSES, {"input": [{"type": "function_call", "call_id": "a" * 65}]}, "name_too_long", "input.0.call_id"),
    "bytes of a tool": (CHAT, {"messages": [HI], "tools": [tool("a", "b" * 400)]}, "schema_too_large", "tools.0"),
    "bytes of all tools": (CHAT, {"messages": [HI], "tools": [tool("a", "b" * 280)] * 2}, "schema_too_large", "tools"),
    "bytes of a text's format": (RESPONSES, {"input": "a", "text": long_schema(400)}, "schema_too_large", "text"),
    "values of a format": (CHAT, {"messages": [HI], "response_format": BROAD}, "schema_too_large", "response_format"),
    "bytes of guided_json": (CHAT, {"messages": [HI], "guided_json": "a" * 401}, "schema_too_large", "guided_json"),
    "structured_outputs": (
        COMPLETIONS, {"prompt": "a", "structured_outputs": {"json": BROAD}}, "schema_too_large", "structured_outputs",
    ),
    "values": (COMPLETIONS, {"prompt": "a", "other": [0] * 500}, "too_many_values", ""),
    "levels": (COMPLETIONS, {"prompt": "a", "other": json.loads("[" * 25 + "]" * 25)}, "too_deep", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", TOO_MUCH)
async def test_what_is_more_than_a_bound_is_400_and_says_which(name: str) -> None:
    path, fields, code, param = TOO_MUCH[name]
    async with in_process({"m": ScriptedBackend(["a"])}, ServerSettings(bounds=SMALL)) as client:
        response = await client.post(path, json={"model": "m", **fields})
        error = response.json()["error"]
        assert (response.status_code, error["type"], error["code"], error["param"] or "") == (
            400, "invalid_request_error", code, param,
        )  # fmt: skip
        assert "send" in error["message"] or "levels" in error["message"]


async def test_what_a_bound_just_allows_is_answered() -> None:
    async with in_process({"m": ScriptedBackend(["a"] * 9)}, ServerSettings(bounds=SMALL)) as client:
        for path, fields in (
            (CHAT, {"messages": [HI] * 3, "n": 4, "stop": ["a", "b"], "tools": [tool("a"), tool("b")]}),
            (COMPLETIONS, {"prompt": ["a", "b"], "n": 2, "logit_bias": {"1": 1, "2": 1}, "stop_token_ids": [1, 2]}),
            (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}] * 4}]}),
        ):
            response = await client.post(path, json={"model": "m", **fields})
            assert response.status_code == 200, response.text


@pytest.mark.parametrize("name", sorted(RENDERING))
async def test_what_says_how_a_template_is_rendered_is_no_variable_of_it(name: str) -> None:
    async with in_process({"m": ScriptedBackend(["a"])}) as client:
        response = await client.post(CHAT, json={"model": "m", "messages": [HI], "chat_template_kwargs": {name: "x"}})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == f"chat_template_kwargs.{name}"


async def test_an_operator_may_allow_templates_of_callers() -> None:
    settings = ServerSettings(bounds=BoundSettings(allow_chat_template=True))
    body = {"model": "m", "messages": [HI], "chat_template_kwargs": {"chat_template": "{{ messages }}"}}
    async with in_process({"m": ScriptedBackend(["a"])}, settings) as client:
        assert (await client.post(CHAT, json=body)).status_code == 200


def test_all_that_renders_is_known_but_what_templates_read() -> None:
    """Arguments of transformers' own function; a new one would reach it under the name of a variable."""
    arguments = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
    assert arguments - RENDERING == {"documents", "kwargs"}


# ---- the engine ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """A small engine."""
    with make_trio("llama", context_len=512).engine() as engine:
        yield engine


class Spy:
    """Stands before a function, and notes the threads that it was called in and the lengths of what it was given."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call
        self.threads: list[threading.Thread] = []
        self.lengths: list[int] = []

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        self.threads.append(threading.current_thread())
        self.lengths += [len(own) for own in args if isinstance(own, str)]
        return self.call(*args, **keywords)


async def test_schemas_prompts_and_tokens_are_made_beside_the_event_loop(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    spies = [Spy(Asked.of_engine), Spy(engine.tokenizer.apply_chat_template), Spy(engine.tokenizer.encode)]
    monkeypatch.setattr(Asked, "of_engine", spies[0])
    monkeypatch.setattr(engine.tokenizer, "apply_chat_template", spies[1])
    monkeypatch.setattr(engine.tokenizer, "encode", spies[2])
    backend = EngineBackend.of(engine, model_name="m")
    await backend.achat(ChatRequest((Message("user", "hi"),), sampling={"max_tokens": 2}))
    assert all(spy.threads for spy in spies)
    assert not any(thread is threading.current_thread() for spy in spies for thread in spy.threads)


async def test_a_client_that_leaves_while_its_prompt_is_made_leaves_nothing_behind(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, may_end = threading.Event(), threading.Event()
    made = Asked.of_engine

    def slow(request: ChatRequest, engine: Engine) -> Asked:
        began.set()
        may_end.wait(30)
        return made(request, engine)

    monkeypatch.setattr(Asked, "of_engine", slow)
    backend = EngineBackend.of(engine, model_name="m")
    total = engine.stats().num_finished + engine.stats().num_cancelled
    task = asyncio.create_task(backend.achat(ChatRequest((Message("user", "hi"),))))
    await asyncio.to_thread(began.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    may_end.set()
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.num_finished + stats.num_cancelled == total
    assert not backend._keeper._uses


async def test_a_text_that_can_never_fit_is_not_tokenised(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(engine.tokenizer.encode)
    monkeypatch.setattr(engine.tokenizer, "encode", spy)
    backend = EngineBackend.of(engine, model_name="m")
    for request in (ChatRequest((Message("user", "a" * 1_000_000),)), ChatRequest(prompt="a" * 1_000_000)):
        with pytest.raises(errors.ContextOverflowError) as caught:
            await backend.achat(request)
        assert caught.value.context_len == 512
    assert max(spy.lengths, default=0) < 1000


def test_counting_a_prompt_counts_all_of_it(engine: Engine) -> None:
    assert engine.count_prompt_tokens("a" * 100_000) >= 100_000


async def test_a_template_that_does_not_end_is_ended(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "RENDERING_SECONDS", 0.2)
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    backend = EngineBackend.of(engine, model_name="m")
    with for_others(), pytest.raises(errors.ChatTemplateError, match="did not end within"):
        async for _ in engine.astream(
            [HI], prompt_options=prompts.PromptOptions(template_variables={"chat_template": loops})
        ):
            pass
    assert (
        await backend.achat(ChatRequest((Message("user", "hi"),), sampling={"max_tokens": 2}))
    ).usage.completion_tokens


async def test_schemas_that_multiply_are_ended(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "MAX_SECONDS", 0.1)

    def endless(request: ChatRequest, engine: Engine) -> Asked:
        while True:
            json.dumps({"a": 1})

    monkeypatch.setattr(Asked, "of_engine", endless)
    with for_others(), pytest.raises(errors.InvalidOptionError, match="not read within"):
        await EngineBackend.of(engine, model_name="m").achat(ChatRequest((Message("user", "hi"),)))


async def test_a_prompt_of_token_ids_is_no_list_of_prompts() -> None:
    async with in_process({"m": ScriptedBackend(["a"])}, ServerSettings(bounds=SMALL)) as client:
        response: httpx.Response = await client.post(COMPLETIONS, json={"model": "m", "prompt": [1, 2, 3, 4, 5]})
        assert "too_many" not in response.text


ASKS: dict[str, tuple[str, dict[str, Any], str]] = {
    CHAT: ("openai.chat", {"messages": [HI]}, "to_messages"),
    COMPLETIONS: ("openai.completions", {"prompt": "a"}, "answer_format"),
    RESPONSES: ("openai.responses", {"input": "a"}, "to_conversation"),
    "/v1/messages": ("anthropic.messages", {"messages": [HI], "max_tokens": 4}, "to_conversation"),
    "/v1/messages/count_tokens": ("anthropic.messages", {"messages": [HI]}, "to_conversation"),
}


@pytest.mark.parametrize("path", ASKS)
async def test_bodies_become_requests_beside_the_event_loop(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, fields, function = ASKS[path]
    module = importlib.import_module(f"eft_integrations.server.{name}")
    spy = Spy(getattr(module, function))
    monkeypatch.setattr(module, function, spy)
    async with in_process({"m": ScriptedBackend(["a"])}) as client:
        response = await client.post(path, json={"model": "m", **fields})
    assert response.status_code == 200, response.text
    assert spy.threads
    assert threading.current_thread() not in spy.threads


async def test_answers_are_checked_beside_the_event_loop(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    spies = [Spy(lambda value, schema: None), Spy(lambda call, tools: None)]
    monkeypatch.setattr(answer, "fault_of", spies[0])
    monkeypatch.setattr(loose, "fault", spies[1])
    monkeypatch.setattr(reading, "fault", spies[1])
    backend = EngineBackend.of(engine, model_name="m")
    asked = ChatRequest((Message("user", "hi"),), sampling={"max_tokens": 150, "temperature": 0})
    await backend.achat(dataclasses.replace(asked, response_schema={"enum": ["a"]}))
    called = dataclasses.replace(asked, tools=(Tool("f", "", {"type": "object"}),), tool_choice=ToolChoice("required"))
    await backend.achat(called)
    assert all(spy.threads for spy in spies)
    assert not any(thread is threading.current_thread() for spy in spies for thread in spy.threads)


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("start: A\nA: " + " & ".join(["/.*a.*/"] * 12), "11 times &"),
        (
            'start: %json {"allOf": [{"type": "integer", "multipleOf": 97}, {"multipleOf": 89}]}',
            "'multipleOf' at /allOf/1",
        ),
        ('start: %json {"type"', "no JSON"),
    ],
)
async def test_grammars_that_take_without_bounds_are_refused(grammar: str, reason: str) -> None:
    async with in_process({"m": ScriptedBackend(["a"])}) as client:
        response = await client.post(CHAT, json={"model": "m", "messages": [HI], "guided_grammar": grammar})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "guided_grammar")
    assert reason in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "grammar", ['start: "a & b & c & d & e & f & g & h & i & j"', 'start: %json {"type": "object"} "x"']
)
async def test_grammars_that_only_look_like_them_are_not(grammar: str) -> None:
    async with in_process({"m": ScriptedBackend(["a"])}) as client:
        response = await client.post(CHAT, json={"model": "m", "messages": [HI], "guided_grammar": grammar})
    assert response.status_code == 200, response.text


def test_of_an_error_only_what_is_told_is_looked_through() -> None:
    assert len(clean("a." * 50_000)) <= MOST_CLEANED


def test_a_call_stands_in_few_fences() -> None:
    assert behind_openings("```\n" * 1000, 0) == (4 * MAX_OPENINGS, MAX_OPENINGS)
