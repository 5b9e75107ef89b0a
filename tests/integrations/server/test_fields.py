"""No field is ignored in silence: what is honoured, what is refused, and what is named in `eft.ignored`."""

from __future__ import annotations

import json
import logging
import threading
from typing import Any

import httpx
import pytest

from eft_engine import Lark, Regex
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.grammar import answer_grammar, held_answer
from eft_integrations.chat.messages import Tool
from eft_integrations.chat.notations import notation_of
from eft_integrations.chat.prompt import Asked, ControlTokens
from eft_integrations.chat.request import ChatRequest, ToolChoice
from eft_integrations.server.bodies import unused_fields
from eft_integrations.server.bodies.idle_fields import NAMED
from eft_integrations.server.bodies.refused_fields import REFUSED
from tests.integrations.server.serving import events_of, in_process

LOOK = {"type": "function", "function": {"name": "look"}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/completions": {"prompt": "a"},
    "/v1/responses": {"input": "a"},
}


async def post(backend: ScriptedBackend, path: str = "/v1/chat/completions", **body: Any) -> httpx.Response:
    async with in_process({"m": backend}) as client:
        return await client.post(path, json={"model": "m", **BODIES.get(path.partition("?")[0], {}), **body})


async def ignored(path: str = "/v1/chat/completions", **body: Any) -> list[str]:
    """What the answer names; the stream says the same."""
    response = await post(ScriptedBackend(["ok"]), path, **body)
    assert response.status_code == 200, response.text
    names: list[str] = response.json().get("eft", {}).get("ignored", [])
    if path != "/tokenize":
        streamed = await post(ScriptedBackend(["ok"]), path, stream=True, **body)
        events = [json.loads(event) for event in events_of(streamed.text) if event != "[DONE]"]
        blocks = [event.get("eft") or event.get("response", {}).get("eft") for event in events]
        assert [block.get("ignored", []) for block in blocks if block] == [names]
    return names


async def refusal(path: str = "/v1/chat/completions", **body: Any) -> str:
    response = await post(ScriptedBackend(["ok"]), path, **body)
    assert response.status_code == 400, response.text
    message: str = response.json()["error"]["message"]
    return message


# ---- our own names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", BODIES)
async def test_reward_weights_is_another_name_of_the_field(path: str) -> None:
    for body in ({"reward_weights": 0.25}, {"reward_weights": 0.25, "eft_reward_weights": 0.25}):
        reply = (await post(ScriptedBackend(["ok"]), path, **body)).json()
        assert reply["eft"]["reward_weights"] == {"scripted": 0.25}
        assert "ignored" not in reply["eft"]
    assert "differ" in await refusal(path, reward_weights=0.25, eft_reward_weights=0.5)
    assert "number" in await refusal(path, reward_weights="0.5")


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("eft_reward_weight", "eft_reward_weights"), ("reward_weight", "eft_reward_weights"),
        ("rewardWeights", "eft_reward_weights"), ("eftRewardWeights", "eft_reward_weights"),
        ("reward-weights", "eft_reward_weights"), ("weights", "eft_reward_weights"), ("eft_weights", "eft_reward_weights"),
        ("close_in_budget", "close_within_budget"), ("reasoning_budget", "eft_reasoning_budget"),
        ("lenient_tool_calls", "eft_lenient_tool_calls"), ("eft_strickt", "eft_strict"),
    ],
)  # fmt: skip
async def test_near_miss_of_a_name_of_ours_is_refused_with_the_right_one(name: str, right: str) -> None:
    assert f"there is no {name}; did you mean {right}?" in await refusal(path="/v1/chat/completions", **{name: 1})


async def test_what_begins_as_ours_do_and_is_none_is_refused_with_all_of_them() -> None:
    assert "this route knows eft_reward_weights" in await refusal(eft_flavour=1)


@pytest.mark.parametrize(
    "name", ["top_k", "min_tokens", "reward_model", "seed", "response_format", "strategy", "budget_tokens"]
)
def test_real_fields_of_others_are_no_near_misses(name: str) -> None:
    assert unused_fields.meant(name, unused_fields.OWN) is None


async def test_header_that_begins_as_ours_does_and_is_none_is_refused() -> None:
    async with in_process({"m": ScriptedBackend(["ok"])}) as client:
        body = {"model": "m", **BODIES["/v1/chat/completions"]}
        response = await client.post("/v1/chat/completions", json=body, headers={"X-EFT-Reward-Weight": "1"})
    assert (response.status_code, "X-EFT-Reward-Weights" in response.json()["error"]["message"]) == (400, True)


# ---- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "neutral"),
    [
        ("mirostat", 2, 0), ("typical_p", 0.5, 1.0), ("repeat_penalty", 1.1, 1.0), ("min_tokens", 3, 0),
        ("bad_words", ["a"], []), ("allowed_token_ids", [1], []), ("use_beam_search", True, False),
        ("length_penalty", 0.5, 1.0), ("prompt_logprobs", 1, None), ("add_generation_prompt", False, True),
        ("continue_final_message", True, False), ("skip_special_tokens", False, True),
        ("include_stop_str_in_output", True, False), ("top_n_tokens", 2, 0), ("n_predict", 5, None),
        ("structural_tag", {"a": 1}, None), ("do_sample", False, True), ("extra_body", {"a": 1}, None),
        ("chat_template", "{{ x }}", None), ("max_output_tokens", 3, None), ("functions", [{"name": "f"}], []),
    ],
)  # fmt: skip
async def test_field_that_would_change_the_answer_is_refused_with_what_to_do(
    name: str, value: Any, neutral: Any
) -> None:
    assert REFUSED[name] in await refusal(**{name: value})
    assert await ignored(**{name: neutral}) == []


async def test_minus_one_is_no_seed_and_no_bound_as_others_write_it() -> None:
    backend = ScriptedBackend(["ok"])
    await post(backend, seed=-1, top_k=-1)
    assert backend.requests[0].sampling == {"top_k": 0, "max_tokens": 1024}


@pytest.mark.parametrize("name", ["function_call", "audio", "images", "prefix", "partial"])
async def test_what_a_message_would_lack_is_refused(name: str) -> None:
    message = {"role": "assistant", "content": "a", name: {"name": "f", "arguments": "{}"}}
    assert name in await refusal(messages=[message])


# ---- what is named -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"flavour": 1, "user": "u", "metadata": {"a": 1}, "prompt_cache_key": "k"}, ["flavour"]),
        ({"store": True, "verbosity": "low", "truncation": "auto"}, ["store", "truncation", "verbosity"]),
        ({"store": False, "verbosity": "medium", "truncation": "disabled"}, []),
        ({"prediction": {"type": "content", "content": "a"}}, ["prediction"]),
        ({"stream_options": {"continuous_usage_stats": True, "include_obfuscation": False}},
         ["stream_options.continuous_usage_stats"]),
        ({"reasoning": {"effort": "low", "exclude": True, "summary": "auto"}}, ["reasoning.exclude"]),
        ({"tools": [{**LOOK, "defer_loading": True}]}, ["tools.defer_loading"]),
        ({"tools": [{"type": "function", "function": {"name": "look", "returns": "x"}}]}, ["tools.function.returns"]),
        ({"tools": [{**LOOK, "format": "x", "user": "u"}]}, ["tools.format", "tools.user"]),
        ({"response_format": {"type": "json_object", "depth": 2}}, ["response_format.depth"]),
        ({"response_format": {"type": "text", "schema": {}, "strict": True}}, ["response_format.schema", "response_format.strict"]),
        ({"messages": [{"role": "user", "content": "a", "weight": 2, "refusal": None}]}, ["messages.weight"]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "lang": "de", "cache_control": {}}]}]},
         ["messages.content.lang"]),
        ({"structured_outputs": {"regex": "o", "whitespace_pattern": "x"}}, ["structured_outputs.whitespace_pattern"]),
        ({"top_logprobs": 2}, ["top_logprobs"]),
    ],
)  # fmt: skip
async def test_what_might_have_been_meant_is_named(body: dict[str, Any], names: list[str]) -> None:
    assert await ignored(**body) == names


async def test_query_parameters_are_named_and_known_ones_are_not() -> None:
    assert await ignored("/v1/chat/completions?weight=1&api-version=2") == ["query.weight"]


@pytest.mark.parametrize("path", [*BODIES, "/tokenize"])
async def test_every_route_names_what_it_does_not_use(path: str) -> None:
    body = {"prompt": "a"} if path == "/tokenize" else {}
    assert await ignored(path, flavour=1, **body) == ["flavour"]


async def test_a_list_of_names_has_an_end() -> None:
    names = await ignored("/v1/chat/completions", **{f"field{index}": 1 for index in range(80)})
    assert (len(names), names[-1]) == (65, "16 more")


async def test_what_is_not_used_is_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unused_fields.TOLD, "_names", set())
    with caplog.at_level(logging.WARNING, "eft_integrations.server.bodies.unused_fields"):
        for _ in range(3):
            await post(ScriptedBackend(["ok"]), flavour=1)
    assert [record.getMessage() for record in caplog.records if "flavour" in record.getMessage()] == [
        "/v1/chat/completions: the field 'flavour' is not used; this is logged once"
    ]


def test_log_says_why_a_known_field_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    unused_fields.Told().tell("/a", ["truncation", "stream_options.continuous_usage_stats", "flavour"])
    told = [record.getMessage() for record in caplog.records]
    assert ["(" in message for message in told] == [True, True, False]
    assert NAMED["truncation"] in told[0]


def test_log_repeats_no_text_that_is_no_name(caplog: pytest.LogCaptureFixture) -> None:
    told = unused_fields.Told()
    told.tell("/a", ["my password is swordfish", "query.two words", "a" * 41, "n\nERROR root: forged", "64 more"])
    told.tell("/a", ["messages.content.lang", "query.api-version"])
    assert [record.getMessage() for record in caplog.records] == [
        "/a: the field whose name is none is not used; this is logged once",
        "/a: the field 'messages.content.lang' is not used; this is logged once",
        "/a: the field 'query.api-version' is not used; this is logged once",
    ]


def test_names_that_are_logged_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    told = unused_fields.Told(room=2)
    told.tell("/a", ["x", "y", "z"])
    assert len(caplog.records) == 2


def test_template_variable_that_is_not_read_is_named_in_the_report() -> None:
    template = "{% for message in messages %}{{ message.content }}{% endfor %}{% if tone %}{{ tone }}{% endif %}"
    request = ChatRequest(messages=(), template_variables={"tone": "warm", "mood": "good"})
    asked = Asked.of(request, chat_template=template, control_tokens=ControlTokens({}, frozenset(), ()))
    assert asked.metadata["ignored"] == ["chat_template_kwargs.mood"]


# ---- what the text must look like ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("body", "schema", "grammar"),
    [
        ({"guided_json": {"type": "array"}}, {"type": "array"}, None),
        ({"json_schema": '{"type": "array"}'}, {"type": "array"}, None),
        ({"guided_json": '{"type": "array"}'}, {"type": "array"}, None),
        ({"json_schema": {"type": "array"}}, {"type": "array"}, None),
        ({"structured_outputs": {"json": {"type": "array"}}}, {"type": "array"}, None),
        ({"structured_outputs": {"json_object": True}}, {"type": "object"}, None),
        ({"guided_regex": "a+"}, None, Regex(pattern="a+")),
        ({"regex": "a+"}, None, Regex(pattern="a+")),
        ({"structured_outputs": {"regex": "a+"}}, None, Regex(pattern="a+")),
        ({"guided_choice": ["yes", "a.b"]}, None, Regex(pattern=r"yes|a\.b")),
        ({"structured_outputs": {"choice": ["yes"]}}, None, Regex(pattern="yes")),
        ({"guided_grammar": 'start: "a"'}, None, Lark(grammar='start: "a"')),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, None, Lark(grammar='start: "a"')),
        ({"grammar": ""}, None, None),
    ],
)  # fmt: skip
async def test_constraint_reaches_the_backend(path: str, body: dict[str, Any], schema: Any, grammar: Any) -> None:
    backend = ScriptedBackend(["[]"])
    response = await post(backend, path, **body)
    assert response.status_code == 200, response.text
    assert (backend.requests[0].response_schema, backend.requests[0].response_grammar) == (schema, grammar)


async def test_gbnf_is_read_as_a_grammar() -> None:
    backend = ScriptedBackend(["a"])
    await post(backend, grammar='root ::= "a" | [0-9]+')
    (request,) = backend.requests
    assert isinstance(request.response_grammar, Lark)
    assert "::=" not in request.response_grammar.grammar
    assert "GBNF" in await refusal(grammar='root ::= "a')


async def test_gbnf_is_translated_off_the_event_loop_and_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def translate(text: str) -> str:
        threads.append(threading.current_thread())
        return 'start: "a"'

    monkeypatch.setattr("llguidance.gbnf_to_lark.gbnf_to_lark", translate)
    for body in ({"grammar": 'root ::= "a"'}, {"structured_outputs": {"grammar": 'root ::= "a"'}}):
        assert (await post(ScriptedBackend(["a"]), **body)).status_code == 200
    assert len(threads) == 2
    assert threading.current_thread() not in threads
    rules = "\n".join(f'r{number} ::= "a"' for number in range(300))
    assert "256 rules, and this one has 300" in await refusal(guided_grammar=rules)
    assert len(threads) == 2


@pytest.mark.parametrize(
    "grammar", ['start: "a ::= b"', "start[capture]: /a ::= b/", '%llguidance {}\nstart: x\nx: "::="']
)
async def test_lark_that_speaks_of_rules_is_left_alone(grammar: str) -> None:
    backend = ScriptedBackend(["a"])
    await post(backend, guided_grammar=grammar)
    assert backend.requests[0].response_grammar == Lark(grammar=grammar)


async def test_object_of_a_schema_as_llama_cpp_asks_for_it() -> None:
    backend = ScriptedBackend(["[]"])
    await post(backend, response_format={"type": "json_object", "schema": {"type": "array"}})
    assert backend.requests[0].response_schema == {"type": "array"}


async def test_two_constraints_contradict_each_other() -> None:
    message = await refusal(guided_regex="a", response_format={"type": "json_object"})
    assert "response_format and guided_regex both say what the text must look like" in message
    assert "structured_outputs.json" in await refusal(structured_outputs={"json": {}, "regex": "a"})
    assert "text must look like" in await refusal("/v1/completions", guided_choice=["a"], guided_json={})


@pytest.mark.parametrize(
    "body",
    [{"guided_choice": []}, {"guided_choice": [""]}, {"guided_json": "{"}, {"guided_json": "[]"}, {"guided_regex": ""},
     {"guided_regex": "a" * 70_000}, {"structured_outputs": {"structural_tag": {"a": 1}}}],
)  # fmt: skip
async def test_constraint_that_cannot_be_read_is_refused(body: dict[str, Any]) -> None:
    await refusal(**body)


def test_grammar_stands_behind_a_thought() -> None:
    from llguidance import LLMatcher

    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}"
    for grammar in (Regex(pattern="a/b|c\\/d\n"), Lark(grammar='start: "a" b\nb: "c"')):
        request = ChatRequest(messages=(), response_grammar=grammar, reasoning_tags=("<think>", "</think>"))
        asked = Asked.of(request, chat_template=template, control_tokens=ControlTokens({}, frozenset(), ()))
        held = asked.options["sampling"].grammar
        assert isinstance(held, Lark)
        assert "</think>" in held.grammar.replace("\\", "")
        assert LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(held.grammar)) == ""


def test_grammar_of_a_model_that_does_not_think_is_the_callers() -> None:
    assert held_answer(Regex(pattern="a"), notation_of(None), {}) == Regex(pattern="a")
    assert answer_grammar([], ToolChoice(), notation_of(None), {}) is None


def test_grammar_and_tools_exclude_each_other() -> None:
    from eft_engine.errors import InvalidOptionError

    request = ChatRequest(messages=(), tools=(Tool("look"),), response_grammar=Regex(pattern="a"))
    with pytest.raises(InvalidOptionError, match="no tool can be called"):
        Asked.of(request, chat_template=None, control_tokens=ControlTokens({}, frozenset(), ()))
