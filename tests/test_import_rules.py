"""Imports go one way: contracts <- text <- decoding / models <- engine <- zoo, cli."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTRACTS = {"errors", "config", "outputs"}
MODEL_LIBRARIES = {"torch", "transformers", "peft", "safetensors", "huggingface_hub", "rich", "psutil"}
ALLOWED_PARTS = {
    "contracts": CONTRACTS,
    "text": CONTRACTS | {"text"},
    "decoding": CONTRACTS | {"decoding"},
    "models": CONTRACTS | {"text", "models"},
    "engine": CONTRACTS | {"text", "models", "decoding", "engine"},
    "zoo": CONTRACTS | {"engine", "zoo"},
    "cli": CONTRACTS | {"engine", "models", "zoo", "cli"},
}
ALLOWED_LIBRARIES = {
    "contracts": {"pydantic"},
    "text": set(),
    "decoding": {"torch", "numpy"},
    "models": MODEL_LIBRARIES,
    "engine": {"torch"},
    "zoo": set(),
    "cli": {"typer", "rich"},
}


def imported(source: str) -> set[str]:
    """Full names of everything that a source text imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def violations(part: str, source: str) -> list[str]:
    """Imports of a file in `part` that go the wrong way."""
    wrong = []
    for name in imported(source):
        top, _, rest = name.partition(".")
        if top == "eft_engine":
            target = rest.partition(".")[0]
            if target not in ALLOWED_PARTS[part] and name != "eft_engine.__version__":
                wrong.append(name)
        elif top not in sys.stdlib_module_names and top not in ALLOWED_LIBRARIES[part]:
            wrong.append(name)
    return sorted(wrong)


FILES = [path for path in sorted((ROOT / "eft_engine").rglob("*.py")) if path != ROOT / "eft_engine" / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_imports_only_what_its_place_allows(path: Path) -> None:
    parts = path.relative_to(ROOT / "eft_engine").parts
    part = "contracts" if len(parts) == 1 else parts[0]
    assert violations(part, path.read_text(encoding="utf-8")) == []


def test_the_rule_finds_a_violation() -> None:
    assert violations("text", "import torch\nfrom eft_engine.models.loading import Trio") == [
        "eft_engine.models.loading.Trio",
        "torch",
    ]
    assert violations("engine", "from transformers import AutoModel") == ["transformers.AutoModel"]


def test_only_one_file_knows_the_cache_classes() -> None:
    knowing = [path.name for path in FILES if "cache_utils" in path.read_text(encoding="utf-8")]
    assert knowing == ["kv_cache.py"]


def test_the_package_imports_without_torch() -> None:
    code = "import sys, eft_engine; eft_engine.SamplingParams(); print({'torch', 'transformers'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.strip() == "set()"
