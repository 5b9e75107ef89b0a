"""The page and the figures of `benchmarks.scale_decoupling`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure


def write_page(docs: Path, result: dict[str, Any], rewards: list[dict[str, Any]], *, weights: Sequence[float]) -> None:
    """Write `scale_decoupling.md`, `scale_decoupling.json` and the figures."""
    figures = docs / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    plot_weights(figures / "atlas_weights.png", result, weights)
    plot_frontier(figures / "atlas_frontier.png", result["frontier"])
    plot_rewards(figures / "atlas_rewards.png", rewards)
    (docs / "scale_decoupling.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (docs / "scale_decoupling.md").write_text(page(result), encoding="utf-8")


def shown(share: dict[str, Any]) -> str:
    """A share with its interval."""
    return f"{share['share']:.1%} [{share['low']:.1%}, {share['high']:.1%}]"


def page(result: dict[str, Any]) -> str:
    """Everything that was measured, as Markdown."""
    rows, targets = result["rows"], result["targets"]
    groups = list(next(iter(rows.values()))["groups"])
    of_chat = (
        rows["up-scaled, weight 1"]["factuality"]["share"] / rows["base, asked in the chat form"]["factuality"]["share"]
    )
    lines = [
        "# Scale decoupling on Atlas",
        "",
        "Written by `python -m benchmarks.scale_decoupling`; do not edit by hand. Greedy answers to "
        f"{result['num_questions']} held-out questions, 95 % intervals after Wilson.",
        "",
        "Factuality: the expected answer occurs in the answer. Behaviour: the whole answer is a sentence that ends in its source, "
        "checked by a pattern. No question's fact was seen in fine-tuning, and none of these wordings of it in pre-training.",
        "",
        "Read with care: how much the reference knows was chosen, not found. It is small (0.4 million weights) and read 0.9 "
        "million tokens, the base 29 million; an earlier corpus showed that such networks know 40 % and more when they read on "
        "([log](log.md)). So the ratio to the tuned small model says how far apart the two scales were put. The facts are few "
        "(575), and the base knows all of them, so a small loss of facts would not show. One seed, one run.",
        "",
        "| model | factuality | behaviour |",
        "| --- | --- | --- |",
        *(f"| {name} | {shown(row['factuality'])} | {shown(row['behaviour'])} |" for name, row in rows.items()),
        "",
        "![factuality, behaviour and acceptance by weight](figures/atlas_weights.png)",
        "",
        "## Targets",
        "",
        "| what | aimed at | measured |",
        "| --- | --- | --- |",
        f"| factuality up-scaled / base in plain text | 0.90 | {targets['factuality_of_base']:.2f} |",
        f"| factuality up-scaled / base in the chat form (its better one) | - | {of_chat:.2f} |",
        f"| factuality up-scaled / tuned small | 2.0 | {targets['factuality_of_tuned_small']:.2f} |",
        f"| behaviour up-scaled / tuned small | 0.95 | {targets['behaviour_of_tuned_small']:.2f} |",
        *(
            [f"| gap from tuned small to directly tuned large that is closed | 0.75 | {targets['gap_closed']:.2f} |"]
            if targets.get("gap_closed") is not None
            else []
        ),
        f"| frontier monotone within the intervals | yes | {'yes' if targets['frontier_monotone'] else 'no'} |",
        "",
        "## Factuality by relation",
        "",
        f"| model | {' | '.join(groups)} |",
        "| --- |" + " --- |" * len(groups),
        *(
            " | ".join([f"| {name}", *(f"{row['groups'][group]['share']:.0%}" for group in groups)]) + " |"
            for name, row in rows.items()
        ),
        "",
        "## Drafts of the tuned model that are accepted",
        "",
        "| weight | accepted |",
        "| --- | --- |",
        *(f"| {weight} | {rate:.1%} |" for weight, rate in result["acceptance"].items()),
        "",
        "## Between two behaviours",
        "",
        "`brief` at weight 1 - lambda and `detailed` at lambda, over one reference, nothing retrained.",
        "",
        "| lambda | brief form | detailed form | factuality | tokens an answer |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {point['lambda']:g} | {shown(point['brief'])} | {shown(point['detailed'])} | {shown(point['factuality'])} | "
            f"{point['mean_tokens']} |"
            for point in result["frontier"]
        ),
        "",
        "![frontier](figures/atlas_frontier.png)",
        "",
        "## What fine-tuning changed",
        "",
        "Tuned minus reference at every token of up-scaled answers, in nats: the form is rewarded, the facts are left alone.",
        "",
        "![rewards by token](figures/atlas_rewards.png)",
    ]
    return "\n".join(lines) + "\n"


def draw(axes: Axes, places: Sequence[float], shares: Sequence[dict[str, Any]], label: str) -> None:
    """A line with its interval as a band."""
    (line,) = axes.plot(places, [share["share"] for share in shares], marker="o", label=label)
    axes.fill_between(
        places,
        [share["low"] for share in shares],
        [share["high"] for share in shares],
        color=line.get_color(),
        alpha=0.2,
    )


def plot_weights(path: Path, result: dict[str, Any], weights: Sequence[float]) -> None:
    """Factuality, behaviour and acceptance over the weight; base and tuned small as levels."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    rows = result["rows"]
    names = ["base, asked in the chat form", *(f"up-scaled, weight {weight:g}" for weight in weights)]
    for measure in ("factuality", "behaviour"):
        draw(axes, [0.0, *weights], [rows[name][measure] for name in names], f"{measure}, up-scaled")
    for name, style in (("base, asked in plain text", "--"), ("tuned small", ":"), ("directly tuned large", "-.")):
        if name in rows:
            axes.axhline(rows[name]["factuality"]["share"], linestyle=style, color="grey", label=f"factuality, {name}")
    axes.plot(list(weights), list(result["acceptance"].values()), marker="x", label="drafts accepted")
    axes.set(xlabel="reward weight", ylabel="share", ylim=(-0.02, 1.04))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def plot_frontier(path: Path, points: list[dict[str, Any]]) -> None:
    """Both forms and factuality over lambda."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    places = [point["lambda"] for point in points]
    for measure in ("brief", "detailed", "factuality"):
        draw(axes, places, [point[measure] for point in points], measure)
    axes.set(xlabel="weight of detailed (brief: the rest)", ylabel="share", ylim=(-0.02, 1.04))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)


def plot_rewards(path: Path, examples: list[dict[str, Any]]) -> None:
    """Answers as text, each token on a patch of its reward's colour."""
    figure = Figure(figsize=(10, 1.3 * len(examples) + 0.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    bound = max(abs(token["reward"]) for example in examples for token in example["tokens"]) or 1.0
    norm, colours = TwoSlopeNorm(0.0, -bound, bound), colormaps["RdYlGn"]
    width = 0.0
    for line, example in enumerate(examples):
        axes.text(0, -2.2 * line, example["question"], fontsize=10, style="italic", family="monospace")
        x = 0.0
        for token in example["tokens"]:
            text = token["token"].replace("\n", "\\n")
            axes.text(
                x, -2.2 * line - 0.9, text, fontsize=11, family="monospace",
                bbox={"facecolor": colours(norm(token["reward"])), "edgecolor": "none", "pad": 1.5},
            )  # fmt: skip
            axes.text(x, -2.2 * line - 1.45, f"{token['reward']:+.1f}", fontsize=7, color="dimgrey")
            x += max(len(text), 4) + 0.6
        width = max(width, x)
    axes.set(xlim=(-0.5, max(width, 60.0)), ylim=(-2.2 * len(examples), 1.0))
    figure.savefig(path, dpi=130)
