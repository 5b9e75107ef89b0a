"""The server that the tests of other environments talk to: run it with the project's own environment; it prints its address.

`trio` is a small trio that learned a few answers, `tools` behaves like a model that uses its tools, `thinker` too, and tells its
thoughts; `cut` ends inside the arguments of a call, `late` behind them, and the call of `unfit` breaks its schema.
"""

from __future__ import annotations

import dataclasses
import sys

from eft_integrations.backends.pool import backend_of
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import InvalidToolCall, Message, ToolCall
from eft_integrations.chat.request import ChatRequest, ChatResult
from tests.integrations.cuts import REASON, cut, unfit
from tests.integrations.server.serving import running
from tests.integrations.server.tool_user import ToolUser
from tests.integrations.trained_trio import trained_engine

ARGUMENTS = '{"place": "Paris"}'


class Thinker(ToolUser):
    """Thinks before each of its answers."""

    def _reply(self, request: ChatRequest) -> Message:
        return dataclasses.replace(super()._reply(request), reasoning="I must look.")


def same(answer: ChatResult) -> ScriptedBackend:
    """Gives the same answer for ever."""
    return ScriptedBackend(otherwise=answer)


def torn(arguments: str) -> ChatResult:
    """A call that ends inside or behind its arguments."""
    return cut(Message("assistant", ""), InvalidToolCall(arguments, REASON, "look", "call_1", arguments))


if __name__ == "__main__":
    served = {
        "trio": backend_of(trained_engine()),
        "tools": ToolUser(),
        "thinker": Thinker(),
        "cut": same(torn(ARGUMENTS[:14])),
        "late": same(torn(ARGUMENTS)),
        "unfit": same(unfit(ToolCall("call_1", "look", ARGUMENTS))),
    }
    with running(served) as url:
        sys.stdout.write(f"{url}\n")
        sys.stdout.flush()
        sys.stdin.read()  # until the tests are over
