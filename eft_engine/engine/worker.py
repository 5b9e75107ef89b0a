"""The engine's thread: takes requests from any thread, steps while there is work, and never leaves a caller waiting."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from weakref import WeakSet

from eft_engine.engine.openmp import compute_alone, release_workers
from eft_engine.engine.own_process import OwnProcess
from eft_engine.engine.scheduler import Load, Scheduler, StepPlan
from eft_engine.engine.sequence import Sequence
from eft_engine.engine.step import Stepper
from eft_engine.errors import EFTError, EngineClosedError, EngineStepError, KVCacheBudgetError, QueueFullError
from eft_engine.models.memory import is_out_of_memory

logger = logging.getLogger(__name__)

_OPEN: WeakSet[EngineWorker] = WeakSet()


@atexit.register
def _close_all() -> None:
    """A thread that is inside torch when the interpreter goes away aborts the process, so it must end before."""
    for worker in list(_OPEN):
        worker.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=release_workers)  # OpenMP would wait in the child for workers that it does not have


class EngineWorker:
    """Owns the scheduler and the stepper. `submit`, `load` and `close` may be used from any thread.

    Args:
        computes_alone: what torch computes here, it computes in this thread alone.
    """

    def __init__(
        self, scheduler: Scheduler, stepper: Stepper, *, max_queued_requests: int | None, computes_alone: bool
    ) -> None:
        self._max_queued_requests = max_queued_requests
        self._computes_alone = computes_alone
        self._scheduler = scheduler
        self._stepper = stepper
        self._inbox: list[Sequence] = []
        self._load = scheduler.load  # as the engine's thread has told it last
        self._wake = threading.Condition()
        self._process = OwnProcess()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="eft-engine", daemon=True)
        self._thread.start()
        _OPEN.add(self)

    def submit(self, sequences: list[Sequence]) -> None:
        """Queue sequences, all of them before the next step. The calling thread's idle OpenMP workers end. Where an exception comes
        out of it, an interrupt among them, none of them runs on.

        Raises:
            EngineClosedError: the engine was closed, or belongs to another process.
            QueueFullError: too many requests wait.
        """
        try:
            self._queue(sequences)
        except BaseException:
            for sequence in sequences:
                sequence.cancel()
            raise

    def _queue(self, sequences: list[Sequence]) -> None:
        self._process.check()
        with self._wake:
            if self._closed:
                raise EngineClosedError("the engine is closed; load a new one")
            num_queued, limit = self.load.num_waiting, self._max_queued_requests
            if limit is not None and num_queued + len(sequences) > limit:
                raise QueueFullError(
                    f"{num_queued} requests wait and {len(sequences)} more came; max_queued_requests is {limit}",
                    num_queued=num_queued,
                    limit=limit,
                )
            release_workers()
            self._inbox += sequences
            self._wake.notify()

    @property
    def load(self) -> Load:
        """What is in hand, every request counted once: the engine's thread tells what it holds when it has taken in what arrived,
        let go of what is over, or planned its step.

        Raises:
            ForkedEngineError: it belongs to another process.
        """
        self._process.check()
        with self._wake:
            return self._load._replace(num_waiting=self._load.num_waiting + len(self._inbox))

    def close(self) -> None:
        """Stop after the current step; whatever is in flight fails with `EngineClosedError`. May be repeated. In a
        forked child there is nothing to stop.
        """
        if not self._process.is_here:
            return
        with self._wake:
            self._closed = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        if self._computes_alone:
            compute_alone()
        while self._wait_for_work():
            try:
                self._work()
            except Exception as error:
                logger.exception("the engine could not recover from a failure; all requests in flight fail with it")
                self._fail_everything(
                    EngineStepError, f"the engine failed with every request in flight: {error}", error
                )
        self._fail_everything(EngineClosedError, "the engine was closed while the request was in flight")

    def _work(self) -> None:
        with self._wake:  # so that who is counted as gone is in hand no more
            self._scheduler.drop_finished()
            self._load = self._scheduler.load
        try:
            plan = self._scheduler.plan()
        except Exception as error:
            self._recover_admission(error)
        else:
            with self._wake:
                self._load = self._scheduler.load
            self._step(plan)

    def _step(self, plan: StepPlan) -> None:
        """Run a step. When it fails, find the requests at fault, by halves: they fail, the others do not notice.

        When memory ran out, fewer requests run together from the next step on; those that wait lose no token.
        """
        try:
            self._stepper.step(plan)
        except Exception as error:
            sequences = [sequence for sequence in plan.sequences if not sequence.finished]
            for sequence in sequences:
                sequence.undo_step()
            if is_out_of_memory(error) and self._scheduler.shrink():
                logger.warning("memory ran out in a step; fewer requests run together now")
            elif len(sequences) > 1:
                half = len(sequences) // 2
                for part in (sequences[:half], sequences[half:]):
                    self._step(plan.only([sequence for sequence in part if sequence in self._scheduler.running]))
            else:
                logger.exception("a step of the engine failed; the request in it fails with it")
                for sequence in sequences:
                    sequence.fail_step(error)

    def _recover_admission(self, error: Exception) -> None:
        """The request whose turn it is got no slots: it waits for memory, or fails."""
        if is_out_of_memory(error) and self._scheduler.postpone():
            logger.warning("memory ran out while a request was admitted; it waits until others are done")
            return
        sequence = self._scheduler.waiting[0]
        if isinstance(error, KVCacheBudgetError):
            sequence.fail(error)
            return
        logger.exception("a request could not be admitted; it fails, the others go on")
        sequence.fail_step(error)

    def _wait_for_work(self) -> bool:
        """Take in what arrived; sleep while there is nothing to do. False once the engine is closed."""
        with self._wake:
            while not (self._closed or self._inbox or self._scheduler.has_work):
                release_workers()
                self._wake.wait()
            self._take_in()
            return not self._closed

    def _take_in(self) -> None:
        """With the lock held."""
        for sequence in self._inbox:
            self._scheduler.add(sequence)
        self._inbox.clear()
        self._load = self._scheduler.load

    def _fail_everything(self, kind: type[EFTError], message: str, cause: Exception | None = None) -> None:
        with self._wake:
            self._take_in()
            left = self._scheduler.clear()
            self._load = self._scheduler.load
        for sequence in left:
            error = kind(message)
            error.__cause__ = cause
            sequence.fail(error)
