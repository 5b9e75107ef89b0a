"""The servers that the tests of the page talk to: run it with the project's own environment; it prints three addresses.

The first asks for no key, the second for `secret`, the third stands behind a proxy's prefix.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from eft_engine.config import resolve_weights
from eft_engine.errors import InvalidOptionError, NonFiniteLogitsError
from eft_integrations.backends.pool import backend_of
from eft_integrations.backends.replies import Broken, Gate, Gated, Reply
from eft_integrations.backends.scripted import ScriptedBackend, last_text
from eft_integrations.chat.messages import Message, ToolCall
from eft_integrations.chat.request import ChatRequest
from eft_integrations.server.callers.callers import KeySettings
from eft_integrations.server.callers.weight_policy import WeightPolicy
from eft_integrations.server.compositions import Composition
from eft_integrations.server.settings import ServerSettings
from tests.integrations.server.serving import make_app, running
from tests.toy import make_trio

PREFIX = "/try"
INERT = "<img src=x onerror=\"document.title='taken'\">"


class Said(ScriptedBackend):
    """Answers by the word that it is asked with; else it tells the weights of its request."""

    def __init__(self) -> None:
        super().__init__(self._reply, weights={"helpful": 1.0, "harmless": 0.5, "fixed": 0.25})

    def _reply(self, request: ChatRequest) -> Reply:
        match last_text(request):
            case "markup":
                return INERT
            case "think":
                return Message("assistant", "Sunny.", reasoning="I must look.")
            case "call":
                return Message("assistant", "", (ToolCall("call_1", "look", '{"place": "Paris"}'),))
            case "wait":
                return Gated("one two three", Gate(), after=1)
            case "fail":
                return NonFiniteLogitsError("no distribution at all", position=0)
            case "vllm" if request.member_logprobs:
                return InvalidOptionError("eft_token_rewards: not here", option="eft_token_rewards")
            case "break":
                return Broken("one two three", NonFiniteLogitsError("no distribution", position=1), after=1)
        return json.dumps(resolve_weights(request.reward_weights, self.weights))


def under_prefix(app: ASGIApp) -> ASGIApp:
    """What a proxy does that takes the prefix away."""

    async def proxied(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            assert scope["path"].startswith(PREFIX), scope["path"]
            path = scope["path"].removeprefix(PREFIX)
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await app(scope, receive, send)

    return proxied


@contextlib.contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """An application on a free port."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


def main() -> None:
    """Serve until the input ends."""
    said = Said()
    policy = WeightPolicy.of({"helpful": (0.0, 1.5), "harmless": "free", "fixed": "fixed"})
    trio = make_trio("llama")
    with trio.engine() as engine:
        served = [
            Composition("said", said, said.weights, policy),
            Composition.of("trio", backend_of(engine)),
            Composition.of(INERT, said),
        ]
        keys = [KeySettings(name="tester", key="secret")]
        with (
            running(served) as free,
            running(served, ServerSettings(keys=keys)) as locked,
            serving(under_prefix(make_app(served))) as prefixed,
        ):
            sys.stdout.write(f"{free} {locked} {prefixed}{PREFIX}\n")
            sys.stdout.flush()
            sys.stdin.read()


if __name__ == "__main__":
    main()
