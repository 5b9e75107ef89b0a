"""`eft inspect`: what would be loaded, without loading it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from eft_engine.cli import trio_options as options
from eft_engine.outputs import MemberReport, TrioReport, TurnEnd

if TYPE_CHECKING:
    from eft_engine.models.planning import TrioPlan


NUM_SHOWN = 8
"""Tokens that are named; of more than these it is said how many there are."""


@options.takes_trio
def inspect(
    choice: options.TrioChoice,
    as_json: options.Json = False,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="How much of it fits on GPUs under vLLM (docs/vllm.md): also without GPUs here."),
    ] = False,
    gpu_gib: Annotated[float, typer.Option(help="With --plan: memory of one GPU, GiB.")] = 80.0,
    context: Annotated[int, typer.Option(help="With --plan: tokens of a request, prompt and answer.")] = 8192,
) -> None:
    """Show parameters, bytes, kinds of layers, shared weights and the vocabulary proof of a trio, without loading weights.

    The exit status is 1 where a member cannot be run.
    """
    from eft_engine.models.planning import plan_trio

    config = choice.config.model_copy(update={"runtime": "torch"}) if plan else choice.config
    planned = plan_trio(choice.base, choice.pairs, config)
    if plan:
        _show_capacity(planned, gpu_bytes=int(gpu_gib * 2**30), context_len=context, as_json=as_json)
        return
    report = planned.report()
    if as_json:
        options.print_json(report)
    else:
        _show(report)
    if any(member.unsupported for member in report.members):
        raise typer.Exit(code=1)


def _show(report: TrioReport) -> None:
    out = options.console()
    out.print(_members(report))
    for member in report.members:
        if member.network == member.name:
            out.print(f"{member.name}: {member.source} ({member.architecture})", soft_wrap=True)
            for line in (*_layers(member), *member.notes):
                out.print(f"  {line}", soft_wrap=True, markup=False)
        elif member.adapter_notes:
            out.print(f"{member.name}: {member.adapter}", soft_wrap=True)
            for line in member.adapter_notes:
                out.print(f"  {line}", soft_wrap=True, markup=False)
    vocabulary = report.vocabulary
    out.print(f"shared vocabulary: {vocabulary.shared_vocab_size} ids, {len(vocabulary.masked_ids)} masked")
    if vocabulary.kept:
        tokens = ", ".join(map(repr, list(vocabulary.kept.values())[:NUM_SHOWN]))
        more = f" and {len(vocabulary.kept) - NUM_SHOWN} more" if len(vocabulary.kept) > NUM_SHOWN else ""
        out.print(f"  kept, with the tuned models' own probability: {tokens}{more}", soft_wrap=True, markup=False)
    for difference in vocabulary.differences:
        out.print(f"  masked: {difference}", soft_wrap=True, markup=False)
    out.print("ends of a turn:" if report.ends else "ends of a turn: none")
    for end in report.ends:
        out.print(f"  {_end(end)}", soft_wrap=True, markup=False)
    for warning in report.warnings:
        out.print(f"warning: {warning}", soft_wrap=True, markup=False)
    mapped = report.mapped_bytes
    out.print(f"weights in memory: {_mib(report.total_bytes - mapped)} (shared weights counted once)")
    if mapped:
        out.print(f"mapped from files, in memory as far as the system keeps them there: {_mib(mapped)}")


def _end(end: TurnEnd) -> str:
    """A token and who names it, members that name it in the same places together."""
    together: dict[tuple[str, ...], list[str]] = {}
    for member, places in end.named_by.items():
        together.setdefault(places, []).append(member)
    by = "; ".join(f"{', '.join(places)} of {', '.join(members)}" for places, members in together.items())
    return f"{end.token!r} ({end.token_id}), named by {by}" + (f" - not used: {end.unused}" if end.unused else "")


def _layers(member: MemberReport) -> list[str]:
    """Whether a network can be run, what its layers are, and what they keep of a text."""
    lines = [f"not supported: {member.unsupported}"] if member.unsupported else []
    if member.layers:
        lines.append(", ".join(member.layers))
    kept = (
        [f"{member.kv_bytes_per_token / 2**10:,.1f} KiB per token in keys and values"]
        if member.kv_bytes_per_token
        else []
    )
    if member.state_bytes:
        kept.append(f"{_mib(member.state_bytes)} per request in states")
    return [*lines, *([", ".join(kept)] if kept else [])]


def _members(report: TrioReport) -> Table:
    table = Table()
    for heading in ("member", "network", "runtime"):
        table.add_column(heading)
    for heading in ("parameters", "weights", "adapter", "type"):
        table.add_column(heading, justify="right")
    for member in report.members:
        own = member.network == member.name
        table.add_row(
            member.name,
            f"{member.architecture}\n{member.context_len} context, {member.logits_width} logits"
            if own
            else f"that of {member.network}",
            member.runtime,
            f"{member.num_parameters / 1e6:,.1f} M",
            (_mib(member.parameter_bytes) + (" mapped" if member.is_mapped else "")) if own else "shared",
            ("merged" if member.why_merged else _mib(member.adapter_bytes)) if member.adapter else "-",
            member.dtype,
        )
    return table


def _show_capacity(plan: TrioPlan, *, gpu_bytes: int, context_len: int, as_json: bool) -> None:
    """Bytes of every member, and the requests that fit on 1, 2, 4, ... GPUs."""
    from eft_engine.models.sizing import capacity, splits, trio_sizes

    sizes = trio_sizes(plan)
    found = [
        capacity(sizes, num_gpus=number, gpu_bytes=gpu_bytes, context_len=context_len)
        for number in splits(sizes)
        if number & (number - 1) == 0
    ]
    if as_json:
        options.print_json({"members": sizes, "capacity": found})
        return
    members, groups = Table(), Table()
    for heading in ("member", "parameters", "weights", f"cache of {context_len} tokens"):
        members.add_column(heading, justify="left" if heading == "member" else "right")
    for size in sizes:
        members.add_row(
            size.name,
            f"{size.num_parameters / 1e6:,.1f} M",
            _mib(size.weight_bytes),
            _mib(size.cache_bytes(context_len)),
        )
    for heading in ("GPUs", "weights per GPU", "caches per GPU", f"requests of {context_len} tokens at a time"):
        groups.add_column(heading, justify="right")
    for group in found:
        fits = f"{group.num_requests:,}" if group.cache_bytes else "the weights do not fit"
        groups.add_row(str(group.num_gpus), _mib(group.weight_bytes), _mib(group.cache_bytes), fits)
    out = options.console()
    out.print(members)
    out.print(groups)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
