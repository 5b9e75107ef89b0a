"""The loss curve as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw_losses(losses: Sequence[Mapping[str, Any]], path: Path, *, best_step: int | None = None) -> None:
    """Training and held-out loss over steps, in nats a token, as a PNG.

    Args:
        losses: entries of `loss.jsonl`: `step` with `loss` or `eval_loss`.
        path: where the picture goes.
        best_step: whose adapter is kept.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, label, style in (("loss", "training", "-"), ("eval_loss", "held out", "o-")):
        points = [(entry["step"], entry[name]) for entry in losses if name in entry]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1.2, markersize=4)
    if best_step is not None:
        axes.axvline(best_step, color="grey", linestyle=":", linewidth=1, label="kept")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a token)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    FigureCanvasAgg(figure)  # draws without a window
    figure.savefig(path, format="png", dpi=120)
