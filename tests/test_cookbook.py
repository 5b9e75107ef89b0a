"""The cookbook's files run, and print what their headers promise.

A file's docstring ends with a block `Prints:` whose indented lines must appear in what the file prints, in that order.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import runpy
from pathlib import Path

import pytest

COOKBOOK = Path(__file__).parents[1] / "cookbook"


def promised(source: str) -> list[str]:
    """Lines of the header's block."""
    header = ast.get_docstring(ast.parse(source)) or ""
    block = re.search(r"^Prints:\n\n((?:    .+\n?)+)", header, flags=re.MULTILINE)
    return [line.strip() for line in block[1].splitlines()] if block else []


def missing(lines: list[str], printed: str) -> list[str]:
    """Promised lines that did not come, or not in their order."""
    rest = iter([line.strip() for line in printed.splitlines()])
    return [line for line in lines if line.strip() not in rest]


RECIPES = {
    path.name: lines
    for path in sorted(COOKBOOK.glob("[0-9][0-9]_*.py"))
    if (lines := promised(path.read_text(encoding="utf-8")))
}


def test_headers_are_read_and_lines_compared_in_order() -> None:
    assert promised('"""Title.\n\nText.\n\nPrints:\n\n    one\n    two\n"""') == ["one", "two"]
    assert promised('"""Title."""') == []
    assert missing(["one", "two"], "one\nmore\ntwo\n") == []
    assert missing(["one", "two"], "two\none\n") == ["two"]
    assert "02_llama_index_rag.py" in RECIPES


@pytest.mark.smollm2
@pytest.mark.parametrize("name", RECIPES)
def test_file_prints_what_its_header_promises(name: str) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(COOKBOOK / name), run_name="__main__")
    assert missing(RECIPES[name], printed.getvalue()) == [], printed.getvalue()


def test_readme_shows_code_and_output_of_the_cookbook() -> None:
    readme = (COOKBOOK.parent / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n((?:(?!```).)*)```\n\n```text\n(.*?)```", readme, flags=re.DOTALL)
    shown = [(code, output) for code, output in blocks if "eft_integrations" in code]
    assert shown
    for code, output in shown:
        sources = {name: (COOKBOOK / name).read_text(encoding="utf-8") for name in RECIPES}
        fitting = [
            name
            for name, source in sources.items()
            if not missing([line for line in code.splitlines() if line], source)
        ]
        assert [RECIPES[name] for name in fitting] == [output.splitlines()]
