"""Questions to a vLLM that was started in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.vllm.trios import Asked


def answers(llm: Any, requests: Sequence[Asked], **sampling: Any) -> list[Any]:
    """Outputs of greedy requests that run together."""
    from vllm import SamplingParams

    parameters = [
        SamplingParams(temperature=0, max_tokens=own.max_tokens, extra_args={"eft_weights": own.weights}, **sampling)
        for own in requests
    ]
    prompts = [{"prompt_token_ids": own.prompt_ids} for own in requests]
    return [
        output.outputs[0] if not sampling else output for output in llm.generate(prompts, parameters, use_tqdm=False)
    ]


def token_ids(llm: Any, requests: Sequence[Asked]) -> list[list[int]]:
    """Token ids of the answers."""
    return [list(output.token_ids) for output in answers(llm, requests)]


def counters(llm: Any) -> dict[str, int]:
    """The counters of vLLM, by name."""
    found: dict[str, int] = {}
    for metric in llm.get_metrics():
        if hasattr(metric, "value"):
            found[metric.name] = found.get(metric.name, 0) + int(metric.value)
    return found
