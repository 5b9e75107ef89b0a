"""Typed errors for adapters that do not fit a network, or that no network can hold."""

from __future__ import annotations

from collections.abc import Sequence

from eft_engine.errors import CorruptWeightsError, UnsupportedAdapterError
from eft_engine.models.adapter_folder import AdapterFolder


def does_not_fit(
    adapter: AdapterFolder,
    member: str,
    network: str,
    reasons: Sequence[str],
    *,
    names: Sequence[str] = (),
) -> CorruptWeightsError:
    """The error for an adapter whose file, configuration and network are not for each other.

    Args:
        adapter: what it is.
        member: whose it is.
        network: the class of the network.
        reasons: what does not fit.
        names: of the network's layers, where the reasons tell none.
    """
    here = (
        f"; layers here are called {', '.join(names[1:4])}, and keys of the file {', '.join(list(adapter.shapes)[:2])}"
    )
    trained = f" (its configuration names {adapter.trained_on})" if adapter.trained_on else ""
    return CorruptWeightsError(
        f"{member}: the adapter in {adapter.path} does not fit {network}: {'; '.join(reasons)}"
        f"{here if names else ''}. Nothing of it was used; give it to the model that it was trained on{trained}",
        member=member,
        source=str(adapter.path),
    )


def unsupported(
    adapter: AdapterFolder, member: str, reasons: Sequence[str], advice: str = ""
) -> UnsupportedAdapterError:
    """The error for an adapter that cannot be held, whatever the network."""
    return UnsupportedAdapterError(
        f"{member}: the adapter in {adapter.path} cannot be held: {'; '.join(reasons)}.{advice and f' {advice}'}",
        member=member,
        source=str(adapter.path),
    )


def first(names: Sequence[str]) -> list[str]:
    """The first three of many names, for people, and how many more there are."""
    return [*names[:3], f"and {len(names) - 3} more"] if len(names) > 3 else list(names)
