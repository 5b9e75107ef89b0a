"""pydantic-ai against `eft serve`."""

from __future__ import annotations

from openai import AsyncOpenAI
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from eft_engine.config import RewardWeights
from eft_integrations.weights import weights_header


def pydantic_ai_model(
    model: str,
    *,
    base_url: str = "http://127.0.0.1:8000/v1",
    api_key: str = "none",
    reward_weights: RewardWeights = None,
) -> OpenAIChatModel:
    """A model for `Agent(...)`.

    Args:
        model: name of a composition; weights may stand behind it, `name@pair=0.5`.
        base_url, api_key: where the server is, and its key if it wants one.
        reward_weights: weights of every request; None: the composition's own.
    """
    client = AsyncOpenAI(base_url=base_url, api_key=api_key, default_headers=weights_header(reward_weights))
    return OpenAIChatModel(model, provider=OpenAIProvider(openai_client=client))
