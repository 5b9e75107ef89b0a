"""What examples import of our packages exists: the cookbook's scripts and the blocks in documents, also those that no test runs."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import python_blocks

ROOT = Path(__file__).parents[1]
OURS = ("eft_engine", "eft_integrations", "eft_tuning", "benchmarks", "cookbook", "recipes")
FOLDERS = ("cookbook", "docs", "packages", "recipes", "deploy")
SOURCES = sorted(
    path for path in [ROOT / "README.md", *(file for name in FOLDERS for file in (ROOT / name).rglob("*"))]
    if path.suffix in {".py", ".md"} and "node_modules" not in path.parts
)  # fmt: skip


def blocks(path: Path) -> list[str]:
    return [path.read_text(encoding="utf-8")] if path.suffix == ".py" else python_blocks(path)


def missing(source: str) -> Iterator[str]:
    """Modules and names of ours that a source text imports and that are not there."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            wanted = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            wanted = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for module, name in wanted:
            if module.partition(".")[0] in OURS and not there(module, name):
                yield module if name is None else f"{module}.{name}"


def there(module: str, name: str | None) -> bool:
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # What is missing belongs to an environment of its own (vLLM, TRL): then the file at least is there.
        return not str(error.name).startswith(OURS)
    return name is None or hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}") is not None


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if blocks(path)], ids=lambda path: str(path.relative_to(ROOT))
)
def test_what_an_example_imports_of_ours_exists(path: Path) -> None:
    for block in blocks(path):
        assert list(missing(block)) == []


def test_what_is_not_there_is_found() -> None:
    source = (
        "import json, eft_engine.nowhere\nfrom eft_engine import Engine, Nothing\nfrom eft_tuning.bake import progress"
    )
    assert list(missing(source)) == ["eft_engine.nowhere", "eft_engine.Nothing", "eft_tuning.bake.progress"]
