"""OpenAI's Agents SDK against `eft serve`. Its own transport, the responses API, works as well as chat completions."""

from __future__ import annotations

from typing import Literal

from agents import Model, OpenAIChatCompletionsModel, OpenAIResponsesModel
from openai import AsyncOpenAI

from eft_engine.config import RewardWeights
from eft_integrations.weights import weights_header


def agents_model(
    model: str,
    *,
    base_url: str = "http://127.0.0.1:8000/v1",
    api_key: str = "none",
    reward_weights: RewardWeights = None,
    api: Literal["responses", "chat_completions"] = "responses",
) -> Model:
    """A model for `Agent(model=...)`.

    Args:
        model: name of a composition; weights may stand behind it, `name@pair=0.5`.
        base_url, api_key: where the server is, and its key if it wants one.
        reward_weights: weights of every request; None: the composition's own.
        api: which of the server's two chat APIs carries the requests.
    """
    client = AsyncOpenAI(base_url=base_url, api_key=api_key, default_headers=weights_header(reward_weights))
    if api == "responses":
        return OpenAIResponsesModel(model=model, openai_client=client)
    return OpenAIChatCompletionsModel(model=model, openai_client=client)
