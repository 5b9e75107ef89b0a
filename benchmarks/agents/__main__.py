"""Function calling by a real model: Qwen2.5-Coder-Instruct 1.5B with a pair on the 0.5B, all GGUF files.

    python -m benchmarks.agents calls --base qwen15.gguf --reference qwen05.gguf --adapter form_adapter.gguf
    python -m benchmarks.agents loops --base ... --framework langchain --framework openai-agents

    calls   one request per task with six tools bound, `auto` and `any`: calls that stand in the raw text (an independent
            judge looks) against calls that are recognised; right tools and arguments; superfluous calls
    decisions  the same requests by the base alone, at weight 1, and at weight 1 with `call_weight=0`: are calls the base's, and
            are words in the pair's form
    loops   whole conversations: LangChain's create_agent, LlamaIndex' FunctionAgent, smolagents' ToolCallingAgent and
            CodeAgent, and openai-agents over HTTP: answers that hold the fact, calls executed, superfluous calls

Everything is greedy, tools are deterministic, and all shares have Wilson's 95 % intervals. openai-agents needs an environment of
its own (`make test-clients` makes it), whose interpreter --client-python names; the server is started here.
"""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.agents import calls as asking
from benchmarks.agents import decisions as deciding
from benchmarks.agents import loops as looping
from benchmarks.agents.engine import Trio, listening
from benchmarks.agents.frameworks import FRAMEWORKS, OPENAI_AGENTS, Limits, missing_module
from benchmarks.agents.task_list import chosen
from benchmarks.agents.tasks import Call, Kind
from benchmarks.report import finish
from eft_engine.evaluation.intervals import Share

LOOP_KINDS: tuple[Kind, ...] = ("single", "parallel", "chained", "follow_up", "none")
CLIENT_PYTHON = Path(__file__).parents[2] / ".venv-clients" / "bin" / "python"
MAX_SHOWN = 600
"""Characters of a text among the failures."""

app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)
console = Console(width=160)
Base = Annotated[Path, typer.Option(envvar="EFT_AGENTS_BASE", help="The large model, a GGUF file.")]
Reference = Annotated[Path, typer.Option(envvar="EFT_AGENTS_REFERENCE", help="The small model, a GGUF file.")]
Adapter = Annotated[
    Path, typer.Option(envvar="EFT_AGENTS_ADAPTER", help="LoRA adapter on the reference: a folder, or a GGUF file.")
]
Threads = Annotated[int, typer.Option(help="Threads of the models.")]
Weight = Annotated[list[float] | None, typer.Option(help="Weight of the pair; repeat for several.", show_default="1")]
MaxTokens = Annotated[int, typer.Option(help="Most tokens of an answer.")]
Named = Annotated[list[str] | None, typer.Option("--task", help="Only the task of this name; repeat for several.")]
Failures = Annotated[int, typer.Option(help="Failures to print of each run.")]
Out = Annotated[Path | None, typer.Option(help="File for everything that was asked and answered, a JSON line each.")]


@app.callback()
def quiet() -> None:
    """Let warnings of the frameworks stay out of the tables."""
    logging.basicConfig(level=logging.ERROR)


@app.command()
def calls(
    base: Base,
    reference: Reference,
    adapter: Adapter,
    threads: Threads = 2,
    weight: Weight = None,
    choice: Annotated[
        list[str] | None, typer.Option(help="tool_choice: auto, any; repeat for several.", show_default="both")
    ] = None,
    tasks: Annotated[int, typer.Option(help="The first so many tasks, kinds mixed; 0: all.")] = 0,
    task: Named = None,
    max_tokens: MaxTokens = 128,
    failures: Failures = 5,
    out: Out = None,
) -> None:
    """One request per task. `any` leaves out the tasks that take no call."""
    with _clear_errors():
        trio = Trio(base, reference, adapter, threads)
        picked = chosen(tasks, names=task or ())
    by_run: dict[str, list[asking.Asked]] = {}
    runs = [(own, its) for own in weight or [1.0] for its in choice or ["auto", "any"]]
    with _recording(out) as record, listening(trio) as listener:
        for own, its in runs:
            given = [one for one in picked if its == "auto" or one.next_calls]
            answers = asking.ask(listener, given, weight=own, choice=its, max_tokens=max_tokens)
            name = f"weight {own:g}, {its}"
            by_run[name] = list(record(answers, len(given), name))
    for name, answered in by_run.items():
        _print_failures(name, [_failed_call(one) for one in answered if one.is_failure], failures)
    summaries = {name: asking.summary(answered) for name, answered in by_run.items()}
    asking.show(console, summaries, max_tokens=max_tokens)
    finish("agents_calls", {"base": base.name, "n_threads": threads, "max_tokens": max_tokens, **_plain(summaries)})


@app.command()
def decisions(
    base: Base,
    reference: Reference,
    adapter: Annotated[
        Path | None,
        typer.Option(
            envvar="EFT_AGENTS_ADAPTER",
            help="LoRA adapter on the reference, a folder or a GGUF file; without one the pair is a prompt of the small model.",
        ),
    ] = None,
    threads: Threads = 2,
    weight: Annotated[float, typer.Option(help="Weight of the pair.")] = 1.0,
    call_weight: Annotated[float, typer.Option(help="Weight that decides, and under which a call is written.")] = 0.0,
    pattern: Annotated[
        str | None, typer.Option(help="What words in the pair's form match as a whole; one line of JSON without it.")
    ] = None,
    tasks: Annotated[int, typer.Option(help="The first so many tasks, kinds mixed; 0: all.")] = 0,
    task: Named = None,
    max_tokens: MaxTokens = 128,
    out: Out = None,
) -> None:
    """Whose decision is a call, and whose are the words?"""
    with _clear_errors():
        trio = Trio(base, reference, adapter, threads)
        picked = chosen(tasks, names=task or ())
    by_prompt = adapter is None
    settings = [
        deciding.Setting(0.0, by_prompt=by_prompt),
        deciding.Setting(weight, by_prompt=by_prompt),
        deciding.Setting(weight, call_weight, by_prompt=by_prompt),
    ]
    answered: dict[str, list[deciding.Decided]] = {}
    with _recording(out) as record, listening(trio) as listener:
        for setting in settings:
            answers = deciding.ask(listener, picked, setting, max_tokens=max_tokens)
            answered[setting.name] = list(record(answers, len(picked), setting.name))
    alone = answered[settings[0].name]
    summaries = {name: deciding.summary(own, alone, pattern) for name, own in answered.items()}
    deciding.show(console, summaries)
    pair = "a prompt of the small model" if adapter is None else adapter.name
    finish(
        "agents_decisions",
        {"base": base.name, "pair": pair, "n_threads": threads, "max_tokens": max_tokens, **_plain(summaries)},
    )


@app.command()
def loops(
    base: Base,
    reference: Reference,
    adapter: Adapter,
    threads: Threads = 2,
    weight: Weight = None,
    framework: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(FRAMEWORKS)}; repeat for several.", show_default="all")
    ] = None,
    tasks: Annotated[int, typer.Option(help="The first so many tasks, kinds mixed; 0: all.")] = 8,
    task: Named = None,
    max_steps: Annotated[int, typer.Option(help="Most answers of the model to one question.")] = 6,
    max_tokens: MaxTokens = 256,
    client_python: Annotated[
        Path, typer.Option(envvar="EFT_AGENTS_CLIENT_PYTHON", help="Interpreter of an environment with openai-agents.")
    ] = CLIENT_PYTHON,
    api: Annotated[str, typer.Option(help="openai-agents: responses or chat_completions.")] = "responses",
    failures: Failures = 5,
    out: Out = None,
) -> None:
    """Whole conversations, until the agent answers or has made its steps."""
    names = framework or list(FRAMEWORKS)
    with _clear_errors():
        _check_frameworks(names, client_python)
        trio = Trio(base, reference, adapter, threads)
        picked = chosen(tasks, names=task or (), kinds=LOOP_KINDS)
    limits = [Limits(own, max_tokens, max_steps) for own in weight or [1.0]]
    outcomes: list[looping.Looped] = []
    with _recording(out) as record:
        if here := [name for name in names if name != OPENAI_AGENTS]:
            with listening(trio) as listener:
                for name in here:
                    for own in limits:
                        done = looping.run_here(name, {"engine": listener}, picked, own, listener=listener)
                        outcomes += record(done, len(picked), f"{name}, weight {own.weight:g}")
        if OPENAI_AGENTS in names:
            done = looping.run_openai_agents(trio, client_python, picked, limits, api=api)
            outcomes += record(done, len(picked) * len(limits), OPENAI_AGENTS)
    summaries = {}
    for name in names:
        for own in limits:
            row = [one for one in outcomes if (one.framework, one.weight) == (name, own.weight)]
            summaries[f"{name}, {own.weight:g}"] = looping.summary(row)
            failed = [_failed_loop(one) for one in row if not one.has_facts or one.verdict.superfluous or one.error]
            _print_failures(f"{name}, weight {own.weight:g}", failed, failures)
    looping.show(console, summaries, limits[0])
    finish("agents_loops", {"base": base.name, "n_threads": threads, "max_tokens": max_tokens, **_plain(summaries)})


@contextmanager
def _clear_errors() -> Iterator[None]:
    """What the user can mend, without a traceback."""
    try:
        yield
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None


def _check_frameworks(names: Iterable[str], client_python: Path) -> None:
    """Raises ValueError for an unknown name, ModuleNotFoundError where one is not installed."""
    for name in names:
        if name not in FRAMEWORKS:
            raise ValueError(f"there is no framework {name!r}; frameworks: {', '.join(FRAMEWORKS)}")
        if name != OPENAI_AGENTS:
            if module := missing_module(name):
                raise ModuleNotFoundError(f"{name} needs the module {module}; pip install -e '.[dev]' installs it")
        elif not client_python.exists():
            raise FileNotFoundError(
                f"{name}: there is no {client_python}; `make test-clients` makes that environment, or name another "
                "interpreter with --client-python, or leave this framework out with --framework"
            )
        elif subprocess.run([client_python, "-c", "import agents"], capture_output=True).returncode:
            raise ModuleNotFoundError(f"{client_python} cannot import agents; pip install openai-agents there")


Record = Callable[[Iterable[Any], int, str], Iterator[Any]]


@contextmanager
def _recording(out: Path | None) -> Iterator[Record]:
    """Passes results on as they come, with a progress bar, and to a file."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def record(results: Iterable[Any], total: int, name: str) -> Iterator[Any]:
            bar = progress.add_task(name, total=total)
            for result in results:
                if out is not None:
                    with out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(result.as_json(), ensure_ascii=False, default=str) + "\n")
                progress.advance(bar)
                yield result

        yield record


def _print_failures(name: str, failed: list[dict[str, Any]], number: int) -> None:
    for one in failed[:number]:
        console.print(f"[bold]{escape(name)}: {one.pop('task')}[/bold]")
        for heading, value in one.items():
            console.print(f"  {heading}: {escape(str(value))}", highlight=False)
    if len(failed) > number:
        console.print(f"{escape(name)}: {len(failed) - number} further failures (--failures, --out)")


def _failed_call(one: asking.Asked) -> dict[str, Any]:
    return {
        "task": f"{one.task.name} ({one.task.kind})",
        "question": one.task.last.question,
        "raw": _cut(repr(one.raw)),
        "recognised": "as written" if one.recognised == one.written.all else _cut(_shown(one.recognised)) or "nothing",
        "wanted": _shown(one.task.next_calls) or "text",
    }


def _failed_loop(one: looping.Looped) -> dict[str, Any]:
    return {
        "task": f"{one.task.name} ({one.task.kind})",
        "questions": " / ".join(turn.question for turn in one.task.turns),
        **({"raw": " | ".join(_cut(repr(text)) for text in one.texts)} if one.texts else {}),
        "executed": _cut(_shown(one.executed)) or "nothing",
        "wanted": _shown(one.task.all_calls) or "nothing",
        "answer": f"{one.answer!r}, which must have {one.task.last.facts}",
        **({"error": _cut(one.error)} if one.error else {}),
        **({"ended by": "the limit of steps"} if one.at_limit else {}),
    }


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text)} characters; --out has all)"


def _shown(made: Iterable[Call]) -> str:
    return "; ".join(f"{call.name}({call.arguments})" for call in made)


def _plain(value: Any) -> Any:
    """For JSON."""
    match value:
        case Share():
            return value.as_json()
        case dict():
            return {key: _plain(inner) for key, inner in value.items()}
        case float():
            return round(value, 3)
    return value


if __name__ == "__main__":
    app()
