"""`docs/models.md`: what the survey found, one line per entry of transformers' mappings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import transformers

from eft_engine.models.self_check import WHAT_TO_DO
from tests.survey.cases import Case, all_cases
from tests.survey.judge import Verdict

MAX_REASON_LEN = 220


def page(verdicts: Mapping[str, Verdict]) -> str:
    """The whole page, for verdicts on all cases by name."""
    entries: dict[str, list[Case]] = {}
    for case in all_cases().values():
        entries.setdefault(case.entry, []).append(case)
    text = [cases for cases in entries.values() if not cases[0].images]
    wrappers = [cases for cases in entries.values() if cases[0].images]
    decoders = [cases for cases in text if cases[0].outside is None]
    readers = [cases for cases in wrappers if cases[0].outside is None]
    lines = [
        "# Models",
        "",
        "Written by `make survey`: a tiny random model of every entry of transformers' mappings of causal language models and of",
        "models for text with images, with every kind of layer that the family has, and with windows and chunks shorter than the",
        "prompts. Three of them are composed at weights 0, 0.7 and 1, for four prompts of unequal length at once, with drafts, and",
        "the text is compared token for token with the formula over the three models' own forward passes without a cache",
        "(`tests/survey/`). Exact: every token is the same. Refused: `UnsupportedModelError` says why, before anything is written.",
        "",
        f"transformers {transformers.__version__}. Of {len(text)} entries for text, {len(decoders)} write text by themselves: "
        f"{_count(decoders, verdicts)}.",
        f"Of {len(wrappers)} further entries that also read images (here their text alone is run), {len(readers)} do: "
        f"{_count(readers, verdicts)}.",
        "",
        "## Text",
        "",
        *_table(text, verdicts),
        "",
        "## Text of models that also read images",
        "",
        *_table(wrappers, verdicts),
    ]
    return "\n".join(lines) + "\n"


def _count(entries: Sequence[Sequence[Case]], verdicts: Mapping[str, Verdict]) -> str:
    found = Counter(verdicts[cases[0].name].kind for cases in entries)
    return ", ".join(f"{number} {kind}" for kind, number in found.most_common())


def _table(entries: Sequence[Sequence[Case]], verdicts: Mapping[str, Verdict]) -> list[str]:
    lines = ["| entry | class | text | why not, and variants |", "|---|---|---|---|"]
    for cases in sorted(entries, key=lambda cases: cases[0].entry):
        entry, *variants = cases
        verdict = verdicts[entry.name]
        reasons = [entry.outside] if entry.outside else []
        if verdict.kind != "exact" and not (entry.outside and verdict.kind == "cannot be built"):
            reasons.append(reason(verdict))
        for variant in variants:
            other = verdicts[variant.name]
            label = variant.name.partition(": ")[2]
            reasons.append(f"{label}: {other.kind}" + (f" ({reason(other)})" if other.kind != "exact" else ""))
        word: str = verdict.kind
        if word != "exact":
            word = "not a decoder" if entry.outside else "needs a package" if "ImportError" in verdict.detail else word
        lines.append(f"| `{entry.entry}` | {entry.class_name} | {word} | {'; '.join(reasons)} |")
    return lines


def reason(verdict: Verdict) -> str:
    """The message without the name of the error and of the member and without advice, cut at a word, safe inside a table."""
    words = verdict.detail.partition(f"; {WHAT_TO_DO}")[0]
    for prefix in ("UnsupportedModelError: ", "base: "):
        words = words.removeprefix(prefix)
    if len(words) > MAX_REASON_LEN:
        words = words[:MAX_REASON_LEN].rsplit(" ", 1)[0] + " ..."
    return words.replace("|", "\\|")
