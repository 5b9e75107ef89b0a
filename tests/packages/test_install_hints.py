"""What messages, documents and examples tell people to install: the right distribution, and extras that it has."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"])
OURS = re.compile(r"(?<![\w./-])(eft[\w-]*|\.)\[([\w,-]+)\](?=['\"`= ]|$)")
"""A requirement of ours with extras: eft-engine[langchain], .[server]."""
BARE = re.compile(r"pip install [^`\n]*?(?<![\w./-])eft(?![\w.\[-])")
"""`pip install eft`, which is somebody else's distribution."""


def texts() -> dict[str, str]:
    """Every file that may tell people what to install."""
    folders = ("eft_engine", "eft_integrations", "eft_tuning", "cookbook", "recipes", "benchmarks", "packages")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    paths += [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "packages").glob("*/README.md")]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def hints(text: str) -> list[tuple[str, set[str]]]:
    """What a text names of ours with extras."""
    return [(name, set(extras.split(","))) for name, extras in OURS.findall(text)]


def faults(text: str) -> list[str]:
    """Hints that name another distribution than ours, or an extra that it has not."""
    wrong = [found[0] for found in BARE.finditer(text)]
    wrong += [name for name, _ in hints(text) if name not in ("eft-engine", ".")]
    return wrong + sorted(extra for _, extras in hints(text) for extra in extras - EXTRAS)


def test_every_hint_names_our_distribution_and_an_extra_that_it_has() -> None:
    assert {path: found for path, text in texts().items() if (found := faults(text))} == {}


def test_extras_that_messages_name_are_found() -> None:
    """Otherwise the pattern may have stopped matching."""
    told = {extra for text in texts().values() for name, extras in hints(text) for extra in extras if name != "."}
    assert told == {
        "langchain",
        "llama-index",
        "server",
        "gguf",
        "llama-cpp",
        "plot",
        "eval",
        "lm-eval",
        "otel",
        "tune",
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("pip install 'eft[langchain]'", ["eft"]),
        ("pip install eft", ["pip install eft"]),
        ("pip install -U 'eft'", ["pip install -U 'eft"]),
        ("pip install 'eft-engine[langchian]'", ["langchian"]),
        ("pip install '.[llama-cpp,servr]'", ["servr"]),
        ("pip install 'eft-engine[langchain,server]' ./packages/langchain-eft eft-engine", []),
        ("left[:, -1] and reply['eft'] and eft[\"reward_weights\"]", []),
    ],
)
def test_fault_in_a_hint_is_found(text: str, found: list[str]) -> None:
    assert faults(text) == found
