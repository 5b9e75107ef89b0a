"""Which process an engine belongs to. A forked child has a copy of its memory, and not the thread that would answer."""

from __future__ import annotations

import os

from eft_engine.errors import ForkedEngineError


class OwnProcess:
    """The process in which it was made. To be asked before a lock is taken: a lock that was held at the fork is held for ever."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def is_here(self) -> bool:
        """Whether this is that process."""
        return os.getpid() == self._pid

    def check(self) -> None:
        """Refuse to go on in another process.

        Raises:
            ForkedEngineError: this is a child of it.
        """
        if not self.is_here:
            raise ForkedEngineError(
                f"the engine was loaded by process {self._pid}, and this is process {os.getpid()}, which was forked from it and "
                "has none. Load one here, after the fork (a model that is made here and names its trio does so by itself); in a "
                "server that forks workers, do not load before it forks, or start workers with the method spawn",
                pid=self._pid,
            )
