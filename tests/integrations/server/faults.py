"""What can go wrong with a request, as data: the test sends all of it, and `python -m tests.integrations.server.faults` prints the
table of what came back.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hi"}]


@dataclass(frozen=True)
class Fault:
    """A request body (JSON, or bytes as they are), and how the server must answer."""

    name: str
    body: Any
    status: int
    code: str | None
    path: str = CHAT
    in_pieces: bool = False

    def content(self) -> bytes:
        """The body's bytes. JSON may hold NaN, and text that is no UTF-8 is escaped."""
        if isinstance(self.body, bytes):
            return self.body
        return json.dumps(self.body).encode()

    async def send(self, client: httpx.AsyncClient) -> httpx.Response:
        """Send it."""
        content: Any = self._pieces() if self.in_pieces else self.content()
        return await client.post(self.path, content=content, headers={"Content-Type": "application/json"})

    async def _pieces(self) -> AsyncIterator[bytes]:
        content = self.content()
        for start in range(0, len(content), 100_000):
            yield content[start : start + 100_000]


def chat(**fields: Any) -> dict[str, Any]:
    """A small request with some fields of its own."""
    return {"model": "m", "messages": HELLO, "max_tokens": 8, **fields}


def schema(schema: Any, **further: Any) -> dict[str, Any]:
    """A small request for JSON of a schema."""
    return chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **further}})


def nested(levels: int) -> dict[str, Any]:
    """A schema in a schema in a schema."""
    inner: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        inner = {"type": "array", "items": inner}
    return inner


FAULTS = [
    Fault("malformed JSON", b'{"model": "m", "messages": [', 400, "invalid_json"),
    Fault("no body", b"", 400, "invalid_json"),
    Fault("a list instead of an object", [1, 2], 400, "invalid_value"),
    Fault("invalid UTF-8", b'{"model": "m", "messages": [{"role": "user", "content": "\xff\xfe"}]}', 400, "invalid_json"),
    Fault("half a surrogate pair", chat(messages=[{"role": "user", "content": "\ud800"}]), 400, "invalid_value"),
    Fault("half a surrogate pair in a tool", chat(tools=[{"function": {"name": "\ud800"}}]), 400, "invalid_value"),
    Fault("body of 10 MB", chat(messages=[{"role": "user", "content": "a" * 10_000_000}]), 413, "body_too_large"),
    Fault(
        "body of 10 MB in pieces",
        chat(messages=[{"role": "user", "content": "a" * 10_000_000}]),
        413,
        "body_too_large",
        in_pieces=True,
    ),
    Fault("100,000 nested brackets", b'{"model": "m", "messages": ' + b"[" * 100_000, 400, "invalid_json"),
    Fault("NaN weight", chat(eft_reward_weights=float("nan")), 400, "invalid_weight"),
    Fault("infinite weight", chat(eft_reward_weights={"chat": float("inf")}), 400, "invalid_weight"),
    Fault("NaN weight behind the name", chat(model="m@chat=nan"), 400, "invalid_weight"),
    Fault("weight of an unknown pair", chat(eft_reward_weights={"other": 1}), 400, "unknown_pair"),
    Fault("weight that is a text", chat(eft_reward_weights="much"), 400, "invalid_value"),
    Fault("unknown model", chat(model="other"), 404, "model_not_found"),
    Fault("prompt longer than the context", chat(messages=[{"role": "user", "content": "a" * 5000}]), 400,
          "context_length_exceeded"),
    Fault("empty text", {"model": "m", "prompt": ""}, 400, "empty_prompt", path=COMPLETIONS),
    Fault("temperature NaN", chat(temperature=float("nan")), 400, "invalid_value"),
    Fault("max_tokens 0", chat(max_tokens=0), 400, "invalid_value"),
    Fault("max_tokens 10^30", chat(max_tokens=10**30, stop=["\n", "a", "e"]), 200, None),
    Fault("logit_bias of an id beyond the vocabulary", chat(logit_bias={"1000000000": 5}), 400, "invalid_value"),
    Fault("stop token beyond the vocabulary", chat(stop_token_ids=[10**9]), 400, "invalid_value"),
    Fault("stop token below 0", chat(stop_token_ids=[-1]), 400, "invalid_value"),
    Fault("image", chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]), 400,
          "invalid_value"),
    Fault("tool result without a call", chat(messages=[{"role": "tool", "content": "x", "tool_call_id": "c"}]), 200, None),
    Fault("schema of 200 levels", schema(nested(200)), 400, "too_deep"),
    Fault("schema that refers to itself", schema({"$ref": "#"}), 200, None),
    Fault("schema with a keyword that no mask can hold", schema({"type": "array", "uniqueItems": True}), 200, None),
    Fault("the same, strict", schema({"type": "array", "uniqueItems": True}, strict=True), 400, "invalid_value"),
    Fault("expression (a{1,1000}){1,1000}", schema({"type": "string", "pattern": "^(a{1,1000}){1,1000}$"}), 200, None),
    Fault("expression [ab]*a[ab]{30}", schema({"type": "string", "pattern": "^[ab]*a[ab]{30}$"}), 200, None),
    Fault("array of at least a thousand million items", schema({"type": "array", "minItems": 10**9}), 200, None),
    Fault("multiples of a large prime", schema({"type": "integer", "multipleOf": 982451653}), 200, None),
    Fault("choice of 100,000 texts", schema({"enum": [f"v{index}" for index in range(100_000)]}), 400, "schema_too_large"),
    Fault("choice of 10,000 texts", schema({"enum": [f"v{index}" for index in range(10_000)]}), 200, None),
    Fault(
        "product of alternatives",
        schema(
            {
                "allOf": [
                    {"anyOf": [{"type": "object", "properties": {f"{i}_{j}": {"type": "string"}}} for j in range(10)]}
                    for i in range(8)
                ]
            }
        ),
        200,
        None,
    ),
]  # fmt: skip


def outcome(response: httpx.Response) -> str:
    """What came back, in a few words."""
    if response.status_code == 200:
        return "200, an answer"
    error = response.json()["error"]
    return f"{response.status_code} `{error['code'] or error['type']}`: {' '.join(error['message'].split())[:110]}"


async def main() -> None:
    """Print the table."""
    from eft_integrations.backends.pool import backend_of
    from tests.integrations.server.serving import running
    from tests.toy import make_trio

    with make_trio("llama", context_len=512).engine() as engine, running({"m": backend_of(engine)}) as url:
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            rows = [f"| {fault.name} | {outcome(await fault.send(client))} |" for fault in FAULTS]
        stats = engine.stats()
    sys.stdout.write("\n".join(["| tried | came back |", "|---|---|", *rows]) + "\n")
    sys.stdout.write(f"\nafterwards: {stats.num_running} running, {stats.num_waiting} waiting\n")


if __name__ == "__main__":
    asyncio.run(main())
