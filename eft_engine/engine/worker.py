"""The engine's thread: takes requests from any thread, steps while there is work, and never leaves a caller waiting."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from weakref import WeakSet

from eft_engine.engine.openmp import compute_alone, release_workers
from eft_engine.engine.own_process import OwnProcess
from eft_engine.engine.scheduler import Load, Scheduler, StepPlan
from eft_engine.engine.sequence import Sequence
from eft_engine.engine.step import Stepper
from eft_engine.errors import (
    EFTError,
    EngineClosedError,
    EngineStepError,
    KVCacheBudgetError,
    QueueFullError,
    RequestError,
    TensorParallelError,
)
from eft_engine.models.memory import is_out_of_memory
from eft_engine.outputs import EngineHealth

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
    """Owns the scheduler and the stepper. `submit`, `load`, `health` and `close` may be used from any thread.

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
        self._failure: str | None = None  # why nothing can be answered any more
        self._has_ended = False
        self._step_began: float | None = None
        self._work_began = 0.0
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
            if self._has_ended:
                raise EngineClosedError(f"{self._failure}; load a new one")
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

    @property
    def num_positions(self) -> int:
        """See `Scheduler.num_positions`."""
        return self._scheduler.num_positions

    @property
    def health(self) -> EngineHealth:
        """See `EngineHealth`. Takes no lock, so that it answers also while a step hangs.

        Raises:
            ForkedEngineError: it belongs to another process.
        """
        self._process.check()
        began, load, now = self._step_began, self._load, time.monotonic()
        progressed = max(self._work_began, self._stepper.last_pass)
        return EngineHealth(
            is_closed=self._closed,
            failure=self._failure,
            num_in_hand=load.num_running + load.num_waiting + len(self._inbox),
            step_s=None if began is None else now - began,
            seconds_since_progress=0.0 if began is None else max(0.0, now - progressed),
        )

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
        """Step until the engine is closed. Whatever ends the thread before that, nobody is left waiting."""
        try:
            if self._computes_alone:
                compute_alone()
            while self._wait_for_work():
                self._step_began = time.monotonic()
                try:
                    self._work()
                except Exception as error:
                    logger.exception("the engine could not recover from a failure; all requests in flight fail with it")
                    self._fail_everything(
                        EngineStepError, f"the engine failed with every request in flight: {error}", error
                    )
                self._step_began = None
            self._fail_everything(EngineClosedError, "the engine was closed while the request was in flight")
        except BaseException as error:
            self._end(error)

    def _end(self, error: BaseException) -> None:
        """The thread ends, which nobody wanted. Slots are left as they are; there is nothing to be relied on."""
        self._failure = f"the thread of the engine has ended ({type(error).__name__})"
        self._step_began = None
        logger.critical("%s; nothing can be answered any more", self._failure, exc_info=error)
        with self._wake:
            self._has_ended = True
            left = [*self._scheduler.running, *self._scheduler.waiting, *self._inbox]
            self._inbox.clear()
            self._load = Load(0, 0, 0)
        for sequence in left:
            if not sequence.finished:
                failed = EngineClosedError(f"{self._failure} while the request was in flight")
                failed.__cause__ = error
                sequence.fail(failed)

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
                for sequence in sequences:
                    if isinstance(error, RequestError):  # a grammar that takes more than one may
                        sequence.fail(error)
                        return
                    _log_failure(sequence, "a step of the engine failed for request %s")
                    sequence.fail_step(error)
                self._look_for_loss(error)

    def _look_for_loss(self, error: Exception) -> None:
        """After a step failed for one request alone: find out whether any other could still be answered."""
        if self._failure is not None:
            return
        if isinstance(error, TensorParallelError):
            self._failure = "a process that holds part of a network is lost"
        else:
            try:
                self._stepper.check_device()
            except Exception as lost:
                self._failure = f"the device is lost ({type(lost).__name__})"
        if self._failure is not None:
            logger.critical("%s; every request will fail until the engine is loaded anew", self._failure)

    def _recover_admission(self, error: Exception) -> None:
        """The request whose turn it is got no slots: it waits for memory, or fails."""
        if is_out_of_memory(error) and self._scheduler.postpone():
            logger.warning("memory ran out while a request was admitted; it waits until others are done")
            return
        sequence = self._scheduler.waiting[0]
        if isinstance(error, KVCacheBudgetError):
            sequence.fail(error)
            return
        _log_failure(sequence, "request %s could not be admitted; it fails, the others go on")
        sequence.fail_step(error)

    def _wait_for_work(self) -> bool:
        """Take in what arrived; sleep while there is nothing to do. False once the engine is closed."""
        with self._wake:
            was_idle = not self._scheduler.has_work
            while not (self._closed or self._inbox or self._scheduler.has_work):
                release_workers()
                self._wake.wait()
            if was_idle:
                self._work_began = time.monotonic()
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


def _log_failure(sequence: Sequence, message: str) -> None:
    """Where an exception is handled."""
    request_id = sequence.request.request_id
    logger.exception(message, request_id, extra={"request_id": request_id})
