"""The `eft` application: its commands in the order in which people meet them."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Annotated

import typer

from eft_engine.cli.bench import bench
from eft_engine.cli.chat import chat
from eft_engine.cli.demo import demo
from eft_engine.cli.evaluate import evaluate
from eft_engine.cli.generate import generate
from eft_engine.cli.inspect import inspect
from eft_engine.cli.score import score

app = typer.Typer(
    name="eft",
    help="Up-scale small tuned language models: a large base decoded with the behaviour of small tuned pairs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (demo, generate, chat, score, inspect, bench):
    app.command()(command)
for entry_point in sorted(entry_points(group="eft.commands"), key=lambda found: found.name):
    loaded = entry_point.load()  # commands of packages above the engine, which it need not know
    app.command(entry_point.name, context_settings=getattr(loaded, "context_settings", None))(loaded)
app.command("eval")(evaluate)


def _print_version(wanted: bool) -> None:
    if wanted:
        from eft_engine import __version__

        typer.echo(f"eft {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass
