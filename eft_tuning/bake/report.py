"""The folder of a bake: the adapter, what it came from, and what it keeps.

OUT/adapter_config.json, adapter_model.safetensors   a LoRA of PEFT on the base
OUT/chat_template.jinja                              the template that it answers behind, where there is one
OUT/generation_config.json                           the tokens at which its answers end
OUT/bake.json                                        composition, settings, results
OUT/README.md                                        the same for people, and how to serve it
OUT/work/                                            answers and checkpoints while it is baked; gone at the end
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eft_engine.errors import InvalidOptionError
from eft_tuning.bake.measure import Answered, Kept, gain_kept, level_kept
from eft_tuning.bake.training import Agreement

WORK = "work"


@dataclass(frozen=True)
class BakeReport:
    """What was baked, and how much of the composition is left in it. `interrupted_by` is a signal: nothing else is known then."""

    composition: Mapping[str, Any]
    num_prompts: int = 0
    num_tokens: int = 0
    num_held_out: int = 0
    steps: int = 0
    seconds: float = 0.0
    composed: Answered | None = None
    base: Answered | None = None
    baked: Answered | None = None
    tokens_per_s: Mapping[str, float] | None = None
    """Of one answer at a time, by composition, base and baked, each an engine of its own; None: not measured."""
    baked_agreement: Agreement | None = None
    base_agreement: Agreement | None = None
    losses: tuple[Mapping[str, float], ...] = ()
    interrupted_by: int | None = None

    def gain_kept(self, scorer: str) -> Kept:
        """Which part of the composition's gain over the base, on held-out prompts."""
        base, composed, baked = (own.marks[scorer] for own in self._measured())
        return gain_kept(base, composed, baked)

    def level_kept(self, scorer: str) -> Kept:
        """Baked relative to the composition."""
        _, composed, baked = (own.marks[scorer] for own in self._measured())
        return level_kept(composed, baked)

    def _measured(self) -> tuple[Answered, Answered, Answered]:
        found = self.base, self.composed, self.baked
        assert None not in found, "only a bake that is done and had held-out prompts is asked"
        return found  # type: ignore[return-value]

    @property
    def scorers(self) -> list[str]:
        """Names of what was scored."""
        return [] if self.baked is None else list(self.baked.marks)

    def as_json(self) -> dict[str, Any]:
        """`bake.json`, without settings."""
        answers = {"composition": self.composed, "base": self.base, "baked": self.baked}
        agreements = {"baked": self.baked_agreement, "base": self.base_agreement}
        return {
            "composition": dict(self.composition),
            "num_prompts": self.num_prompts,
            "num_tokens": self.num_tokens,
            "num_held_out": self.num_held_out,
            "steps": self.steps,
            "seconds": round(self.seconds, 1),
            "answers": {name: own.as_json() for name, own in answers.items() if own is not None},
            "tokens_per_s": {name: round(value, 1) for name, value in (self.tokens_per_s or {}).items()},
            "gain_kept": {name: self.gain_kept(name).as_json() for name in self.scorers},
            "level_kept": {name: self.level_kept(name).as_json() for name in self.scorers},
            "agreement": {
                name: {"divergence": round(own.divergence, 5), "same_first": own.same_first.as_json()}
                for name, own in agreements.items()
                if own is not None
            },
            "losses": [dict(entry) for entry in self.losses],
        }


def rows_of(report: BakeReport) -> list[list[str]]:
    """The table of a report: who, shares by scorer, divergence, same first token, tokens a second. The first row is the heading."""
    scorers = report.scorers
    table = [["", *scorers, "divergence", "same first token", "tokens/s"]]
    agreements = {"base": report.base_agreement, "baked": report.baked_agreement}
    for name, own in (("base", report.base), ("composition", report.composed), ("baked", report.baked)):
        if own is None:
            continue
        near = agreements.get(name)
        speed = (report.tokens_per_s or {}).get(name)
        table.append(
            [
                name,
                *(str(own.share(scorer)) for scorer in scorers),
                "-" if near is None else f"{near.divergence:.4f}",
                "-" if near is None else f"{near.same_first.value:.1%}",
                "-" if speed is None else f"{speed:.0f}",
            ]
        )
    if scorers:
        table.append(["gain kept", *(str(report.gain_kept(scorer)) for scorer in scorers), "", "", ""])
        table.append(["of the composition", *(str(report.level_kept(scorer)) for scorer in scorers), "", "", ""])
    return table


def write_report(folder: Path, report: BakeReport, *, settings: Mapping[str, Any], ends: list[int]) -> None:
    """Write `bake.json`, `README.md` and `generation_config.json`.

    Raises:
        InvalidOptionError: they cannot be written.
    """
    base = str(report.composition["base"])
    try:
        (folder / "bake.json").write_text(
            json.dumps(report.as_json() | {"settings": settings}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (folder / "generation_config.json").write_text(
            json.dumps({"eos_token_id": ends if len(ends) != 1 else ends[0]}) + "\n", encoding="utf-8"
        )
        (folder / "README.md").write_text(_readme(report, base), encoding="utf-8")
    except OSError as error:
        raise InvalidOptionError(f"cannot write to {folder}: {error}", option="out", value=str(folder)) from None


def _readme(report: BakeReport, base: str) -> str:
    heading, *rows = rows_of(report)
    lines = [
        "---",
        f"base_model: {json.dumps(base)}",
        "library_name: peft",
        "tags: [lora, eft-bake]",
        "---",
        "",
        "# A baked composition",
        "",
        "A LoRA adapter that answers as a composition of models did: base + weight * (tuned - reference), distilled by `eft bake`.",
        "",
        "```json",
        json.dumps(report.composition, indent=2, ensure_ascii=False),
        "```",
        "",
        f"Learnt from {report.num_tokens} tokens of answers to {report.num_prompts} prompts, measured on "
        f"{report.num_held_out} others:",
        "",
        "| " + " | ".join(heading) + " |",
        "|" + "---|" * len(heading),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        "```python",
        "from eft_engine import Engine, MemberConfig",
        "",
        f'engine = Engine.load(MemberConfig(source={base!r}, adapter="<this folder>"))',
        "```",
        "",
        "With peft it is `PeftModel.from_pretrained(base_model, folder)`, with vLLM `--enable-lora --lora-modules baked=<folder>`;",
        "prompts are rendered by `chat_template.jinja` where there is one.",
        "",
    ]
    return "\n".join(lines)
