"""CrewAI against `eft serve`."""

from __future__ import annotations

from crewai import LLM

from eft_engine.config import RewardWeights
from eft_integrations.weights import weights_header


def crewai_llm(
    model: str,
    *,
    base_url: str = "http://127.0.0.1:8000/v1",
    api_key: str = "none",
    reward_weights: RewardWeights = None,
    **options: object,
) -> LLM:
    """An LLM for `Agent(llm=...)`.

    Args:
        model: name of a composition; weights may stand behind it, `name@pair=0.5`.
        base_url, api_key: where the server is, and its key if it wants one.
        reward_weights: weights of every request; None: the composition's own.
        options: further options of CrewAI's `LLM` (`temperature`, `max_tokens`, ...).
    """
    headers = weights_header(reward_weights)
    return LLM(model=model, provider="openai", base_url=base_url, api_key=api_key, default_headers=headers, **options)
