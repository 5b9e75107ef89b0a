"""Inspect (UK AISI's evaluations) against the server: the recipe, tools, schemas, log-probabilities, streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, Model, ResponseSchema, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import Tool, tool
from inspect_ai.util import json_schema
from pydantic import BaseModel

from tests.clients.recipes import run


class Weather(BaseModel):
    """Weather somewhere."""

    city: str
    sunny: bool


@tool
def look() -> Tool:
    """Looks at places."""

    async def execute(place: str) -> str:
        """Look at a place.

        Args:
            place: where.
        """
        return f"sunny in {place}"

    return execute


@pytest.fixture(autouse=True)
def logs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Logs of evaluations go nowhere else."""
    monkeypatch.setenv("INSPECT_LOG_DIR", str(tmp_path))


def model(base_url: str, name: str = "eft", **how: Any) -> Model:
    """A model of the server."""
    return get_model(f"openai-api/eft/{name}", base_url=base_url, api_key="none", memoize=False, **how)


def test_recipe(base_url: str) -> None:
    log: Any = run("Inspect", base_url)["log"]
    assert log.status == "success"
    assert log.results.scores[0].metrics["accuracy"].value == 1.0
    assert log.samples[0].output.completion == 'Is it sunny in Paris? {"helpful": 0.5, "harmless": 0.3}'
    assert log.samples[0].output.usage.total_tokens > 0


def test_tools_are_called_and_their_results_come_back(base_url: str) -> None:
    task = Task(
        dataset=[Sample(input="Is it sunny in Paris?", target="sunny in Paris")],
        solver=[use_tools(look()), generate()],
        scorer=includes(),
    )
    (log,) = eval(task, model=model(base_url), display="none")
    assert log.status == "success"
    assert log.samples[0].output.completion == 'sunny in Paris {"helpful": 1.0, "harmless": 0.3}'


async def test_schema_stream_responses_and_the_name(base_url: str) -> None:
    schema = ResponseSchema(name="weather", json_schema=json_schema(Weather))
    answer = await model(base_url).generate("Paris?", config=GenerateConfig(response_schema=schema))
    Weather.model_validate_json(answer.completion)
    for how in ({"stream": True}, {"responses_api": True}):
        answer = await model(base_url, "eft@helpful=0.25", **how).generate("hi")
        assert answer.completion == 'hi {"helpful": 0.25, "harmless": 0.3}'


async def test_logprobs_and_several_choices_of_a_real_engine(base_url: str) -> None:
    config = GenerateConfig(temperature=0, logprobs=True, top_logprobs=2, num_choices=2, seed=1)
    answer = await model(base_url, "trio").generate("hello", config=config)
    assert [choice.message.text for choice in answer.choices] == ["Hello! How can I help?"] * 2
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens).startswith("Hello! How can I help?")
    assert all(token.bytes is None or bytes(token.bytes).decode() == token.token for token in tokens)
    assert all(len(token.top_logprobs) == 2 for token in tokens)


async def test_forbidden_weight_is_an_error_and_an_overflow_a_stop_reason(base_url: str) -> None:
    with pytest.raises(Exception, match="must be from 0 to 1.5 here") as refused:
        await model(base_url).generate("hi", config=GenerateConfig(extra_body={"eft_reward_weights": -1}))
    assert isinstance(refused.value.__cause__, openai.PermissionDeniedError)
    too_long = await model(base_url, "trio").generate("hello " * 5000)
    assert too_long.stop_reason == "model_length"
