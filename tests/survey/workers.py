"""Jobs in processes of their own, each with a limit of time and memory: one that hangs, or asks for everything, ends alone."""

from __future__ import annotations

import multiprocessing
import os
import resource
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from queue import SimpleQueue

from tests.survey.judge import Verdict

MEMORY_LIMIT_BYTES = 14 * 2**30
STARTUP_S = 120.0
"""What a new process may take for its imports, beside its first job."""


def _serve(connection: Connection) -> None:
    """In the worker: judge the cases whose names arrive, until the other end is closed."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    import torch

    from tests.survey.judge import judge

    torch.set_num_threads(1)
    while True:
        try:
            name = connection.recv()
        except EOFError:
            return
        connection.send(judge(name))


class _Worker:
    """One process, and a new one after a case that it did not survive."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(other_end,), daemon=True)
        self._process.start()
        other_end.close()
        self._startup_s = STARTUP_S

    def verdict(self, name: str, *, limit_s: float) -> Verdict:
        """The verdict on one case."""
        self._connection.send(name)
        try:
            if self._connection.poll(limit_s + self._startup_s):
                self._startup_s = 0.0
                found = self._connection.recv()
                assert isinstance(found, Verdict)
                return found
            lost = f"no verdict after {limit_s:.0f} s"
        except EOFError:
            lost = "the process that judged it died"
        self.stop()
        self._start()
        return Verdict(name, "UNTYPED", lost)

    def stop(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.kill()
        self._process.join()


def verdicts(names: Sequence[str], *, jobs: int, limit_s: float) -> Iterator[Verdict]:
    """The verdict on each case, as they come."""
    waiting: SimpleQueue[str | None] = SimpleQueue()
    found: SimpleQueue[Verdict] = SimpleQueue()
    for name in [*names, *[None] * jobs]:
        waiting.put(name)

    def work() -> None:
        worker = _Worker()
        while (name := waiting.get()) is not None:
            found.put(worker.verdict(name, limit_s=limit_s))
        worker.stop()

    for _ in range(jobs):
        threading.Thread(target=work, daemon=True).start()
    for _ in names:
        yield found.get()
