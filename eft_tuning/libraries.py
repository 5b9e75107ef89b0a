"""What `eft tune` needs beside the engine, and whether it is here."""

from __future__ import annotations

import importlib.util

from eft_engine.errors import InvalidOptionError

NEEDED = ("trl", "datasets", "matplotlib")


def check_libraries() -> None:
    """Before anything is loaded.

    Raises:
        InvalidOptionError: a library of the extra `tune` is missing.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InvalidOptionError(
            f"eft tune needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed; run: "
            "pip install 'eft-engine[tune]'"
        )
