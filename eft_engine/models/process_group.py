"""The processes that hold a tensor-parallel network together, and the channel by which rank 0 tells the others what to do.

torchrun starts one process per *rank*. Networks talk over the default process group (nccl on GPUs, gloo on CPUs). Messages have a
gloo group of their own, so that they never mix with what a network exchanges. Rank 0 sends at least every quarter of the timeout,
so a rank that hears nothing for the whole of it knows that rank 0 is lost. A rank that no longer listens is noticed by the next
message.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from eft_engine.errors import TensorParallelError

logger = logging.getLogger(__name__)

LOADING_TIMEOUT_S = 3600.0
"""Ranks read weights at different speeds."""

INLINE_BYTES = 4096
"""A message up to this long, its length included, is one broadcast; decode steps are."""

LENGTH_BYTES = 8

Message = Mapping[str, Any]


def current_rank() -> int:
    """Number of this process among those that torchrun started; 0 without torchrun."""
    return distributed.get_rank() if distributed.is_initialized() else int(os.environ.get("RANK", "0"))


def num_ranks() -> int:
    """How many processes there are; 1 without torchrun."""
    return distributed.get_world_size() if distributed.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def accelerator_type() -> str:
    """Where the shards of a tensor-parallel network lie: `cuda`, or `cpu` where there is no accelerator."""
    accelerator = torch.accelerator.current_accelerator()
    return "cpu" if accelerator is None else accelerator.type


def _join(timeout_s: float) -> None:
    """Make the default process group, unless the program has one already."""
    if distributed.is_initialized():
        return
    timeout = timedelta(seconds=timeout_s)
    if accelerator_type() == "cpu":
        distributed.init_process_group("gloo", timeout=timeout)
        return
    device = torch.device(accelerator_type(), int(os.environ.get("LOCAL_RANK", "0")))
    torch.accelerator.set_device_index(device.index)
    distributed.init_process_group(timeout=timeout, device_id=device)


@functools.cache
def _gloo_group(timeout_s: float) -> Any:
    """Kept for later engines of the process: making one takes part of all ranks."""
    return distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))


class RankChannel:
    """Messages from rank 0 to all others, in order. Every rank makes one; on rank 0 any thread may send.

    Args:
        timeout_s: longest wait for another rank.
    """

    def __init__(self, *, timeout_s: float) -> None:
        _join(timeout_s)
        self.rank = distributed.get_rank()
        self._timeout_s = timeout_s
        self._loading_group = _gloo_group(LOADING_TIMEOUT_S)
        self._group = _gloo_group(timeout_s)
        self._turn = threading.RLock()
        self._stopped = threading.Event()
        self._failure: str | None = None
        self._last_sent = time.monotonic()
        self._thread = threading.Thread(target=self._keep_alive, name="eft-ranks", daemon=True)

    @contextmanager
    def agreement(self) -> Iterator[None]:
        """What is done inside succeeds on all ranks or fails on all of them.

        Raises:
            TensorParallelError: it succeeded here and failed elsewhere.
        """
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            failed = error
        failures: list[str | None] = [None] * distributed.get_world_size()
        try:
            distributed.all_gather_object(
                failures, None if failed is None else str(failed) or repr(failed), group=self._loading_group
            )
        except RuntimeError as error:
            raise failed or self._lost("another rank was lost while the network was loaded", error) from error
        if failed is not None:
            raise failed
        for rank, reason in enumerate(failures):
            if reason is not None:
                raise self._lost(f"rank {rank} failed while the network was loaded: {reason}")

    # ---- rank 0 --------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin to send, and to show the others that this rank is there."""
        assert self.rank == 0, "rank 0 sends"
        self._thread.start()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Nothing else is sent meanwhile."""
        with self._turn:
            yield

    def send(self, message: Message) -> None:
        """Tell all other ranks.

        Raises:
            TensorParallelError: one of them is lost, or something failed earlier.
        """
        with self._turn:
            if self._failure is not None:
                raise self._lost(self._failure)
            try:
                self._broadcast(json.dumps(message).encode())
            except RuntimeError as error:
                self.fail("another rank is lost")
                raise self._lost("another rank is lost", error) from error
            self._last_sent = time.monotonic()

    @property
    def failed(self) -> bool:
        """Whether ranks may be out of step, so that nothing more can be run."""
        return self._failure is not None

    def fail(self, reason: str) -> None:
        """Give up: every later `send` raises. The others are told, unless they wait inside a network for this rank."""
        if self._failure is None:
            logger.error("tensor-parallel networks can no longer be run: %s", reason)
            self._failure = reason
        self._stopped.set()

    def close(self) -> None:
        """Let the others end. May be repeated."""
        with self._turn:
            if not self._stopped.is_set():
                self._stopped.set()
                try:
                    self.send({"kind": "close"})
                except TensorParallelError:
                    logger.warning("a rank was lost before the engine was closed")
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _keep_alive(self) -> None:
        """Send when nothing else is sent; in the end, say what failed."""
        interval = self._timeout_s / 4
        while not self._stopped.wait(interval / 2):
            with self._turn:
                quiet_s = time.monotonic() - self._last_sent
                if quiet_s < interval / 2 or self._stopped.is_set():
                    continue
                try:
                    self.send({"kind": "wait"})
                except TensorParallelError:
                    return
        if self._failure is not None:
            try:
                self._broadcast(json.dumps({"kind": "fail", "reason": self._failure}).encode())
            except RuntimeError:
                return  # they notice the silence

    # ---- the other ranks -----------------------------------------------------------------------------------------------

    def receive(self) -> Message:
        """The next message that is more than a sign of life; waits as long as rank 0 shows itself.

        Raises:
            TensorParallelError: rank 0 is lost, or says that it failed.
        """
        while True:
            try:
                message: Message = json.loads(self._broadcast(None))
            except RuntimeError as error:
                reason = f"rank 0 ended without closing its engine, or was silent for {self._timeout_s:g} s"
                raise self._lost(reason, error) from error
            if message["kind"] == "fail":
                raise self._lost(f"rank 0 failed: {message['reason']}")
            if message["kind"] != "wait":
                return message

    # ---- both ----------------------------------------------------------------------------------------------------------

    def _broadcast(self, payload: bytes | None) -> bytes:
        """Rank 0 gives a payload, the others None and get it."""
        room = INLINE_BYTES - LENGTH_BYTES
        first = bytearray(INLINE_BYTES)
        if payload is not None:
            first[:LENGTH_BYTES] = len(payload).to_bytes(LENGTH_BYTES)
            first[LENGTH_BYTES : LENGTH_BYTES + min(len(payload), room)] = payload[:room]
        distributed.broadcast(torch.frombuffer(first, dtype=torch.uint8), src=0, group=self._group)
        length = int.from_bytes(first[:LENGTH_BYTES])
        if length <= room:
            return bytes(first[LENGTH_BYTES : LENGTH_BYTES + length])
        rest = bytearray(length - room) if payload is None else bytearray(payload[room:])
        distributed.broadcast(torch.frombuffer(rest, dtype=torch.uint8), src=0, group=self._group)
        return bytes(first[LENGTH_BYTES:] + rest)

    def _lost(self, reason: str, error: BaseException | None = None) -> TensorParallelError:
        detail = f" ({error})" if error is not None else ""
        return TensorParallelError(f"rank {self.rank}: {reason}{detail}; start all processes again", rank=self.rank)
