"""Running blocks over their networks: grouping, normalising, and keeping account of what forward passes cost."""

from __future__ import annotations

import enum
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from eft_engine.decoding.composition import member_logprobs
from eft_engine.engine.metrics import EngineTotals
from eft_engine.models.language_model import Block, LanguageModel
from eft_engine.text.vocabulary import SharedVocabulary

PADDING_FREE_LEN = 16
"""Blocks up to this long share a forward pass whatever their lengths: reading the weights costs more than padding."""

NUM_REMEMBERED = 9
"""Forward passes of one size whose median time is the estimate for that size."""

CALIBRATION_SIZES = (1, 4, 16)


class Work(enum.Enum):
    """What a step does besides forward passes."""

    DRAW = "draws drafts from logits of small models"
    VERIFY = "composes logits, draws the target's tokens, and tells callers"


class StepCosts:
    """Seconds of the parts of a step by their size: a network's forward pass by tokens, other work by rows; as they were measured.

    They are collected by powers of two of the size. Between two sizes the estimate is linear, beyond the largest one proportional.
    """

    def __init__(self) -> None:
        self._noted: dict[LanguageModel | Work, dict[int, deque[tuple[int, float]]]] = defaultdict(dict)
        # Asked for many times between two notes.
        self._medians: dict[LanguageModel | Work, list[tuple[float, float]]] = {}

    def note(self, part: LanguageModel | Work, size: int, seconds: float) -> None:
        """A forward pass over `size` tokens, padding included, or other work on `size` rows, took `seconds`."""
        sizes = self._noted[part]
        sizes.setdefault(size.bit_length(), deque(maxlen=NUM_REMEMBERED)).append((size, seconds))
        self._medians.pop(part, None)

    def estimate(self, part: LanguageModel | Work, size: int) -> float:
        """Expected seconds; 0 for what was never done, but drawing is taken to be like verifying until it is known."""
        if part not in self._medians:
            self._medians[part] = sorted(
                (statistics.median(size for size, _ in noted), statistics.median(seconds for _, seconds in noted))
                for noted in self._noted[part].values()
            )
        points = self._medians[part]
        if not points:
            return self.estimate(Work.VERIFY, size) if part is Work.DRAW else 0.0
        above = next((index for index, (known, _) in enumerate(points) if known >= size), None)
        if above is None:
            known, seconds = points[-1]
            return seconds * size / known
        if above == 0:
            return points[0][1]
        (left, left_seconds), (right, right_seconds) = points[above - 1 : above + 1]
        return left_seconds + (right_seconds - left_seconds) * (size - left) / (right - left)


class StreamRunner:
    """Runs blocks of any networks. Belongs to the engine's thread."""

    def __init__(self, vocabulary: SharedVocabulary, *, device: torch.device, totals: EngineTotals) -> None:
        self.width = vocabulary.width
        self.device = device
        self._totals = totals
        self.masked_ids = torch.tensor(vocabulary.masked_ids, dtype=torch.long, device=device)
        self.costs = StepCosts()
        self._streams: dict[LanguageModel, torch.cuda.Stream] = {}

    def calibrate(self, networks: Iterable[LanguageModel]) -> None:
        """Time passes of a few sizes, so that the first decisions about drafting are not guesses. The first pass of each size
        pays for memory and is not counted.
        """
        for network in networks:
            slot = network.kv_cache.allocate()
            for num_tokens in CALIBRATION_SIZES:
                for counted in (False, True):
                    started = time.perf_counter()
                    network.forward([Block(slot, [0] * num_tokens, 1)])
                    if network.device.type != "cpu":
                        torch.accelerator.synchronize(network.device)
                    if counted:
                        self.costs.note(network, num_tokens, time.perf_counter() - started)
                    slot.truncate(0)
            network.kv_cache.release(slot)

    @contextmanager
    def timing(self, work: Work, num_rows: int) -> Iterator[None]:
        """Note what the block takes besides forward passes. On an accelerator it only queues, so there nothing is noted."""
        started, forward_s = time.perf_counter(), self._totals.forward_s
        yield
        if self.device.type == "cpu":
            self.costs.note(work, num_rows, time.perf_counter() - started - (self._totals.forward_s - forward_s))

    def read(self, blocks: Iterable[tuple[LanguageModel, Block]]) -> None:
        """Feed blocks of which no logits are wanted."""
        for network, group in _grouped(blocks):
            self._forward(network, group)

    def logprobs(self, blocks: Iterable[tuple[LanguageModel, Block]]) -> Iterator[tuple[list[Block], Tensor, Tensor]]:
        """Feed blocks; yields, group by group, the blocks, their log-probabilities over the shared vocabulary
        `[sum of num_logits, width]` in float32, and the normalisers `[sum of num_logits]`.
        """
        for group, logits in self._run(list(_grouped(blocks))):
            yield group, *member_logprobs(logits[:, : self.width].to(self.device), self.masked_ids)

    def _run(self, groups: list[tuple[LanguageModel, list[Block]]]) -> Iterator[tuple[list[Block], Tensor]]:
        """Groups and their logits; on a GPU, networks run side by side, each in a stream of its own."""
        if self.device.type != "cuda" or len({network for network, _ in groups}) < 2:
            yield from ((group, self._forward(network, group)) for network, group in groups)
            return
        here = torch.cuda.current_stream(self.device)
        done = []
        for network, group in groups:
            if network not in self._streams:
                self._streams[network] = torch.cuda.Stream(network.device)  # type: ignore[no-untyped-call]
            stream = self._streams[network]
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                logits = self._forward(network, group)
            logits.record_stream(here)
            done.append((group, logits))
        for stream in {self._streams[network] for network, _ in groups}:
            here.wait_stream(stream)
        yield from done

    def _forward(self, network: LanguageModel, group: list[Block]) -> Tensor:
        started = time.perf_counter()
        logits = network.forward(group)
        seconds = time.perf_counter() - started
        num_tokens = len(group) * max(len(block.token_ids) for block in group)
        if logits.device.type == "cpu":  # elsewhere the pass has only been queued by now
            self.costs.note(network, num_tokens, seconds)
        self._totals.count_forward(network, num_tokens, seconds)
        return logits


def _grouped(blocks: Iterable[tuple[LanguageModel, Block]]) -> Iterator[tuple[LanguageModel, list[Block]]]:
    by_network: dict[LanguageModel, list[Block]] = defaultdict(list)
    for network, block in blocks:
        by_network[network].append(block)
    for network, own in by_network.items():
        for group in group_by_length(own):
            yield network, group


def group_by_length(blocks: Iterable[Block]) -> list[list[Block]]:
    """Blocks that share a forward pass: rows are padded to the longest, so a long one is not mixed with much shorter ones."""
    groups: list[list[Block]] = []
    for block in sorted(blocks, key=lambda block: -len(block.token_ids)):
        if groups:
            longest = len(groups[-1][0].token_ids)
            if longest <= PADDING_FREE_LEN or 2 * len(block.token_ids) > longest:
                groups[-1].append(block)
                continue
        groups.append([block])
    return groups
