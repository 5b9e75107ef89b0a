"""`eft inspect`: what would be loaded, without loading it."""

from __future__ import annotations

from rich.table import Table

from eft_engine.cli import trio_options as options
from eft_engine.outputs import TrioReport


@options.takes_trio
def inspect(
    choice: options.TrioChoice,
    as_json: options.Json = False,
) -> None:
    """Show parameters, bytes, shared weights and the vocabulary proof of a trio, without loading weights."""
    from eft_engine.models.planning import plan_trio

    report = plan_trio(choice.base, choice.pairs, choice.config).report()
    if as_json:
        options.print_json(report)
        return
    out = options.console()
    out.print(_members(report))
    for member in report.members:
        if member.network == member.name:
            out.print(f"{member.name}: {member.source}", soft_wrap=True)
    vocabulary = report.vocabulary
    out.print(f"shared vocabulary: {vocabulary.shared_vocab_size} ids, {len(vocabulary.masked_ids)} masked")
    for difference in vocabulary.differences:
        out.print(f"  masked: {difference}")
    out.print(f"weights in memory: {_mib(report.total_bytes)} (shared weights counted once)")


def _members(report: TrioReport) -> Table:
    table = Table()
    for heading in ("member", "network"):
        table.add_column(heading)
    for heading in ("parameters", "weights", "adapter", "dtype"):
        table.add_column(heading, justify="right")
    for member in report.members:
        own = member.network == member.name
        table.add_row(
            member.name,
            f"{member.architecture}\n{member.context_len} context, {member.logits_width} logits"
            if own
            else f"that of {member.network}",
            f"{member.num_parameters / 1e6:,.1f} M",
            _mib(member.parameter_bytes) if own else "shared",
            _mib(member.adapter_bytes) if member.adapter else "-",
            member.dtype,
        )
    return table


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
