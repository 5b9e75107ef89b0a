"""The engine's thread: takes requests from any thread, steps while there is work, and never leaves a caller waiting."""

from __future__ import annotations

import logging
import threading

from eft_engine.engine.scheduler import Scheduler
from eft_engine.engine.sequence import Sequence
from eft_engine.engine.step import Stepper
from eft_engine.errors import EngineClosedError, EngineStepError

logger = logging.getLogger(__name__)


class EngineWorker:
    """Owns the scheduler and the stepper. `submit`, `cancel` and `close` may be called from any thread."""

    def __init__(self, scheduler: Scheduler, stepper: Stepper) -> None:
        self._scheduler = scheduler
        self._stepper = stepper
        self._inbox: list[Sequence] = []
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="eft-engine", daemon=True)
        self._thread.start()

    def submit(self, sequences: list[Sequence]) -> None:
        """Queue sequences, all of them before the next step.

        Raises:
            EngineClosedError: the engine was closed.
        """
        with self._wake:
            if self._closed:
                raise EngineClosedError("the engine is closed; load a new one")
            self._inbox += sequences
            self._wake.notify()

    def cancel(self, sequence: Sequence) -> None:
        """Drop a sequence before the next step; it tells its caller nothing more. Harmless when it is finished."""
        with self._wake:
            sequence.cancelled = True
            self._wake.notify()

    def close(self) -> None:
        """Stop after the current step; whatever is in flight fails with `EngineClosedError`. May be repeated."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while self._wait_for_work():
            self._scheduler.drop_finished()
            try:
                self._stepper.step(self._scheduler.plan())
            except Exception as error:
                logger.exception("a step of the engine failed; the requests in it fail with it")
                self._fail_running(error)
        self._fail_everything()

    def _wait_for_work(self) -> bool:
        """Take in what arrived; sleep while there is nothing to do. False once the engine is closed."""
        with self._wake:
            while not (self._closed or self._inbox or self._scheduler.has_work):
                self._wake.wait()
            for sequence in self._inbox:
                self._scheduler.add(sequence)
            self._inbox.clear()
            return not self._closed

    def _fail_running(self, error: Exception) -> None:
        for sequence in self._scheduler.running:
            if not sequence.finished:
                failure = EngineStepError(f"the engine step that this request was part of failed: {error}")
                failure.__cause__ = error
                sequence.fail(failure)
        self._scheduler.drop_finished()

    def _fail_everything(self) -> None:
        with self._wake:
            for sequence in self._inbox:
                self._scheduler.add(sequence)
            self._inbox.clear()
        for sequence in self._scheduler.clear():
            sequence.fail(EngineClosedError("the engine was closed while the request was in flight"))
