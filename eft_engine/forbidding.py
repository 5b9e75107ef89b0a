"""A switch of the environment under which nothing is loaded by name, for test suites that must not touch a real model."""

from __future__ import annotations

import os

from eft_engine.errors import EnginesForbiddenError

FORBID_ENGINES = "EFT_FORBID_ENGINES"
"""Set, and not to 0: no engine is loaded by name, in this process and those that it starts, and no server is asked."""


def are_engines_forbidden() -> bool:
    """Whether the switch is on."""
    return os.environ.get(FORBID_ENGINES, "") not in ("", "0")


def refuse_if_forbidden(name: str) -> None:
    """To be asked before anything is loaded, or a server is asked. `name`: of the model, for the error.

    Raises:
        EnginesForbiddenError: the switch is on.
    """
    if are_engines_forbidden():
        raise EnginesForbiddenError(
            f"{name} would be loaded or asked, and {FORBID_ENGINES} or forbid_engines() forbids that here; in a test, answer with "
            "a script instead: `with eft_integrations.testing.scripted():` around it, or backend=ScriptedBackend() "
            "(docs/testing.md), or lift the switch for this test with `allow_engines()`",
            name=name,
        )
