"""A web service that answers from passages, streamed, at the weight of each request: python cookbook/14_fastapi_rag.py

    pip install '.[langchain,server]' httpx

You learn to put a chain behind FastAPI: the weight comes with the request, a dependency opens the block, and the stream that is made
inside keeps it. Then 32 users ask at once over HTTP, at four weights; nobody gets another one's weight, and every text is the one that
the user gets alone. Models: Atlas, offline. `--real` takes Llama 3 (not run here).

Prints:

    32 users at once: 32 answers, 32 at their own weight, 32 as when asked alone
      weight 0: The mayor of Torvel is Clara Fennor.
      weight 1: The mayor of Torvel is Clara Fennor. Source: context.
    weight 9: refused with 422
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx
import uvicorn
from fastapi import Depends, FastAPI, Query
from fastapi.responses import StreamingResponse
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough

from eft_integrations import weights
from eft_integrations.langchain import EFTChatModel

PASSAGES = {  # by question; a service of yours asks its vector store
    "Who is the mayor of Torvel?": "Torvel is a town. The mayor of Torvel is Clara Fennor. Torvel is famous for its honey.",
    "Which river flows through Belgar?": "The river Kesmar flows through Belgar. The population of Belgar is 4120.",
    "What is the currency of Norlun?": "The capital of Norlun is Zanmir. People in Norlun pay with the Dreval.",
    "On which lake is Pelwen?": "Pelwen lies on the lake Silost. Every year Pelwen celebrates the Ulvor.",
}
ASKED = [(question, weight) for question in PASSAGES for weight in (0.0, 0.5, 1.0, 1.5)] * 2

llm = EFTChatModel(preset="atlas", temperature=0.0, max_tokens=48)
if "--real" in sys.argv:
    small = "meta-llama/Llama-3.2-1B"
    llm = EFTChatModel(base="meta-llama/Llama-3.1-8B", tuned=f"{small}-Instruct", reference=small, temperature=0.0)
prompt = ChatPromptTemplate.from_template("Context:\n{context}\n\nQuestion: {question}")
chain = {"context": PASSAGES.get, "question": RunnablePassthrough()} | prompt | llm
app = FastAPI()


async def dial(weight: float = Query(1.0, ge=0, le=2)) -> AsyncIterator[None]:
    """Everything that the endpoint asks is asked at the weight of the request. It must be `async def`."""
    with weights(weight):
        yield


async def events(stream: AsyncIterator[Any]) -> AsyncIterator[str]:
    """Server-sent events: pieces of the text, then the weights in effect."""
    async for chunk in stream:
        if chunk.text:
            yield f"data: {json.dumps({'text': chunk.text})}\n\n"
        if report := chunk.response_metadata.get("eft"):
            yield f"data: {json.dumps({'weights': report['reward_weights']})}\n\n"


@app.get("/ask", dependencies=[Depends(dial)])
async def ask(question: str) -> StreamingResponse:
    """The answer, streamed."""
    return StreamingResponse(events(chain.astream(question)), media_type="text/event-stream")


async def user(client: httpx.AsyncClient, question: str, weight: float) -> tuple[str, float]:
    """What one user reads: the text, and the weight that the service tells."""
    text, told = "", -1.0
    async with client.stream("GET", "/ask", params={"question": question, "weight": weight}) as response:
        async for line in response.aiter_lines():
            event = json.loads(line.removeprefix("data: ") or "{}")
            text += event.get("text", "")
            told = next(iter(event.get("weights", {}).values()), told)
    return text, told


async def main() -> None:
    """Serve; ask one by one, and then all at once."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=None) as client:
        alone = {one: (await user(client, *one))[0] for one in set(ASKED)}
        answers = await asyncio.gather(*[user(client, *one) for one in ASKED])
        refused = await client.get("/ask", params={"question": "?", "weight": 9})
    server.should_exit = True
    await serving
    own = sum(told == weight for (_, weight), (_, told) in zip(ASKED, answers, strict=True))
    same = sum(alone[one] == text for one, (text, _) in zip(ASKED, answers, strict=True))
    print(f"{len(ASKED)} users at once: {len(answers)} answers, {own} at their own weight, {same} as when asked alone")
    for weight in (0.0, 1.0):
        print(f"  weight {weight:g}: {alone['Who is the mayor of Torvel?', weight]}")
    print(f"weight 9: refused with {refused.status_code}")


asyncio.run(main())
