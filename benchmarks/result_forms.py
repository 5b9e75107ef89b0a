"""How results of tools have to come back to a model that writes calls as bare JSON, whatever its template shows.

    python -m benchmarks.result_forms --base qwen15.gguf --tasks 10

Questions of `benchmarks.agents` with one call: the call was made, its result is there, and the model should answer in words. The
base alone is asked, greedy, for each form of call and result:

template        both as the model's own chat template renders them
bare + tool     the call as bare JSON, the result as a turn of the role tool
bare + user     the call as bare JSON, the result as a turn of the user
bare + words    the call as bare JSON, the result in words, as a turn of the user
template + words   the call as the template renders it, the result in words
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from langchain_core.utils.function_calling import convert_to_openai_tool
from rich.console import Console
from rich.table import Table

from benchmarks.agents.task_list import chosen
from benchmarks.agents.tasks import Call
from benchmarks.agents.tools import calculate, convert_currency, create_event, find_products, get_weather, look_up_order
from benchmarks.report import finish
from eft_engine import Engine, PromptOptions, SamplingParams

TOOLS = (get_weather, convert_currency, look_up_order, find_products, calculate, create_event)
Messages = list[dict[str, Any]]


def forms(question: str, call: Call, result: str) -> Iterator[tuple[str, Messages]]:
    """Every form, by name."""
    function = {"name": call.name, "arguments": call.arguments}
    asked = {"role": "user", "content": question}
    made = {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": function}]}
    bare = {"role": "assistant", "content": json.dumps(function)}
    words = {"role": "user", "content": f"The function {call.name} returned:\n{result}"}
    yield "template", [asked, made, {"role": "tool", "content": result, "tool_call_id": "1", "name": call.name}]
    yield "bare + tool", [asked, bare, {"role": "tool", "content": result}]
    yield "bare + user", [asked, bare, {"role": "user", "content": result}]
    yield "bare + words", [asked, bare, words]
    yield "template + words", [asked, made, words]


def main(
    base: Annotated[Path, typer.Option(envvar="EFT_AGENTS_BASE", help="The large model, a GGUF file.")],
    tasks: Annotated[int, typer.Option(min=1, help="The first so many questions.")] = 10,
    max_tokens: Annotated[int, typer.Option(min=16, help="Most tokens of an answer.")] = 48,
) -> None:
    """Run and print; the last line is JSON."""
    questions = chosen(tasks, kinds=("single",))
    variables = {"tools": [convert_to_openai_tool(tool) for tool in TOOLS]}
    options = PromptOptions(template_variables=variables, control_tokens="parse")
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    again: dict[str, int] = {}
    with Engine.load(str(base)) as engine:
        for task in questions:
            (call,) = task.last.steps[0]
            for name, messages in forms(task.last.question, call, call.result()):
                text = engine.generate(messages, sampling=sampling, prompt_options=options).text
                again[name] = again.get(name, 0) + (f'"{call.name}"' in text)
    table = Table("form of call and result", "called again", title=f"{len(questions)} questions whose result is there")
    for name, number in again.items():
        table.add_row(name, f"{number} of {len(questions)}")
    Console(stderr=True).print(table)
    finish("result_forms", {"base": base.name, "questions": len(questions), "called_again": again})


if __name__ == "__main__":
    typer.run(main)
