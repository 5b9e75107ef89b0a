"""Forward passes that are recorded once and replayed: on a GPU, launching the kernels of a small network takes longer than running
them, and a CUDA graph launches all of them at once.

A recording has fixed shapes and reads its inputs from fixed places. So a pass is padded: to a number of rows (the slots from 0 on;
rows that do not take part write behind their last valid position, where nothing is read), of columns, and of cached positions
that may be read. Padding changes no result; short rows of ordinary passes are padded the same way.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from eft_engine.models.adapters import AdapterRows
from eft_engine.models.kv_cache import SlotKVCache
from eft_engine.models.layout import BatchLayout
from eft_engine.models.memory import is_out_of_memory
from eft_engine.models.network import KVSlot
from eft_engine.transfer import upload

logger = logging.getLogger(__name__)

MAX_RECORDED_TOKENS = 128
"""Larger passes keep a GPU busy for longer than their launches take."""

MAX_RECORDINGS = 64
"""Recordings kept per network, the least recently used go first; each holds memory for what happens inside it."""

MIN_WINDOW = 256


class Recorder(Protocol):
    """Records what a function does to tensors."""

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """Something that does it again, and where its result then lies."""

    def forget(self) -> None:
        """No recording made before is in use any more."""


class CudaGraphRecorder:
    """CUDA graphs. Recordings of one network share memory, since they never run side by side. Those of several networks do, so each
    network records in a stream of its own: matrix products keep their workspace by stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """See `Recorder`. Libraries choose their kernels in ordinary runs before."""
        here = torch.cuda.current_stream(self._device)
        try:
            self._stream.wait_stream(here)
            with torch.cuda.stream(self._stream):
                for _ in range(2):
                    run()
            here.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                result = run()
        finally:
            torch.cuda.set_stream(here)  # a capture that cannot begin leaves its own stream behind
        return graph.replay, result

    def forget(self) -> None:
        """See `Recorder`. A pool whose recordings are all gone takes no new ones."""
        self._pool = torch.cuda.graph_pool_handle()


def recorder_for(model: torch.nn.Module) -> Recorder | None:
    """What records the passes of this model: CUDA graphs where all of it lies on one GPU, else nothing."""
    devices = {parameter.device for parameter in model.parameters()}
    (device, *others) = devices
    return CudaGraphRecorder(device) if device.type == "cuda" and not others else None


@dataclass(frozen=True)
class Shape:
    """Padded rows, columns and readable positions of a pass."""

    num_rows: int
    num_columns: int
    window: int


@dataclass(frozen=True)
class Recording:
    """A pass, the places that its inputs are copied to, and where its logits `[rows, columns, width]` lie."""

    inputs: Tensor
    """`[3, rows, columns]`: token ids, positions, and the positions that keys and values are written to."""
    adapters: dict[str, Tensor]
    """By adapter: which rows have it, bool `[rows]`."""
    places: Tensor
    """0, 1, ... as `[rows, 1]`. Read in every replay, so it lives as long as the recording."""
    replay: Callable[[], object]
    logits: Tensor


class RecordedPasses:
    """The recordings of one network, made when a shape is first met. A network that does not let itself be recorded (one that looks
    at its numbers on the way, say) has none: its passes run as they are, and the log says so once.

    Args:
        kv_cache: what the passes read and write; recordings end when its buffers move.
        run: the network's forward pass over ids and positions `[rows, columns]`, a layout, and rows with adapters; logits
            `[rows, columns, width]`.
        recorder: how passes are recorded.
        name: of the network, for the log.
        device: where ids and positions are wanted.
    """

    def __init__(
        self,
        kv_cache: SlotKVCache,
        run: Callable[[Tensor, Tensor, BatchLayout, AdapterRows], Tensor],
        *,
        recorder: Recorder,
        name: str,
        device: torch.device,
    ) -> None:
        self._name = name
        self._kv_cache = kv_cache
        self._run = run
        self._recorder = recorder
        self._device = device
        self._recordings: OrderedDict[Shape, Recording] = OrderedDict()
        self._buffers_version = -1
        self._impossible = False
        self.num_made = 0
        self.num_replayed = 0

    def shape_of(self, slots: Sequence[KVSlot], num_tokens: Sequence[int]) -> Shape | None:
        """The recording that these slots, which lie from place 0 on, would use; None for passes that are too large for one, for the
        first of all, which makes the buffers, for all once recording one has failed, and where layers keep states.
        """
        if self._impossible or self._kv_cache.buffers_version == 0 or self._kv_cache.states:
            return None
        num_rows = min(_power_of_two(len(slots)), self._kv_cache.num_slots)
        num_columns = _power_of_two(max(num_tokens))
        # Every row is inside of the window with all its columns, those that do not count included.
        num_positions = max(self._kv_cache.lengths_at(num_rows)) + num_columns
        shape = Shape(num_rows, num_columns, max(MIN_WINDOW, _power_of_two(num_positions)))
        return shape if shape.num_rows * shape.num_columns <= MAX_RECORDED_TOKENS else None

    def forget(self) -> None:
        """Drop all recordings: the network itself changes."""
        if self._recordings:
            self._recordings.clear()
            self._recorder.forget()

    def forward(
        self,
        shape: Shape,
        slots: Sequence[KVSlot],
        token_ids: Tensor,
        num_tokens: Sequence[int],
        adapters: AdapterRows,
    ) -> Tensor | None:
        """Run a pass; logits `[rows, columns, width]`, padding included, valid until the next pass. None where the network does not
        let itself be recorded: nothing has changed then.

        Args:
            shape: see `shape_of`.
            slots: those that take part, at places 0, 1, ...
            token_ids: `[rows, columns]` on the device, as many rows as slots.
            num_tokens: how many columns of each row count.
            adapters: for every adapter of the network, which of the slots have it.
        """
        lengths = self._kv_cache.lengths_at(shape.num_rows)
        counts = [*num_tokens, *[1] * (shape.num_rows - len(slots))]
        first = torch.tensor(lengths)[:, None]
        write_positions = first + torch.arange(shape.num_columns)  # [rows, columns]
        positions = torch.minimum(write_positions, first + torch.tensor(counts)[:, None] - 1)
        self._kv_cache.reserve(shape.window)
        self._kv_cache.fit()
        if self._buffers_version != self._kv_cache.buffers_version:
            self.forget()
            self._buffers_version = self._kv_cache.buffers_version
        recording = self._recordings.get(shape)
        if recording is None:
            inputs = torch.zeros(3, shape.num_rows, shape.num_columns, dtype=torch.long, device=self._device)
            on = {name: torch.zeros(shape.num_rows, dtype=torch.bool, device=self._device) for name in adapters}
        else:
            inputs, on = recording.inputs, recording.adapters
            self._recordings.move_to_end(shape)
        inputs[1:].copy_(upload(torch.stack([positions, write_positions]), self._device), non_blocking=True)
        inputs[0, : len(slots), : token_ids.shape[1]].copy_(token_ids, non_blocking=True)
        for name, rows in adapters.items():
            on[name][: len(slots)].copy_(upload(rows, self._device), non_blocking=True)
        if recording is None:
            try:
                recording = self._record(shape, inputs, on)
            except Exception as error:
                # Whatever a recording cannot hold. What is wrong with the pass itself comes back in an ordinary one.
                if is_out_of_memory(error):
                    raise
                self._impossible = True
                self.forget()
                logger.warning("The passes of %s run without CUDA graphs: recording one failed: %s", self._name, error)
                return None
        recording.replay()
        self.num_replayed += 1
        return recording.logits

    def _record(self, shape: Shape, inputs: Tensor, on: dict[str, Tensor]) -> Recording:
        places = torch.arange(shape.num_rows, device=self._device)[:, None]

        def run() -> Tensor:
            # A fresh layout each time, so that masks are computed inside of the recording, from the inputs of its replay.
            layout = BatchLayout.at(inputs[1], inputs[2], places, window=shape.window)
            return self._run(inputs[0], inputs[1], layout, on)

        replay, logits = self._recorder.record(run)
        if len(self._recordings) == MAX_RECORDINGS:
            self._recordings.popitem(last=False)
        recording = Recording(inputs, on, places, replay, logits)
        self._recordings[shape] = recording
        self.num_made += 1
        return recording


def _power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`.

    >>> [_power_of_two(number) for number in (1, 2, 3, 9)]
    [1, 2, 4, 16]
    """
    return 1 << (number - 1).bit_length()
