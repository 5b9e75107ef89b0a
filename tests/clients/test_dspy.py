"""DSPy against the server: both recipes, agents, streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dspy
import pytest
from dspy.lm15 import unregister_provider
from dspy.utils.exceptions import LMError

from tests.clients.recipes import run

FULL = '{"helpful": 1.0, "harmless": 0.3}'
HALF = '{"helpful": 0.5, "harmless": 0.3}'


def look(place: str) -> str:
    """Look at a place."""
    return f"sunny in {place}"


@pytest.fixture
def lm(base_url: str) -> dspy.LM:
    """A model of the server at half a weight."""
    weights = {"eft_reward_weights": {"helpful": 0.5}}
    return dspy.LM("openai/eft", api_base=base_url, api_key="none", cache=False, num_retries=0, extra_body=weights)


@pytest.fixture
def providers() -> Iterator[None]:
    """Forget what a recipe declares."""
    yield
    unregister_provider("eft")


def test_recipe(base_url: str) -> None:
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    names = run("DSPy", base_url)
    assert names["answer"] == f"sunny {HALF}"
    assert names["plain"] == 'sunny {"helpful": 0.0, "harmless": 0.0}'


@pytest.mark.usefixtures("providers")
def test_recipe_with_schemas(base_url: str) -> None:
    names = run("DSPy", base_url, number=1)
    lm: Any = names["lm"]
    weather: Any = names["weather"]
    assert lm.supports_response_schema
    assert isinstance(weather.sunny, bool)
    assert lm.history[-1]["response_model"] == "eft@helpful=0.5"


async def test_agents_and_streams(lm: dspy.LM) -> None:
    with dspy.context(lm=lm):
        agent = dspy.ReAct("question -> answer", tools=[look], max_iters=3)
        found = await agent.acall(question="Paris?")
        assert found.trajectory["observation_0"] == "sunny in Paris"
        assert found.answer == f"sunny {HALF}"
        listener = dspy.streaming.StreamListener(signature_field_name="answer")
        stream = dspy.streamify(dspy.Predict("question -> answer"), stream_listeners=[listener])
        pieces = [piece async for piece in stream(question="hi")]
    assert "".join(piece.chunk for piece in pieces[:-1]) == pieces[-1].answer == f"sunny {HALF}"
    assert len(pieces) > 2
    assert lm.history[-1]["usage"]["total_tokens"] > 0


def test_responses_texts_and_errors(base_url: str) -> None:
    how: dict[str, Any] = {"api_base": base_url, "api_key": "none", "cache": False, "num_retries": 0}
    (answer,) = dspy.LM("openai/eft", model_type="responses", **how)("hi")
    assert answer["text"] == f"hi {FULL}"
    (text,) = dspy.LM("openai/trio", model_type="text", max_tokens=3, temperature=0.0, **how)("hello")
    assert text
    with pytest.raises(LMError, match="must be from 0 to 1.5 here"):
        dspy.LM("openai/eft", extra_body={"eft_reward_weights": -1}, **how)("hi")
    with pytest.raises(dspy.utils.exceptions.ContextWindowExceededError):
        dspy.LM("openai/trio", **how)("hello " * 5000)
