"""Null is nothing: every field that need not be there may be null, in every body, and inside of what it holds."""

from __future__ import annotations

from typing import Any

import pytest

from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.server.anthropic.messages_protocol import CountTokensBody, MessagesBody
from eft_integrations.server.app import create_app
from eft_integrations.server.bodies.body import Body, Part
from eft_integrations.server.bodies.protocol import ChatBody, MessageBody
from eft_integrations.server.compositions import Composition
from eft_integrations.server.evaluation.batch_routes import BatchBody
from eft_integrations.server.evaluation.scoring_protocol import ScoreBody
from eft_integrations.server.openai.completions_protocol import CompletionBody, DetokenizeBody, TokenizeBody
from eft_integrations.server.openai.responses_protocol import ResponsesBody
from tests.integrations.server.serving import in_process

NEEDED: dict[type[Body], dict[str, Any]] = {
    ChatBody: {"model": "m", "messages": [{"role": "user", "content": "a"}]},
    CompletionBody: {"model": "m", "prompt": "a"},
    ResponsesBody: {"model": "m", "input": "a"},
    TokenizeBody: {"model": "m", "prompt": "a"},
}
FURTHER: dict[type[Body], dict[str, Any]] = {
    MessagesBody: {**NEEDED[ChatBody], "max_tokens": 3},
    CountTokensBody: NEEDED[ChatBody],
    ScoreBody: {"model": "m", "items": [{"prompt": "a", "continuation": "b"}]},
    DetokenizeBody: {"tokens": [1]},
    BatchBody: {"input_file_id": "f", "endpoint": "/v1/completions"},
}
PATHS = {
    ChatBody: "/v1/chat/completions",
    CompletionBody: "/v1/completions",
    ResponsesBody: "/v1/responses",
    TokenizeBody: "/tokenize",
}


def parts(kind: type[Part] = Part) -> list[type[Part]]:
    """All kinds of bodies and of what they hold."""
    create_app([Composition.of("m", ScriptedBackend([]))])  # every route's bodies are imported
    return [own for below in kind.__subclasses__() for own in (below, *parts(below))]


def test_null_says_what_leaving_the_field_out_says() -> None:
    for body, needed in {**NEEDED, **FURTHER}.items():
        plain = body.model_validate(needed)
        for name, field in body.model_fields.items():
            if name not in needed:
                with_null = body.model_validate({**needed, (field.alias or name): None})
                assert with_null.model_dump() == plain.model_dump(), name
                assert with_null.ignored == []


def test_null_inside_is_nothing_too() -> None:
    body = ChatBody.model_validate(
        {
            **NEEDED[ChatBody],
            "stream_options": {"include_usage": None, "continuous_usage_stats": None},
            "reasoning": {"effort": None, "exclude": None},
            "structured_outputs": {"json": None, "regex": None},
            "tools": [
                {"type": "function", "function": {"name": "f", "description": None, "parameters": None, "strict": None}}
            ],
            "flavour": None,
        }
    )
    assert body.ignored == []
    message = MessageBody.model_validate({"role": "assistant", "content": None, "tool_calls": None, "refusal": None})
    assert message.plain() == {"role": "assistant"}


def test_every_optional_field_of_every_part_takes_null() -> None:
    found = parts()
    assert {*NEEDED, *FURTHER, MessageBody} <= set(found)
    for kind in found:
        nulls = {field.alias or name: None for name, field in kind.model_fields.items() if not field.is_required()}
        read = kind._null_is_nothing(nulls)  # type: ignore[operator]
        assert read == {}, kind


@pytest.mark.parametrize("body", NEEDED)
async def test_all_nulls_at_once_are_answered(body: type[Body]) -> None:
    nulls = {field.alias or name: None for name, field in body.model_fields.items()}
    async with in_process({"m": ScriptedBackend(["ok"])}) as client:
        response = await client.post(PATHS[body], json={**nulls, **NEEDED[body]})
    assert response.status_code == 200, response.text
    assert "ignored" not in response.text


@pytest.mark.parametrize("body", [own for own in NEEDED if own.model_fields["model"].is_required()])
async def test_null_in_a_field_that_must_be_there_is_refused(body: type[Body]) -> None:
    async with in_process({"m": ScriptedBackend(["ok"])}) as client:
        response = await client.post(PATHS[body], json={**NEEDED[body], "model": None})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "model")
