"""Weights by step of a LangChain agent: one for steps that may call tools, another for the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

try:
    from langchain.agents.middleware import AgentMiddleware
    from langchain.agents.middleware.types import ModelRequest, ModelResponse
except ImportError as error:
    raise ImportError("WeightMiddleware needs langchain: pip install langchain") from error

from langchain_core.messages import AIMessage
from langgraph.constants import TAG_NOSTREAM

from eft_engine.config import RewardWeights


class WeightMiddleware(AgentMiddleware[Any, Any, Any]):
    """An agent decides at one weight whether and how to call tools, and writes its answer at another.

    A pair that was taught a form wants to answer: models with it invent results instead of asking for them (docs/which_calls.md).
    So a step with tools runs at `deciding`. If it calls none, what it wrote is put aside, unseen by streams, and the same is asked
    once more at `answering`; should a call come now, which nobody decided on, the text that was put aside is the answer. That costs
    one more answer per turn, whose prompt has just been read. Answers that are themselves a forced call (`ToolStrategy`) stay as
    they were decided.

    Args:
        deciding: weights of steps that may call tools.
        answering: weights of answers; None: those that the agent is asked with (block, config, the model's own).
    """

    def __init__(self, *, deciding: RewardWeights = 0.0, answering: RewardWeights = None) -> None:
        super().__init__()
        self._deciding = deciding
        self._answering = answering

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """See `AgentMiddleware`."""
        if not request.tools:
            return handler(self._to_answer(request))
        decided = handler(self._to_decide(request))
        if _calls_a_tool(decided):
            return decided
        answer = handler(self._to_answer(request))
        return decided if _calls_a_tool(answer) else answer

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """See `AgentMiddleware`."""
        if not request.tools:
            return await handler(self._to_answer(request))
        decided = await handler(self._to_decide(request))
        if _calls_a_tool(decided):
            return decided
        answer = await handler(self._to_answer(request))
        return decided if _calls_a_tool(answer) else answer

    def _to_decide(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        hidden = request.model.model_copy(update={"tags": [*(request.model.tags or ()), TAG_NOSTREAM]})
        return request.override(model=hidden, model_settings=_with(request, self._deciding))

    def _to_answer(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        return request.override(model_settings=_with(request, self._answering))


def _with(request: ModelRequest[Any], weights: RewardWeights) -> dict[str, Any]:
    return {**request.model_settings, **({} if weights is None else {"reward_weights": weights})}


def _calls_a_tool(response: ModelResponse[Any]) -> bool:
    """Whether it calls one, or began to: then it is no answer that could be written once more."""
    return any(
        message.tool_calls or message.invalid_tool_calls
        for message in response.result
        if isinstance(message, AIMessage)
    )
