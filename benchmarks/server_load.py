"""Does the server stay whole under load? 64 streams with mixed weights, a third of the clients leave; then 2,000 requests.

    python -m benchmarks.server_load            [--requests 2000] [--streams 64]

Everything happens on loopback, in two processes' worth of work and minutes at most. Survivors are compared with their answers when
asked alone (greedy, float32). The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import time
from typing import Any

import httpx
import psutil
import torch

from benchmarks.report import finish
from eft_engine import Engine
from eft_integrations.backends.pool import backend_of
from tests.integrations.server.serving import running
from tests.toy import make_trio

WEIGHTS = (0.0, 0.3, 1.0, 1.7)


def body(index: int, *, max_tokens: int = 24) -> dict[str, Any]:
    """Request number `index`: its own prompt, one of the weights."""
    return {
        "model": "toy",
        "prompt": f"{index} says",
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "eft_reward_weights": WEIGHTS[index % len(WEIGHTS)],
    }


async def read(client: httpx.AsyncClient, index: int, *, leave_after: int | None, max_tokens: int = 24) -> str | None:
    """The text of a stream, or None for a client that leaves after so many events."""
    request = {**body(index, max_tokens=max_tokens), "stream": True}
    pieces: list[str] = []
    num_events = 0
    async with client.stream("POST", "/v1/completions", json=request) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            if num_events == leave_after:
                return None
            num_events += 1
            pieces.append(json.loads(line.removeprefix("data: "))["choices"][0]["text"])
    return "".join(pieces)


async def settle(engine: Engine) -> None:
    """Wait until the engine has nothing to do."""
    while engine.stats().num_running or engine.stats().num_waiting:
        await asyncio.sleep(0.01)


async def streams_with_leavers(client: httpx.AsyncClient, engine: Engine, num_streams: int) -> dict[str, Any]:
    """All streams at once; a third of the clients leave at a random event."""
    alone = [await read(client, index, leave_after=None) for index in range(num_streams)]
    chance = random.Random(0)
    leaving = {index: chance.randrange(1, 20) for index in chance.sample(range(num_streams), num_streams // 3)}
    before = engine.stats()
    started = time.perf_counter()
    together = await asyncio.gather(
        *(read(client, index, leave_after=leaving.get(index)) for index in range(num_streams))
    )
    await settle(engine)
    seconds = time.perf_counter() - started
    after = engine.stats()
    survivors = [index for index in range(num_streams) if index not in leaving]
    return {
        "streams": num_streams,
        "left": len(leaving),
        "survivors_equal_to_alone": sum(together[index] == alone[index] for index in survivors),
        "survivors": len(survivors),
        "cancelled_in_engine": after.num_cancelled - before.num_cancelled,
        "finished_in_engine": after.num_finished - before.num_finished,
        "running_afterwards": after.num_running,
        "waiting_afterwards": after.num_waiting,
        "seconds": round(seconds, 2),
    }


async def many_requests(client: httpx.AsyncClient, engine: Engine, num_requests: int) -> dict[str, Any]:
    """Memory and cache bytes while request after request comes, 32 at a time; every eleventh client leaves."""
    process = psutil.Process()
    samples: list[tuple[int, float, int]] = []
    started = time.perf_counter()
    for start in range(0, num_requests, 32):
        numbers = range(start, min(start + 32, num_requests))
        await asyncio.gather(*(read(client, n, leave_after=2 if n % 11 == 0 else None, max_tokens=6) for n in numbers))
        if (start // 32) % 8 == 0 or numbers[-1] == num_requests - 1:
            await settle(engine)
            gc.collect()
            samples.append((numbers[-1] + 1, process.memory_info().rss / 2**20, engine.stats().kv_cache_bytes))
    seconds = time.perf_counter() - started
    quarter = next(sample for sample in samples if sample[0] >= num_requests // 4)
    return {
        "requests": num_requests,
        "rss_mib_after_a_quarter": round(quarter[1], 1),
        "rss_mib_at_the_end": round(samples[-1][1], 1),
        "rss_mib": [[count, round(mib, 1)] for count, mib, _ in samples],
        "kv_cache_bytes": sorted({num_bytes for _, _, num_bytes in samples}),
        "running_afterwards": engine.stats().num_running,
        "seconds": round(seconds, 1),
    }


async def measure(num_streams: int, num_requests: int) -> dict[str, Any]:
    """Both questions, against one server."""
    with make_trio("llama").engine(max_num_seqs=16) as engine, running({"toy": backend_of(engine)}) as url:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
            return {
                "leavers": await streams_with_leavers(client, engine, num_streams),
                "many": await many_requests(client, engine, num_requests),
            }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--requests", type=int, default=2000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measured = asyncio.run(measure(arguments.streams, arguments.requests))
    finish("server_load", measured)
