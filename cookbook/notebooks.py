"""The numbered scripts as notebooks with their output, for reading (`docs/notebooks/`), written by `python -m cookbook.renew`.

A notebook has the script's header as text, its code in a cell for each part (parts are set apart by two empty lines, as functions are,
or begin where the code first runs), and what its header promises below the last cell. Nothing is run here: `tests/test_cookbook.py` runs
the scripts and compares. Format: https://nbformat.readthedocs.io, version 4.5.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebook(name: str, source: str, lines: list[str]) -> dict[str, Any]:
    r"""The notebook of a script that prints these lines.

    >>> made = notebook("01_x.py", '\"\"\"Title: python x\n\nPrints:\n\n    2\n\"\"\"\n\nimport a\n\n\ndef f():\n    pass\n', ["2"])
    >>> [(cell["cell_type"], "".join(cell["source"])) for cell in made["cells"]]
    [('markdown', '# 01_x\n\nTitle: python x'), ('code', 'import a'), ('code', 'def f():\n    pass')]
    >>> made["cells"][-1]["outputs"][0]["text"]
    ['2\n']
    """
    header = ast.get_docstring(ast.parse(source)) or ""
    text = header.partition("Prints:")[0].strip()
    cells: list[dict[str, Any]] = [_cell(0, "markdown", f"# {name.removesuffix('.py')}\n\n{text}")]
    for number, part in enumerate(_parts(source), start=1):
        cells.append(_cell(number, "code", part) | {"execution_count": number, "outputs": []})
    output = {"output_type": "stream", "name": "stdout", "text": _lines("\n".join(lines) + "\n")}
    cells[-1]["outputs"] = [output]
    return {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}


def rendered(name: str, source: str, lines: list[str]) -> str:
    """The notebook's file."""
    return json.dumps(notebook(name, source, lines), indent=1, ensure_ascii=False) + "\n"


def path_of(name: str) -> Path:
    """Where a script's notebook is."""
    return FOLDER / f"{name.removesuffix('.py')}.ipynb"


def _parts(source: str) -> list[str]:
    """The code behind the header, apart where two empty lines are."""
    body = source.split('"""', 2)[2] if source.startswith('"""') else source
    parts = [part.strip("\n") for part in body.split("\n\n\n")]
    return [part for part in parts if part.strip()]


def _cell(number: int, kind: str, text: str) -> dict[str, Any]:
    return {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": _lines(text)}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)
