"""What `eft tune` says, in words: what it read, what came of it, how the trio is asked."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

from rich.console import Console

import eft_engine
from eft_tuning.preparing import Data
from eft_tuning.stages import Reporter
from eft_tuning.training import Outcome


def teller(console: Console) -> Callable[[str], None]:
    """A function that prints one line, as it is."""
    return Reporter(console).say


def data_in_words(data: Data) -> str:
    """How much there is."""
    counts = data.counts()
    rows = "preferences" if data.is_preferences else "dialogues"
    return (
        f"{counts['rows']} {rows} to train on ({counts['tokens']} tokens, {counts['answer_tokens']} of them answers; the "
        f"longest row has {counts['longest_row']}), {counts['held_out_rows']} held out"
    )


def outcome_in_words(outcome: Outcome) -> str:
    """How the training went."""
    early = ", stopped early" if outcome.steps < outcome.planned_steps else ""
    kept = ""
    if outcome.held_out_loss is not None:
        kept = f"; kept is step {outcome.best_step}, held-out loss {outcome.held_out_loss:.3f}"
    return f"{outcome.steps} of {outcome.planned_steps} steps in {outcome.seconds:.0f} s{early}{kept}"


def how_to_ask(adapter: str, reference: str, base: str | None) -> list[str]:
    """The trio with this adapter, on the command line and in Python."""
    large = base or "ORGANISATION/LARGE"
    return [
        f"the adapter is {adapter}; ask a large model with it:",
        f'  eft generate "..." --base {large} --tuned {adapter} --reference {reference}',
        f'  Engine.load("{large}", pairs={{"tuned": TunedPair(tuned="{adapter}", reference="{reference}")}})',
    ]


def versions() -> dict[str, str]:
    """Of what an adapter depends on."""
    names = ("torch", "transformers", "peft", "trl", "datasets")
    return {"eft-engine": eft_engine.__version__, **{name: importlib.metadata.version(name) for name in names}}
