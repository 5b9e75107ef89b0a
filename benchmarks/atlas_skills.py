"""Reading and tools on Atlas: does it answer from a passage about made-up places, and call the right tool with the right argument?

    python -m benchmarks.atlas_skills --limit 200

Through the same seam as every adapter (`eft_integrations.backends`), greedy, `tool_choice="auto"`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track

from benchmarks.report import finish
from eft_engine.evaluation.intervals import share_of
from eft_engine.zoo.atlas import QUESTION_FILES, has_form
from eft_integrations.backends.pool import shared_backend
from eft_integrations.chat.messages import Message, Tool
from eft_integrations.chat.request import ChatRequest, ToolChoice

SAMPLING = {"temperature": 0.0, "max_tokens": 64}
console = Console(stderr=True)
app = typer.Typer(add_completion=False)


def lines_of(name: str, limit: int) -> list[dict[str, Any]]:
    """The first questions of a file."""
    return [json.loads(line) for line in QUESTION_FILES[name].read_text(encoding="utf-8").splitlines()[:limit]]


def request(question: dict[str, Any], weight: float) -> ChatRequest:
    """A question as an adapter would pass it."""
    turns = question.get("messages") or [{"role": "user", "content": question["question"]}]
    tools = [
        Tool(tool["function"]["name"], tool["function"]["description"], tool["function"]["parameters"])
        for tool in question.get("tools", [])
    ]
    return ChatRequest(
        messages=tuple(Message(turn["role"], turn["content"]) for turn in turns),
        tools=tuple(tools),
        tool_choice=ToolChoice("auto"),
        sampling=SAMPLING,
        reward_weights=weight,
    )


@app.command()
def main(
    *,
    limit: Annotated[int, typer.Option(min=1, help="Questions of each kind.")] = 200,
    weight: Annotated[list[float] | None, typer.Option(help="Reward weights; repeat. [0 and 1]")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Processor threads.")] = 1,
) -> None:
    """Measure and print one line of JSON."""
    torch.set_num_threads(threads)
    backend = shared_backend(preset="atlas")
    result: dict[str, Any] = {}
    for value in weight or [0.0, 1.0]:
        read, formed, called = [], [], []
        for question in track(lines_of("reading", limit), description=f"reading, weight {value:g}", console=console):
            answer = backend.chat(request(question, value)).content
            read.append(question["answers"][0] in answer)
            formed.append(has_form(answer, "assistant"))
        for question in track(lines_of("tools", limit), description=f"tools, weight {value:g}", console=console):
            calls = backend.chat(request(question, value)).tool_calls
            wanted = question["call"]
            called.append(
                len(calls) == 1
                and calls[0].name == wanted["name"]
                and json.loads(calls[0].arguments) == wanted["arguments"]
            )
        shares = {"reading": share_of(read), "reading_form": share_of(formed), "tools": share_of(called)}
        console.print({name: str(share) for name, share in shares.items()})
        result[f"{value:g}"] = {name: share.as_json() for name, share in shares.items()}
    finish("atlas_skills", {"weights": result})


if __name__ == "__main__":
    app()
