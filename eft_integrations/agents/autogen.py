"""AutoGen against `eft serve`."""

from __future__ import annotations

from autogen_core.models import ModelFamily, ModelInfo
from autogen_ext.models.openai import OpenAIChatCompletionClient

from eft_engine.config import RewardWeights
from eft_integrations.weights import weights_header


def autogen_client(
    model: str,
    *,
    base_url: str = "http://127.0.0.1:8000/v1",
    api_key: str = "none",
    reward_weights: RewardWeights = None,
) -> OpenAIChatCompletionClient:
    """A model client for `AssistantAgent(model_client=...)`.

    Args:
        model: name of a composition; weights may stand behind it, `name@pair=0.5`.
        base_url, api_key: where the server is, and its key if it wants one.
        reward_weights: weights of every request; None: the composition's own.
    """
    return OpenAIChatCompletionClient(
        model=model,
        base_url=base_url,
        api_key=api_key,
        default_headers=weights_header(reward_weights),
        include_name_in_message=False,
        model_info=ModelInfo(
            vision=False,
            function_calling=True,
            json_output=True,
            family=ModelFamily.UNKNOWN,
            structured_output=True,
            multiple_system_messages=True,
        ),
    )
