"""Many clients for a long time: who stays gets what it would get alone, nobody waits for another's flood, nothing piles up."""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any

import httpx

from tests.server.process import KEYS, VICTIM, ServerProcess

NUM_STREAMS, NUM_REQUESTS, NUM_CLIENTS = 64, 2000, 16
FLOOD, PLACES = 160, 20
"""Requests of one caller at once, and what may be with the engine at once: `max_num_seqs` and a quarter more."""


def client_of(server: ServerProcess, name: str) -> httpx.AsyncClient:
    """A client with one caller's key."""
    limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)
    return httpx.AsyncClient(
        base_url=server.url, headers=server.headers(name), timeout=120, limits=limits, trust_env=False
    )


def body_of(index: int) -> dict[str, Any]:
    """One of many requests whose answers differ; the same answer whenever it is asked."""
    weights = (0.0, 0.5, 1.0, 2.0)[index % 4]
    sampled = {"temperature": 0.8, "seed": index} if index % 3 == 0 else {"temperature": 0}
    prompt = f"request {index} " * (1 + index % 5)
    return {**VICTIM, "prompt": prompt, "max_tokens": 8 + index % 9, "eft_reward_weights": weights, **sampled}


async def streamed(client: httpx.AsyncClient, body: dict[str, Any], *, leave_after: int | None) -> str | None:
    """The text of a stream; None: its client left after so many events."""
    text = ""
    async with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        num_events = 0
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                return text
            if line.startswith("data: "):
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                num_events += 1
                if num_events == leave_after:
                    return None
    raise AssertionError("the stream broke off")


async def test_of_64_streams_those_that_stay_are_as_if_alone(server: ServerProcess) -> None:
    chance = random.Random(24)
    leaving = {index: chance.randint(1, 6) for index in chance.sample(range(NUM_STREAMS), NUM_STREAMS // 3)}
    async with client_of(server, "victim") as client:
        alone = []
        for index in range(NUM_STREAMS):
            answer = await client.post("/v1/completions", json=body_of(index))
            alone.append(answer.raise_for_status().json()["choices"][0]["text"])
    clients = [client_of(server, name) for name in KEYS]
    try:
        texts = await asyncio.gather(
            *(
                streamed(clients[index % len(clients)], body_of(index), leave_after=leaving.get(index))
                for index in range(NUM_STREAMS)
            )
        )
    finally:
        await asyncio.gather(*(client.aclose() for client in clients))
    stayed = [index for index in range(NUM_STREAMS) if index not in leaving]
    assert [texts[index] for index in stayed] == [alone[index] for index in stayed]
    assert len(set(alone)) > NUM_STREAMS // 2, "answers that are all alike would prove little"
    server.wait_until_idle()
    server.check_log()


async def test_another_s_flood_is_not_waited_for(server: ServerProcess) -> None:
    order: list[str] = []

    async def ask(client: httpx.AsyncClient, name: str) -> None:
        answer = await client.post("/v1/completions", json={**VICTIM, "max_tokens": 24})
        answer.raise_for_status()
        order.append(name)

    async with client_of(server, "mallory") as mallory, client_of(server, "victim") as victim:
        flood = [asyncio.create_task(ask(mallory, "mallory")) for _ in range(FLOOD)]
        while not order:
            await asyncio.sleep(0.01)
        before = len(order)
        await ask(victim, "victim")
        after = len(order) - 1
        await asyncio.gather(*flood)
    assert before < FLOOD // 2, "the flood was over before it began"
    # what had a place before it, and what ran beside it
    assert after - before < 2 * PLACES, "the victim waited behind the flood"


async def test_after_2000_requests_all_is_as_before(server: ServerProcess) -> None:
    async def many(count: int) -> None:
        numbers = iter(range(count))

        async def work(name: str) -> None:
            async with client_of(server, name) as client:
                for index in numbers:
                    await one(client, index)

        names = list(KEYS)
        await asyncio.gather(*(work(names[index % len(names)]) for index in range(NUM_CLIENTS)))

    async def one(client: httpx.AsyncClient, index: int) -> None:
        short = {"model": "toy", "max_tokens": 1 + index % 2, "temperature": 0}
        match index % 8:
            case 0:
                await streamed(client, {**VICTIM, "max_tokens": 6}, leave_after=1 + index % 3)
            case 1:
                answer = await client.post(
                    "/v1/chat/completions", json={**short, "messages": [{"role": "user", "content": "a"}]}
                )
                assert answer.status_code == 200, answer.text
            case 2:
                assert (await client.post("/tokenize", json={"model": "toy", "prompt": "abc"})).status_code == 200
            case 3:
                assert (await client.post("/v1/completions", content=b"{")).status_code == 400
            case 4:
                assert (await client.get("/v1/models")).status_code == 200
            case _:
                answer = await client.post("/v1/completions", json={**short, "prompt": f"text {index}"})
                assert answer.status_code == 200, answer.text

    def state() -> tuple[int, int, int]:
        server.wait_until_idle()
        time.sleep(1.0)  # closed connections are gone after some turns of the loop
        return server.rss(), server.seen.num_threads(), server.seen.num_fds()

    await many(400)
    rss, num_threads, num_fds = state()
    await many(NUM_REQUESTS)
    rss_after, num_threads_after, num_fds_after = state()
    assert rss_after - rss < 50 * 2**20
    assert num_threads_after <= num_threads + 2
    assert num_fds_after <= num_fds + 2
    server.check_log()
