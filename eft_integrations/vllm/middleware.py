"""Names and weights of `eft serve` on vLLM's own server: an ASGI middleware that puts them where vLLM keeps what it does not know.

Weights of a request may stand, as for `eft serve` and in the same order of precedence, in the body (`eft_reward_weights`), in
the header `X-EFT-Reward-Weights`, or behind the model's name (`name@chat=0.5`); a composition's own weights belong to its
name. All of it becomes `vllm_xargs`. `/v1/models` says which pairs a name has. The tokens that end a text are those of all
members, as in the engine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import State
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eft_integrations.vllm.request_weights import KEY, SHARE_KEY, read_share, read_weights
from eft_integrations.vllm.trio_options import TrioOptions
from eft_integrations.weights import HEADER, first_given, parse_alias, parse_weights

GENERATION = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
NAMES_A_MODEL = GENERATION | {"/tokenize"}
FIELD = "eft_reward_weights"
NOT_HERE = {
    "eft_prompt_pairs": "one request has one prompt there, which all members read",
    "eft_call_weight": "a request keeps its weights there, and no text is drawn twice",
    "eft_reasoning_weight": "a request keeps its weights there",
    "eft_call_lookahead": "a request keeps its weights there, and no text is drawn twice",
    "eft_tuned_plausibility": "members are added up there, whatever each of them finds plausible",
}
"""Fields of `eft serve` that vLLM cannot do, with the reason."""
MAX_BODY_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Served:
    """What a running server serves: the trio, the names that requests may call it by, and the tokens that end a text."""

    options: TrioOptions
    names: Sequence[str]
    eos_token_ids: Sequence[int] = ()

    @classmethod
    def by(cls, state: State) -> Served:
        """Out of the state of vLLM's application."""
        config = state.vllm_config.model_config
        names = state.args.served_model_name or [state.args.model]
        eos = getattr(config.hf_config, "eft_eos_token_ids", ())
        return cls(TrioOptions.of(config.hf_config), names, eos)

    def weights_of(self, name: str) -> dict[str, float]:
        """The own weights of the pairs that belong to a name: its composition's, or all pairs'."""
        return dict(self.options.compositions.get(name) or self.options.weights)

    def translate(self, body: MutableMapping[str, Any], header: str | None) -> None:
        """Turn names and weights into what vLLM reads, in place.

        Raises:
            ValueError: weights that cannot be read or that belong to no pair of the name, or a field that vLLM cannot do.
        """
        for field, reason in NOT_HERE.items():
            if body.pop(field, None) is not None:
                raise ValueError(
                    f"{field}: vLLM cannot do it: {reason}; leave it out, or ask an engine of this package"
                )
        name, alias = self._split(body.get("model"))
        if name is not None:
            body["model"] = name
        own = self.weights_of(name or self.names[0])
        carried = first_given(body.pop(FIELD, None), None if header is None else parse_weights(header), alias)
        extra = dict(body.get("vllm_xargs") or {})
        if carried is not None:
            extra[KEY] = carried
        if KEY in extra or list(own.items()) != list(self.options.weights.items()):
            chosen = dict(zip(own, read_weights({KEY: extra.get(KEY)}, own), strict=True))
            extra[KEY] = [chosen.get(pair, 0.0) for pair in self.options.pairs]
            body["vllm_xargs"] = extra
        share = body.pop(SHARE_KEY, None)
        own_share = self.options.min_plausibility.get(name or self.names[0], 0.0)
        if share is not None or (own_share and SHARE_KEY not in extra):
            extra[SHARE_KEY] = read_share({SHARE_KEY: own_share if share is None else share})
            body["vllm_xargs"] = extra
        if self.eos_token_ids and not body.get("ignore_eos"):
            body["stop_token_ids"] = sorted({*(body.get("stop_token_ids") or ()), *self.eos_token_ids})

    def _split(self, model: object) -> tuple[str | None, dict[str, float] | None]:
        if not isinstance(model, str) or model in self.names:
            return model if isinstance(model, str) else None, None
        return parse_alias(model)

    def describe(self, listed: MutableMapping[str, Any]) -> None:
        """Add the pairs of every name to the list of models, and how this server is asked (`RemoteBackend` reads both)."""
        for model in listed.get("data", ()):
            model["eft"] = {"dialect": "vllm", "pairs": self.weights_of(model["id"])}


class TrioMiddleware:
    """The middleware; vLLM makes it of `--middleware eft_integrations.vllm.middleware.TrioMiddleware`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["method"] == "POST" and scope["path"] in NAMES_A_MODEL:
            await self._translated(scope, receive, send)
        elif scope["method"] == "GET" and scope["path"] == "/v1/models":
            answer = _Answer(send, Served.by(scope["app"].state).describe)
            await self._app(scope, receive, answer.send)
        else:
            await self._app(scope, receive, send)

    async def _translated(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = await _body(receive)
        if raw is None:
            await _refuse(send, 413, f"the body is larger than {MAX_BODY_BYTES} bytes")
            return
        try:
            body = json.loads(raw)
        except ValueError:
            body = None  # vLLM says what is wrong with it
        if isinstance(body, dict):
            header = next((value.decode() for name, value in scope["headers"] if name == HEADER.lower().encode()), None)
            try:
                Served.by(scope["app"].state).translate(body, header)
            except (ValueError, TypeError) as error:
                await _refuse(send, 400, str(error))
                return
            if scope["path"] not in GENERATION:
                body = {key: value for key, value in body.items() if key not in ("vllm_xargs", "stop_token_ids")}
            raw = json.dumps(body).encode()
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(raw)).encode())]}
        await self._app(scope, _replay(raw, receive), send)


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None if it is too large. A client that leaves makes it end early."""
    pieces, size = [], 0
    while True:
        message = await receive()
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > MAX_BODY_BYTES:
            return None
        if not message.get("more_body"):
            return b"".join(pieces)


def _replay(body: bytes, receive: Receive) -> Receive:
    """`receive` for the application: the body at once, then whatever comes (that the client left)."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _refuse(send: Send, status: int, message: str) -> None:
    error = {"message": message, "type": "BadRequestError", "param": FIELD, "code": status}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class _Answer:
    """Holds a JSON answer back until it is whole, and sends it changed."""

    def __init__(self, send: Send, change: Callable[[MutableMapping[str, Any]], None]) -> None:
        self._send = send
        self._change = change
        self._start: Message = {}
        self._pieces: list[bytes] = []

    async def send(self, message: Message) -> None:
        """`send` for the application."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._pieces.append(message.get("body", b""))
        if message.get("more_body"):
            return
        body = b"".join(self._pieces)
        if self._start["status"] == 200:
            answer = json.loads(body)
            self._change(answer)
            body = json.dumps(answer).encode()
        headers = [(name, value) for name, value in self._start["headers"] if name.lower() != b"content-length"]
        await self._send({**self._start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await self._send({"type": "http.response.body", "body": body})
