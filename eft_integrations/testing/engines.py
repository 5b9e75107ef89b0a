"""A switch that forbids real engines: nothing is loaded by name, and no server is asked."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from eft_engine.forbidding import FORBID_ENGINES


class _Switched:
    """The switch as it was set now; as a context manager it is as before again at the end of the block."""

    def __init__(self, value: str) -> None:
        self._before = os.environ.get(FORBID_ENGINES)
        os.environ[FORBID_ENGINES] = value

    def restore(self) -> None:
        """Set it as it was."""
        if self._before is None:
            os.environ.pop(FORBID_ENGINES, None)
        else:
            os.environ[FORBID_ENGINES] = self._before

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


def forbid_engines() -> _Switched:
    """From now on `EnginesForbiddenError` is raised where an engine would be loaded by name (`Engine.load`, `load_preset`, models
    that name a trio) or a server asked: in this process and those that it starts, as with `EFT_FORBID_ENGINES=1`.

    Called alone, for good (in a conftest.py); as a context manager, until the block ends. Models can still be made, and answer
    inside of `scripted`; engines of networks that are handed over (`Engine.from_models`) are made as ever.
    """
    return _Switched("1")


def allow_engines() -> _Switched:
    """Lift the switch, for a test that wants a real engine: in a block, or for good."""
    return _Switched("0")
