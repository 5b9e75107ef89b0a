"""What the numbered scripts print, in their headers, the README and the notebooks: run them and rewrite it.

    python -m cookbook.renew                # all of them
    python -m cookbook.renew 05 06          # some, by the beginning of their names

A header ends with a block `Prints:` whose indented lines are the script's whole output. tests/test_cookbook.py runs every script and
compares; after a change of models or wording, this command brings the blocks up to date. Look at the difference before you commit it.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import runpy
import sys
from pathlib import Path
from unittest.mock import patch

from cookbook import notebooks

COOKBOOK = Path(__file__).parent
README = COOKBOOK.parent / "README.md"
BLOCK = re.compile(r'(?<=^Prints:\n\n)(?:(?:    .*)?\n)*(?=""")', flags=re.MULTILINE)
SHOWN = re.compile(r"```python\n((?:(?!```).)*)```\n\n```text\n((?:(?!```).)*)```", flags=re.DOTALL)
"""A block of code in the README with its output."""


def scripts() -> dict[str, str]:
    """Names and sources of the numbered scripts, in order."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(COOKBOOK.glob("[0-9][0-9]_*.py"))}


def promised(source: str) -> list[str] | None:
    r"""Lines of the header's block; None without one.

    >>> promised('\"\"\"Title.\n\nPrints:\n\n    one\n\n      two\n\"\"\"\n')
    ['one', '', '  two']
    """
    header = ast.get_docstring(ast.parse(source)) or ""
    _, heading, block = header.rpartition("Prints:\n\n")
    return [line.removeprefix("    ") for line in block.splitlines()] if heading else None


def run(name: str, *arguments: str) -> list[str]:
    """Run a script in this process, as `python cookbook/NAME ARGUMENTS` would; gives the lines that it prints."""
    printed, path = io.StringIO(), str(COOKBOOK / name)
    with contextlib.redirect_stdout(printed), patch.object(sys, "argv", [path, *arguments]):
        runpy.run_path(path, run_name="__main__")
    return [line.rstrip() for line in printed.getvalue().rstrip().splitlines()]


def with_block(source: str, lines: list[str]) -> str:
    r"""The source with these lines in its header's block.

    Raises:
        ValueError: the header has no block.

    >>> renewed = with_block('\"\"\"Title.\n\nPrints:\n\n\"\"\"\n', ["one", "", "two"])
    >>> promised(renewed)
    ['one', '', 'two']
    """
    escaped = [line.replace("\\", "\\\\").replace('"""', '\\"\\"\\"') for line in lines]
    block = "".join(f"    {line}\n" if line else "\n" for line in escaped)
    renewed, count = BLOCK.subn(lambda _: block, source, count=1)
    if not count:
        raise ValueError("the header does not end with a block that begins with 'Prints:' and an empty line")
    return renewed


def sources_of(code: str, sources: dict[str, str]) -> list[str]:
    """Names of the scripts that hold all lines of a block of code, in its order."""
    names = []
    for name, source in sources.items():
        lines = iter([line.strip() for line in source.splitlines()])
        if all(line.strip() in lines for line in code.splitlines() if line.strip()):
            names.append(name)
    return names


def with_outputs(readme: str, sources: dict[str, str]) -> str:
    """The README with what the scripts' headers promise below the blocks that come from them."""

    def renewed(match: re.Match[str]) -> str:
        names = sources_of(match[1], sources)
        lines = promised(sources[names[0]]) if names else None
        if lines is None:
            return match[0]
        return f"```python\n{match[1]}```\n\n```text\n" + "".join(f"{line}\n" for line in lines) + "```"

    return SHOWN.sub(renewed, readme)


def main(chosen: list[str]) -> None:
    """Renew the chosen scripts, then the README and all notebooks."""
    for name, source in scripts().items():
        if not chosen or name.startswith(tuple(chosen)):
            print(f"{name} ...", file=sys.stderr)
            (COOKBOOK / name).write_text(with_block(source, run(name)), encoding="utf-8")
    notebooks.FOLDER.mkdir(exist_ok=True)
    for name, source in scripts().items():
        notebooks.path_of(name).write_text(notebooks.rendered(name, source, promised(source) or []), encoding="utf-8")
    README.write_text(with_outputs(README.read_text(encoding="utf-8"), scripts()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
