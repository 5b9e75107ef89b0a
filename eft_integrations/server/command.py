"""`eft serve`: the command, for our own engine or vLLM's. The `eft` application finds it by its entry point, so that the
engine knows nothing of the server.
"""

from __future__ import annotations

import enum
import json
import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from eft_integrations.server.settings import ServerSettings


class EngineKind(enum.StrEnum):
    """Who runs the models."""

    eft = "eft"
    vllm = "vllm"


class LogFormatName(enum.StrEnum):
    """How lines of the log are written."""

    text = "text"
    json = "json"


class LogLevelName(enum.StrEnum):
    """What is logged at least."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


NAME = "eft"
"""What requests call the composition that flags make."""
ADDRESS, MODELS, ENGINE = "Where it listens", "What it serves", "What runs the models"
CLIENTS, SEEN = "Who may ask, and how long it may take", "What operators see"
"""Groups of options in the help."""


def serve(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            envvar="EFT_SERVE_CONFIG",
            help="TOML, JSON or YAML file; see docs/server.md.",
            show_default="none",
        ),
    ] = None,
    engine_kind: Annotated[
        EngineKind,
        typer.Option(
            "--engine",
            help="eft: our own, in this process; vllm: vLLM's server (docs/vllm.md).",
            rich_help_panel=ENGINE,
        ),
    ] = EngineKind.eft,
    vllm_args: Annotated[
        str | None,
        typer.Option(
            help="With --engine vllm: further arguments of vLLM.",
            metavar="'--tensor-parallel-size 4'",
            show_default="none",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    print_only: Annotated[
        bool,
        typer.Option("--print", help="With --engine vllm: print the command, do not run it.", rich_help_panel=ENGINE),
    ] = False,
    host: Annotated[
        str | None,
        typer.Option(
            help="Address to listen on; wider than loopback needs a key.",
            show_default="127.0.0.1",
            rich_help_panel=ADDRESS,
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 0 takes a free one.", show_default="8000", rich_help_panel=ADDRESS)
    ] = None,
    uds: Annotated[
        Path | None,
        typer.Option(
            help="Unix socket to listen on, in place of host and port.", show_default="none", rich_help_panel=ADDRESS
        ),
    ] = None,
    uds_mode: Annotated[
        str | None,
        typer.Option(help="Who may open the unix socket, as for chmod.", show_default="600", rich_help_panel=ADDRESS),
    ] = None,
    ssl_certfile: Annotated[
        Path | None,
        typer.Option(
            help="Certificate and its chain, in PEM; the server speaks TLS.",
            show_default="none",
            rich_help_panel=ADDRESS,
        ),
    ] = None,
    ssl_keyfile: Annotated[
        Path | None,
        typer.Option(
            help="Its key, in PEM; the password of one that is encrypted: EFT_SERVE_SSL_KEYFILE_PASSWORD.",
            show_default="in the certificate's file",
            rich_help_panel=ADDRESS,
        ),
    ] = None,
    ssl_ca_certs: Annotated[
        Path | None,
        typer.Option(
            help="Who signs the certificates that clients must show, in PEM.",
            show_default="none",
            rich_help_panel=ADDRESS,
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A name that the server answers to, besides those of this machine; repeat for several. Without a key "
            "only those are answered, with one all, unless this names some.",
            metavar="NAME",
            show_default="none",
            rich_help_panel=CLIENTS,
        ),
    ] = None,
    max_connections: Annotated[
        int | None,
        typer.Option(
            help="Most connections; then a new one takes the place of the one that waited longest.",
            show_default="1024",
            rich_help_panel=CLIENTS,
        ),
    ] = None,
    head_timeout_s: Annotated[
        float | None,
        typer.Option(help="Longest time for the head of a request.", show_default="10", rich_help_panel=CLIENTS),
    ] = None,
    receive_timeout_s: Annotated[
        float | None,
        typer.Option(help="Longest time for the body of a request.", show_default="60", rich_help_panel=CLIENTS),
    ] = None,
    send_timeout_s: Annotated[
        float | None,
        typer.Option(
            help="A client that reads nothing of its answer for so long is let go.",
            show_default="30",
            rich_help_panel=CLIENTS,
        ),
    ] = None,
    keep_alive_timeout_s: Annotated[
        int | None,
        typer.Option(
            help="How long a connection without a request is kept open.", show_default="20", rich_help_panel=CLIENTS
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="What requests call the composition that the next options make.",
            rich_help_panel=MODELS,
            show_default=NAME,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="The large model: hub id, folder or .gguf file.", show_default="none", rich_help_panel=MODELS
        ),
    ] = None,
    tuned: Annotated[
        str | None,
        typer.Option(
            help="The small model after fine-tuning, or a LoRA adapter.", show_default="none", rich_help_panel=MODELS
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="The small model before fine-tuning.", show_default="none", rich_help_panel=MODELS),
    ] = None,
    pair: Annotated[
        list[str] | None,
        typer.Option(
            help="A named pair; repeat for several.",
            metavar="NAME=TUNED,REFERENCE",
            show_default="none",
            rich_help_panel=MODELS,
        ),
    ] = None,
    term: Annotated[
        list[str] | None,
        typer.Option(
            help="A model without a reference; repeat for several.",
            metavar="NAME=MODEL",
            show_default="none",
            rich_help_panel=MODELS,
        ),
    ] = None,
    prompt_pair: Annotated[
        list[str] | None,
        typer.Option(
            help="""A prompt as a pair, for all requests, as brief='{"positive": {"system": "Be brief."}}'; repeat for several.""",
            metavar="NAME=JSON",
            show_default="none",
            rich_help_panel=MODELS,
        ),
    ] = None,
    min_plausibility: Annotated[
        float | None,
        typer.Option(
            help="Keep what the base gives at least this share of its best token.",
            show_default="0: all",
            rich_help_panel=MODELS,
        ),
    ] = None,
    tuned_plausibility: Annotated[
        float | None,
        typer.Option(
            help="Beyond weight 1 lift only what a pair's tuned model gives at least this share of its best token.",
            show_default="0: all",
            rich_help_panel=MODELS,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="A ready trio.", show_default="smollm2-json where no model is named", rich_help_panel=MODELS),
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            "--weight",
            "-w",
            help="""Default weight of a pair; a schedule stands in JSON: NAME='{"kind": "gate", "by": "kl", "above": 0.1}'.""",
            metavar="NAME=WEIGHT",
            show_default="the pair's",
            rich_help_panel=MODELS,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="auto, float32, bfloat16 or float16.", show_default="auto", rich_help_panel=ENGINE),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...", show_default="auto", rich_help_panel=ENGINE)
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            help="auto, torch or llama.cpp; auto: llama.cpp for .gguf files where it is installed.",
            show_default="auto",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    tuned_only_tokens: Annotated[
        str | None,
        typer.Option(
            help="Tokens that only the tuned models have: refuse the trio if one ends a turn, or keep their probability.",
            metavar="refuse|keep",
            show_default="refuse",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(help="Most requests that step together.", show_default="16", rich_help_panel=ENGINE)
    ] = None,
    max_queued_requests: Annotated[
        int | None,
        typer.Option(help="Most requests that wait; more get 429.", show_default="256", rich_help_panel=ENGINE),
    ] = None,
    request_timeout_s: Annotated[
        float | None, typer.Option(help="Longest time for one answer.", show_default="600", rich_help_panel=CLIENTS)
    ] = None,
    drain_timeout_s: Annotated[
        int | None,
        typer.Option(help="Longest wait for answers after SIGTERM.", show_default="30", rich_help_panel=CLIENTS),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="File with API keys, one a line, perhaps behind a name; read anew when it changes.",
            show_default="none",
            rich_help_panel=CLIENTS,
        ),
    ] = None,
    force_usage: Annotated[
        bool | None,
        typer.Option(
            "--force-usage/--no-force-usage",
            help="Send usage in every stream.",
            show_default="no",
            rich_help_panel=CLIENTS,
        ),
    ] = None,
    log_format: Annotated[
        LogFormatName | None,
        typer.Option(help="Lines of text, or one JSON object a line.", show_default="text", rich_help_panel=SEEN),
    ] = None,
    log_level: Annotated[
        LogLevelName | None, typer.Option(help="What is logged at least.", show_default="info", rich_help_panel=SEEN)
    ] = None,
    access_log: Annotated[
        bool | None,
        typer.Option(
            "--access-log/--no-access-log",
            help="A line for every request.",
            show_default="access-log",
            rich_help_panel=SEEN,
        ),
    ] = None,
    page: Annotated[
        bool | None,
        typer.Option(
            "--page/--no-page",
            help="A page at / to try the server with a browser.",
            show_default="page",
            rich_help_panel=CLIENTS,
        ),
    ] = None,
    otel: Annotated[
        bool | None,
        typer.Option(
            "--otel/--no-otel",
            help="OpenTelemetry's traces and metrics, to where OTEL_EXPORTER_OTLP_ENDPOINT says.",
            show_default="otel where that is set",
            rich_help_panel=SEEN,
        ),
    ] = None,
) -> None:
    """Serve compositions behind OpenAI's API. Flags go before environment (EFT_SERVE_...), environment before the file."""
    try:
        from eft_integrations.server.app import app_of
        from eft_integrations.server.callers.reloading import Reloader, not_yet, stamps
        from eft_integrations.server.compositions import Compositions
        from eft_integrations.server.entrance.listening import listening, tls_context
        from eft_integrations.server.entrance.run import run
        from eft_integrations.server.loading import load_compositions
        from eft_integrations.server.seen.logs import configure, telling_failures
        from eft_integrations.server.service import Service
        from eft_integrations.server.settings import load_settings
    except ModuleNotFoundError as error:
        typer.echo(f"error: the server needs {error.name}: pip install 'eft-engine[server]'", err=True)
        raise typer.Exit(2) from None
    engine = {
        "dtype": dtype, "device": device, "runtime": runtime, "max_num_seqs": max_num_seqs,
        "max_queued_requests": max_queued_requests, "tuned_only_tokens": tuned_only_tokens,
    }  # fmt: skip
    connections = {
        "max_connections": max_connections, "head_timeout_s": head_timeout_s, "receive_timeout_s": receive_timeout_s,
        "send_timeout_s": send_timeout_s, "keep_alive_timeout_s": keep_alive_timeout_s,
    }  # fmt: skip
    named = bool(pair or term) or any(one is not None for one in (base, tuned, reference, preset))
    shares = {"min_plausibility": min_plausibility, "tuned_plausibility": tuned_plausibility}
    shown = {option.replace("_", "-"): share for option, share in shares.items()}
    belonging = {"name": name, "weight": weight, "prompt-pair": prompt_pair, **shown}
    _check_belonging(named=named, belonging=belonging, kind=engine_kind, vllm_args=vllm_args, print_only=print_only)
    flags: dict[str, Any] = {
        "host": host,
        "port": port,
        "uds": uds,
        "uds_mode": uds_mode,
        "ssl_certfile": ssl_certfile,
        "ssl_keyfile": ssl_keyfile,
        "ssl_ca_certs": ssl_ca_certs,
        "allowed_hosts": allowed_host,
        "connections": {key: value for key, value in connections.items() if value is not None} or None,
        "compositions": [
            composition(
                name or NAME,
                base,
                tuned,
                reference,
                pair,
                preset,
                weight,
                terms=term,
                prompt_pairs=prompt_pair,
                **shares,
            )
        ]
        if named
        else None,
        "engine": {key: value for key, value in engine.items() if value is not None} or None,
        "request_timeout_s": request_timeout_s,
        "drain_timeout_s": drain_timeout_s,
        "api_key_file": api_key_file,
        "force_usage": force_usage,
        "log_format": log_format,
        "log_level": log_level,
        "access_log": access_log,
        "page": page,
        "otel": otel,
        "vllm_args": None if vllm_args is None else _split(vllm_args),
    }
    settings = load_settings(config, **flags)
    if engine_kind is EngineKind.vllm:
        _serve_with_vllm(settings, run=not print_only)
        return
    files = [file for file in (config, settings.api_key_file) if file is not None]
    seen = stamps(files)  # loading takes long: what changes meanwhile is read anew as soon as it is over
    not_yet()
    configure(settings.log_format, settings.log_level)
    with telling_failures(settings.log_format):
        upstream = settings.upstream_api_key
        tls = tls_context(settings)
        with listening(settings) as held:  # what is wrong with the address is told before models are loaded
            compositions = load_compositions(
                settings.served,
                settings.engine,
                upstream_api_key=None if upstream is None else upstream.get_secret_value(),
            )
            try:
                service = Service.of(compositions, settings)
                reloader = Reloader(service, lambda: load_settings(config, **flags), files, seen=seen)
                run(app_of(service, reloader=reloader), settings, held, tls, on_exit=service.health.drain)
            finally:
                Compositions(compositions).close()


def _check_belonging(
    *,
    named: bool,
    belonging: Mapping[str, object],
    kind: EngineKind,
    vllm_args: str | None,
    print_only: bool,
) -> None:
    """Check that no flag stands alone which says something of another one.

    Raises:
        InvalidOptionError: one would do nothing.
    """
    from eft_engine import errors

    flag = next((flag for flag, given in belonging.items() if given not in (None, [])), None)
    if not named and flag is not None:
        raise errors.InvalidOptionError(
            f"--{flag} speaks of the composition that --base, --pair or --preset makes, and none of them is given",
            option=flag,
        )
    if kind is not EngineKind.vllm and (vllm_args is not None or print_only):
        flag = "print" if print_only else "vllm-args"
        raise errors.InvalidOptionError(f"--{flag} belongs to --engine vllm, which is not given", option=flag)


def _split(arguments: str) -> list[str]:
    """Arguments as a shell would split them.

    Raises:
        InvalidOptionError: a quotation has no end.
    """
    from eft_engine import errors

    try:
        return shlex.split(arguments)
    except ValueError as error:
        raise errors.InvalidOptionError(f"--vllm-args: {error}", option="vllm_args", value=arguments) from None


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
    *,
    terms: list[str] | None = None,
    prompt_pairs: list[str] | None = None,
    min_plausibility: float | None = None,
    tuned_plausibility: float | None = None,
) -> dict[str, Any]:
    """The composition that flags describe, in the form of the TOML file.

    Raises:
        InvalidOptionError: a flag cannot be read, or the flags are incomplete.
    """
    from eft_engine.config import Term, parse_pairs

    named = {
        pair: {"model": models.model.source}
        if isinstance(models, Term)
        else {"tuned": models.tuned.source, "reference": models.reference.source}
        for pair, models in parse_pairs(pairs or (), tuned=tuned, reference=reference, terms=terms or ()).items()
    }
    described: dict[str, Any] = {"name": name, "base": base, "pairs": named, "preset": preset}
    described["weights"] = _by_name(weights, "weight", "NAME=NUMBER, or a schedule in JSON behind the name", _weight)
    if prompt_pairs:
        described["prompt_pairs"] = _by_name(prompt_pairs, "prompt-pair", "NAME=JSON", json.loads)
    shares = {"min_plausibility": min_plausibility, "tuned_plausibility": tuned_plausibility}
    if said := {option: share for option, share in shares.items() if share is not None}:
        described["composition"] = said
    return described


def _weight(text: str) -> Any:
    return json.loads(text) if text.lstrip().startswith("{") else float(text)


def _by_name(texts: list[str] | None, flag: str, form: str, read: Callable[[str], Any]) -> dict[str, Any]:
    """What a repeated flag says, by name.

    Raises:
        InvalidOptionError: it is not in this form, or one name comes twice.
    """
    from eft_engine import errors

    found: dict[str, Any] = {}
    for text in texts or ():
        name, equals, told = (part.strip() for part in text.partition("="))
        try:
            value = read(told) if name and equals and not name.startswith("{") else None
        except ValueError:
            value = None
        if value is None:
            raise errors.InvalidOptionError(f"--{flag} must be {form}, got {text!r}", option=flag, value=text)
        if name in found:
            raise errors.InvalidOptionError(f"--{flag}: {name!r} is given twice", option=flag, value=text)
        found[name] = value
    return found
