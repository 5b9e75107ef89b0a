"""`eft serve`: the command, for our own engine or vLLM's. The `eft` application finds it by its entry point, so that the
engine knows nothing of the server.
"""

from __future__ import annotations

import enum
import logging
import os
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from eft_integrations.server.settings import ServerSettings


class EngineKind(enum.StrEnum):
    """Who runs the models."""

    eft = "eft"
    vllm = "vllm"


def serve(
    config: Annotated[
        Path | None,
        typer.Option("--config", envvar="EFT_SERVE_CONFIG", help="TOML, JSON or YAML file; see docs/server.md."),
    ] = None,
    engine_kind: Annotated[
        EngineKind, typer.Option("--engine", help="eft: our own, in this process; vllm: vLLM's server (docs/vllm.md).")
    ] = EngineKind.eft,
    vllm_args: Annotated[
        str | None,
        typer.Option(help="With --engine vllm: further arguments of vLLM.", metavar="'--tensor-parallel-size 4'"),
    ] = None,
    print_only: Annotated[
        bool, typer.Option("--print", help="With --engine vllm: print the command, do not run it.")
    ] = False,
    host: Annotated[str | None, typer.Option(help="Address to listen on; wider than loopback needs a key.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")] = None,
    name: Annotated[str, typer.Option(help="What requests call the composition that the next options make.")] = "eft",
    base: Annotated[str | None, typer.Option(help="The large model: hub id, folder or .gguf file.")] = None,
    tuned: Annotated[str | None, typer.Option(help="The small model after fine-tuning, or a LoRA adapter.")] = None,
    reference: Annotated[str | None, typer.Option(help="The small model before fine-tuning.")] = None,
    pair: Annotated[
        list[str] | None, typer.Option(help="A named pair; repeat for several.", metavar="NAME=TUNED,REFERENCE")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="A ready trio.")] = None,
    weight: Annotated[
        list[str] | None, typer.Option("--weight", "-w", help="Default weight of a pair.", metavar="NAME=NUMBER")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = None,
    runtime: Annotated[
        str | None,
        typer.Option(help="auto, torch or llama.cpp; auto: llama.cpp for .gguf files where it is installed."),
    ] = None,
    tuned_only_tokens: Annotated[
        str | None,
        typer.Option(
            help="Tokens that only the tuned models have: refuse the trio if one ends a turn, or keep their probability.",
            metavar="refuse|keep",
        ),
    ] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Most requests that step together.")] = None,
    max_queued_requests: Annotated[int | None, typer.Option(help="Most requests that wait; more get 429.")] = None,
    request_timeout_s: Annotated[float | None, typer.Option(help="Longest time for one answer.")] = None,
    drain_timeout_s: Annotated[int | None, typer.Option(help="Longest wait for answers after SIGTERM.")] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="File with API keys, one a line, perhaps behind a name; read anew when it changes."),
    ] = None,
    force_usage: Annotated[
        bool | None, typer.Option("--force-usage/--no-force-usage", help="Send usage in every stream.")
    ] = None,
) -> None:
    """Serve compositions behind OpenAI's API. Flags go before environment (EFT_SERVE_...), environment before the file."""
    try:
        import uvicorn

        from eft_integrations.server.app import app_of
        from eft_integrations.server.compositions import Compositions
        from eft_integrations.server.loading import load_compositions
        from eft_integrations.server.reloading import Reloader
        from eft_integrations.server.service import Service
        from eft_integrations.server.settings import load_settings
    except ModuleNotFoundError as error:
        typer.echo(f"error: the server needs {error.name}: pip install 'eft-engine[server]'", err=True)
        raise typer.Exit(2) from None
    engine = {
        "dtype": dtype, "device": device, "runtime": runtime, "max_num_seqs": max_num_seqs,
        "max_queued_requests": max_queued_requests, "tuned_only_tokens": tuned_only_tokens,
    }  # fmt: skip
    named = any((base, tuned, reference, pair, preset))
    flags: dict[str, Any] = {
        "host": host,
        "port": port,
        "compositions": [composition(name, base, tuned, reference, pair, preset, weight)] if named else None,
        "engine": {key: value for key, value in engine.items() if value is not None} or None,
        "request_timeout_s": request_timeout_s,
        "drain_timeout_s": drain_timeout_s,
        "api_key_file": api_key_file,
        "force_usage": force_usage,
        "vllm_args": None if vllm_args is None else shlex.split(vllm_args),
    }
    settings = load_settings(config, **flags)
    if engine_kind is EngineKind.vllm:
        _serve_with_vllm(settings, run=not print_only)
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    upstream = settings.upstream_api_key
    compositions = load_compositions(
        settings.served,
        settings.engine,
        upstream_api_key=None if upstream is None else upstream.get_secret_value(),
    )
    service = Service.of(compositions, settings)
    files = [file for file in (config, settings.api_key_file) if file is not None]
    reloader = Reloader(service, lambda: load_settings(config, **flags), files)
    try:
        uvicorn.run(
            app_of(service, reloader=reloader),
            host=settings.host,
            port=settings.port,
            access_log=settings.access_log,
            timeout_graceful_shutdown=settings.drain_timeout_s,
        )
    finally:
        Compositions(compositions).close()


def _serve_with_vllm(settings: ServerSettings, *, run: bool) -> None:
    """Print vLLM's command and become it.

    Raises:
        InvalidOptionError: something that vLLM cannot do, or it is not installed here.
    """
    from eft_engine import errors
    from eft_integrations.server.vllm_engine import vllm_command
    from eft_integrations.vllm.launch import INSTALL

    command = vllm_command(settings)
    typer.echo(str(command))
    if not run:
        return
    program = shutil.which(command.arguments[0])
    if program is None:
        raise errors.InvalidOptionError(
            f"vLLM is not installed here: {INSTALL}, or run the printed command where it is", option="engine"
        )
    os.execve(program, list(command.arguments), {**os.environ, **command.environment})


def composition(
    name: str,
    base: str | None,
    tuned: str | None,
    reference: str | None,
    pairs: list[str] | None,
    preset: str | None,
    weights: list[str] | None,
) -> dict[str, Any]:
    """The composition that flags describe, in the form of the TOML file.

    Raises:
        InvalidOptionError: a flag cannot be read, or the flags are incomplete.
    """
    from eft_engine import errors
    from eft_engine.config import parse_pairs
    from eft_integrations.weights import parse_weights

    named = {
        pair: {"tuned": models.tuned.source, "reference": models.reference.source}
        for pair, models in parse_pairs(pairs or (), tuned=tuned, reference=reference).items()
    }
    try:
        chosen = parse_weights(",".join(weights)) if weights else {}
    except ValueError as error:
        raise errors.InvalidOptionError(f"--weight: {error}", option="weight", value=weights) from None
    if not isinstance(chosen, dict):
        raise errors.InvalidOptionError(f"--weight must be NAME=NUMBER, got {weights}", option="weight", value=weights)
    return {"name": name, "base": base, "pairs": named, "preset": preset, "weights": chosen}
