"""The server that the tests of other environments talk to: run it with the project's own environment; it prints its address.

`trio` is a small trio that learned a few answers, `tools` behaves like a model that uses its tools, `thinker` too, and tells its
thoughts; `eft` answers in the form that a recipe's framework asks for, and tells the weights of its request; `cut` ends inside the
arguments of a call, `late` behind them, and the call of `unfit` breaks its schema.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import tempfile
from pathlib import Path

from pydantic import SecretStr

from eft_engine.config import resolve_weights
from eft_integrations.backends.pool import backend_of
from eft_integrations.backends.protocol import ChatBackend
from eft_integrations.backends.replies import AUTO, Auto
from eft_integrations.backends.scripted import ScriptedBackend, last_text
from eft_integrations.chat.messages import InvalidToolCall, Message, ToolCall
from eft_integrations.chat.request import ChatRequest, ChatResult
from eft_integrations.server.callers.callers import KeySettings
from eft_integrations.server.evaluation.batch_settings import BatchSettings
from eft_integrations.server.settings import ServerSettings
from tests.integrations.cuts import REASON, cut, unfit
from tests.integrations.server.serving import running
from tests.integrations.server.tool_user import ToolUser
from tests.integrations.trained_trio import trained_engine

ARGUMENTS = '{"place": "Paris"}'
FIELD = re.compile(r"\[\[ ## (\w+) ## \]\]")


KEYS = [
    KeySettings(name="clients", key=SecretStr("none"), max_requests=64, weight_policy=(0.0, 1.5)),
    KeySettings(name="narrow", key=SecretStr("narrow"), max_requests=1),
]
"""All clients go through keys, limits and a policy."""


class Thinker(ToolUser):
    """Thinks before each of its answers."""

    def _reply(self, request: ChatRequest) -> Message:
        return dataclasses.replace(super()._reply(request), reasoning="I must look.")


class Follower(ToolUser):
    """Two pairs. It fills in the fields that DSPy and its agents ask for (`[[ ## answer ## ]]`); a schema gets a value."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.weights = {"helpful": 1.0, "harmless": 0.3}

    def _answer(self, request: ChatRequest) -> Message | Auto:
        asked = last_text(request)
        fields = FIELD.findall(asked.partition("starting with the field")[2])
        if fields:
            seen = "observation" in asked
            values = {
                "next_thought": "I must look.",
                "next_tool_name": "finish" if seen else "look",
                "next_tool_args": "{}" if seen else ARGUMENTS,
                "completed": "",
            }
            said = f"sunny {json.dumps(resolve_weights(request.reward_weights, self.weights))}"
            return Message("assistant", "".join(f"[[ ## {own} ## ]]\n{values.get(own, said)}\n\n" for own in fields))
        if request.prompt is not None or (request.response_schema is not None and not request.tools):
            return AUTO
        return self._reply(request)


def same(answer: ChatResult) -> ScriptedBackend:
    """Gives the same answer for ever."""
    return ScriptedBackend(otherwise=answer)


def torn(arguments: str) -> ChatResult:
    """A call that ends inside or behind its arguments."""
    return cut(Message("assistant", ""), InvalidToolCall(arguments, REASON, "look", "call_1", arguments))


if __name__ == "__main__":
    served: dict[str, ChatBackend] = {
        "trio": backend_of(trained_engine()),
        "tools": ToolUser(),
        "thinker": Thinker(),
        "eft": Follower(),
        "cut": same(torn(ARGUMENTS[:14])),
        "late": same(torn(ARGUMENTS)),
        "unfit": same(unfit(ToolCall("call_1", "look", ARGUMENTS))),
    }
    with tempfile.TemporaryDirectory() as folder:
        batches = BatchSettings(folder=Path(folder))
        with running(served, ServerSettings(keys=KEYS, max_stored_responses=64, batches=batches)) as url:
            sys.stdout.write(f"{url}\n")
            sys.stdout.flush()
            sys.stdin.read()  # until the tests are over
