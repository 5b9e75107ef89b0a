"""The kinds of calls of `benchmarks.which_calls` count what is right, over a script."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks import which_calls
from eft_integrations.chat.request import ChatRequest
from eft_integrations.langchain import EFTChatModel
from eft_integrations.llama_index import EFTLLM
from eft_integrations.testing import Reply, ScriptedBackend, tool_call

FORM = '{"answer": "Yes.", "topic": "places"}'


def right_tool(request: ChatRequest) -> Reply:
    """The call that the question wants."""
    is_weather = any(word in request.messages[-1].content for word in ("weather", "sunny"))
    return tool_call("get_weather" if is_weather else "get_population", city="Oslo")


def route(request: ChatRequest) -> Reply:
    """The choice that the question wants, as LlamaIndex' selector reads it."""
    choice = 2 if "rice" in request.messages[-1].content else 1
    return f'```json\n[{{"choice": {choice}, "reason": "so"}}]\n```'


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (which_calls.answers, FORM, "Yes."),
        (which_calls.claims_that_follow, "YES", "NO"),
        (which_calls.claims_that_do_not, "NO", "YES"),
        (which_calls.keywords, "Torvel, river, Senna", FORM),
        (which_calls.routes, route, "none of them"),
        (which_calls.calls, right_tool, "It is sunny."),
        (which_calls.citations, "By the river [1].", "By the river."),
    ],
)
def test_a_kind_counts_what_is_right(
    kind: Callable[[EFTLLM, EFTChatModel, int], tuple[int, int]], right: Reply, wrong: Reply
) -> None:
    for reply, expected in ((right, 2), (wrong, 0)):
        backend = ScriptedBackend(otherwise=reply)
        models = EFTLLM(backend=backend), EFTChatModel(backend=backend)
        assert kind(*models, 2) == (expected, 2)
