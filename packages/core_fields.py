"""Fields of the partner distributions that are the core's: its version, its licence, and the requirement of that version.

Their `setup.py` asks for them while it runs inside the repository. A source distribution has the three files with it.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def core_version() -> str:
    """The version that `eft_engine` says it has."""
    source = (ROOT / "eft_engine" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', source, flags=re.MULTILINE)
    assert found, "eft_engine/__init__.py has no line with its version"
    return found[1]


def write_core_fields(package: Path, *, extra: str) -> None:
    """Write VERSION, LICENSE and requirements.txt into the folder of a distribution, which needs this extra of the core."""
    version = core_version()
    (package / "VERSION").write_text(f"{version}\n", encoding="utf-8")
    (package / "LICENSE").write_bytes((ROOT / "LICENSE").read_bytes())
    (package / "requirements.txt").write_text(f"eft-engine[{extra}]=={version}\n", encoding="utf-8")
