"""`EFTModel` in smolagents: both agents, streamed and not, weights by every carrier, the real engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from smolagents import ChatMessageStreamDelta, CodeAgent, ToolCallingAgent, tool
from smolagents.models import agglomerate_stream_deltas

import eft_integrations
from eft_engine import errors
from eft_integrations.agents.smolagents import EFTModel
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import Message, ToolCall
from tests.integrations.server.tool_user import ToolUser
from tests.toy import ToyTrio

QUESTION: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "How is Paris?"}]}]
CODE = json.dumps({"thought": "done", "code": "final_answer(6 * 7)"})


@tool
def visit(place: str) -> str:
    """Visit a place.

    Args:
        place: where to.
    """
    return f"sunny in {place}"


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calling_agent_calls_its_tool_and_answers(stream: bool) -> None:
    answer = Message("assistant", "", (ToolCall("2", "final_answer", '{"answer": "sunny"}'),))
    backend = ScriptedBackend([Message("assistant", "", (ToolCall("1", "visit", '{"place": "Paris"}'),)), answer])
    agent = ToolCallingAgent(
        tools=[visit], model=EFTModel(backend=backend), verbosity_level=0, stream_outputs=stream, max_steps=3
    )
    assert agent.run("How is Paris?") == "sunny"
    first, second = backend.requests
    assert first.tool_choice.mode == "required"
    assert {given.name for given in first.tools} == {"visit", "final_answer"}
    assert "sunny in Paris" in second.messages[-1].content
    assert agent.monitor.total_output_token_count > 0


@pytest.mark.parametrize("stream", [False, True])
def test_code_agent_gets_its_code_by_schema(stream: bool) -> None:
    backend = ScriptedBackend([CODE])
    agent = CodeAgent(
        tools=[], model=EFTModel(backend=backend), verbosity_level=0, use_structured_outputs_internally=True,
        stream_outputs=stream, max_steps=1,
    )  # fmt: skip
    assert agent.run("What is 6 times 7?") == 42
    assert backend.requests[0].response_schema is not None
    assert "code" in backend.requests[0].response_schema["properties"]


def test_weights_call_goes_before_block_and_block_before_field() -> None:
    backend = ScriptedBackend(["ok"] * 4)
    model = EFTModel(backend=backend, reward_weights=0.1)
    model.generate(QUESTION)
    with eft_integrations.weights(0.2):
        model.generate(QUESTION)
        model.generate(QUESTION, reward_weights=0.3)
        late = model.generate_stream(QUESTION)
    list(late)
    assert [request.reward_weights for request in backend.requests] == [0.1, 0.2, 0.3, 0.2]


def test_stream_is_the_answer_in_pieces() -> None:
    model = EFTModel(backend=ToolUser())
    pieces = list(model.generate_stream(QUESTION, tools_to_call_from=[visit]))
    assert all(isinstance(piece, ChatMessageStreamDelta) for piece in pieces)
    whole = agglomerate_stream_deltas(pieces)
    assert whole.tool_calls is not None
    assert whole.tool_calls[0].function.name == "visit"
    assert whole.tool_calls[0].function.arguments == '{"place": "Paris"}'
    assert whole.token_usage is not None
    assert whole.token_usage.input_tokens == 3


def test_demanded_call_of_a_real_engine_is_whole_at_any_weight(toy_trio: ToyTrio) -> None:
    with toy_trio.engine(max_context_len=4096) as engine:
        model = EFTModel(engine=engine, max_tokens=60, temperature=0)
        for weight in (0.0, 1.0):
            message = model.generate(QUESTION, reward_weights=weight, tool_choice="required", tools_to_call_from=None)
            assert message.raw["eft"]["reward_weights"] == {"chat": weight}
        called = EFTModel(engine=engine, max_tokens=90, close_within_budget=True).generate(
            [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], response_format={"type": "json_object"}
        )
    assert isinstance(json.loads(str(called.content)), dict)


def test_options_are_sampling_fields_and_nothing_else() -> None:
    backend = ScriptedBackend(["ok"])
    EFTModel(backend=backend, temperature=0, max_tokens=5).generate(QUESTION, stop_sequences=["END"])
    assert backend.requests[0].sampling == {"temperature": 0, "max_tokens": 5, "stop": ["END"]}
    with pytest.raises(TypeError, match="no option 'temprature'"):
        EFTModel(backend=backend, temprature=0)
    with pytest.raises(TypeError, match="no option 'mirostat'"):
        EFTModel(backend=backend).generate(QUESTION, mirostat=1)
    with pytest.raises(errors.InvalidOptionError, match="name the large model"):
        EFTModel()
