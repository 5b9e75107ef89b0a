"""The picture of an evaluation."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.results import WeightResult


def check_plots() -> None:
    """See that pictures can be drawn, before anything is asked.

    Raises:
        InvalidOptionError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidOptionError(
            "a report has plots and needs matplotlib: pip install 'eft-engine[eval]'", option="report"
        )


def plot_scores(path: Path, results: Sequence[WeightResult]) -> None:
    """One line a scorer over the settings, with its interval as a band, and a dotted one for what each member has alone. Dashed:
    the share of answers that max_tokens cut.

    Raises:
        InvalidOptionError: matplotlib is not installed.
    """
    check_plots()
    from matplotlib.figure import Figure

    settings = [own for own in results if own.member is None] or list(results)
    members = [own for own in results if own not in settings]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    numbers = [float(own.weights) for own in settings if isinstance(own.weights, int | float)]
    numeric = len(numbers) == len(settings)
    places = numbers if numeric else list(range(len(settings)))
    for scorer in results[0].marks:
        shares = [own.share(scorer) for own in settings]
        (line,) = axes.plot(places, [share.value for share in shares], marker="o", label=scorer)
        lows, highs = zip(*(share.interval for share in shares), strict=True)
        axes.fill_between(places, lows, highs, color=line.get_color(), alpha=0.2)
        for member in members:
            axes.axhline(member.share(scorer).value, color=line.get_color(), linestyle=":", linewidth=1)
            axes.annotate(
                f"{member.label}, {scorer}",
                (1.0, member.share(scorer).value),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize=7,
                color=line.get_color(),
            )
    cut = [own.cut for own in settings]
    axes.plot(
        places, [share.value for share in cut], color="grey", linestyle="--", marker="x", label="cut by max_tokens"
    )
    lows, highs = zip(*(share.interval for share in cut), strict=True)
    axes.fill_between(places, lows, highs, color="grey", alpha=0.1)
    if not numeric:
        axes.set_xticks(places, [own.label for own in settings], rotation=20)
    axes.set(xlabel="reward weight", ylabel="share of answers", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
