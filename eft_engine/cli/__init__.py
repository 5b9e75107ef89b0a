"""The command line, `eft`: one file per command, and the options that all of them share in `trio_options`."""

from __future__ import annotations

import sys

from eft_engine.errors import EFTError


def main() -> None:
    """Run the command line. A mistake of the user ends in one line on stderr and exit code 2, never in a traceback."""
    from eft_engine.cli.app import app  # it loads all commands, some of which import options from here

    try:
        app()
    except EFTError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
