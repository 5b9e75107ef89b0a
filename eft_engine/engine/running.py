"""Running blocks over their networks: grouping, normalising, and keeping account of what forward passes cost."""

from __future__ import annotations

import enum
import statistics
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

import torch
from torch import Tensor

from eft_engine.decoding.composition import member_logprobs
from eft_engine.engine.metrics import EngineTotals
from eft_engine.engine.side_by_side import threads_side_by_side
from eft_engine.models.network import Block, Network
from eft_engine.models.remembered import recall, remember
from eft_engine.text.vocabulary import SharedVocabulary
from eft_engine.transfer import upload

PADDING_FREE_LEN = 16
"""Blocks up to this long share a forward pass whatever their lengths: reading the weights costs more than padding."""

NUM_REMEMBERED = 9
"""Forward passes of one size whose median time is the estimate for that size."""

APART = 8
"""Sizes up to this one have estimates of their own."""

CALIBRATION_SIZES = (1, 4, 16)
"""Tokens of passes that are timed at first, where what was timed later counts more."""

REMEMBERED_SIZES = (1, 2, 4, 8, 16)
"""The same where nothing is timed later."""
REMEMBERED_ROUNDS = 3

CALIBRATION_ROUNDS = 3
"""Times that networks side by side are timed; the first one starts threads."""

MAX_SIDE_BY_SIDE = 32
"""Networks that run at the same time; with more of them, some wait."""


class Work(enum.Enum):
    """What a step does besides forward passes."""

    DRAW = "draws drafts from logits of small models"
    VERIFY = "composes logits, draws the target's tokens, and tells callers"


Part = Network | Work | frozenset[Network]
"""Of a step: passes of a network, other work, or passes of networks side by side."""


class StepCosts:
    """Seconds of the parts of a step by their size: a network's forward pass by tokens, other work by rows; as they were measured.

    Small sizes are kept apart (kernels often work in blocks of a few rows), larger ones are collected by powers of two. Between two
    sizes the estimate is linear, beyond the largest one proportional.
    """

    def __init__(self) -> None:
        self.is_settled = False
        """Whether estimates stay as they are, whatever is noted."""
        self._noted: dict[Part, dict[int, deque[tuple[int, float]]]] = defaultdict(dict)
        # Asked for many times between two notes.
        self._medians: dict[Part, list[tuple[float, float]]] = {}

    def note(self, part: Part, size: int, seconds: float) -> None:
        """A forward pass over `size` tokens, padding included, or other work on `size` rows, took `seconds`."""
        if self.is_settled:
            return
        sizes = self._noted[part]
        key = size if size <= APART else APART + size.bit_length()
        sizes.setdefault(key, deque(maxlen=NUM_REMEMBERED)).append((size, seconds))
        self._medians.pop(part, None)

    def estimate(self, part: Part, size: int) -> float:
        """Expected seconds; 0 for what was never done, but drawing is taken to be like verifying until it is known."""
        if part not in self._medians and self.is_settled:
            return 0.0
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

    def points(self, part: Part) -> list[tuple[float, float]]:
        """Sizes and the seconds that are expected of them, in order."""
        self.estimate(part, 1)
        return list(self._medians[part])

    def settle(self, points: Mapping[Part, Sequence[tuple[float, float]]]) -> None:
        """From now on these are the estimates, and nothing is noted any more."""
        self._medians = {part: [(size, seconds) for size, seconds in own] for part, own in points.items()}
        self.is_settled = True

    def estimate_passes(self, passes: Mapping[Network, int]) -> float:
        """Expected seconds of an evaluation in which each network reads so many tokens."""
        together = self.estimate(frozenset(passes), 1) if threads_side_by_side(passes) is not None else 0.0
        return together or sum(self.estimate(network, size) for network, size in passes.items())


class StreamRunner:
    """Runs blocks of any networks. Belongs to the engine's thread.

    Args:
        vocabulary: the ids that can be generated.
        device: where distributions are composed.
        totals: what passes are counted in.
        unknown_ids: by network and adapter the kept ids that it cannot read; it gives them no probability.
    """

    def __init__(
        self,
        vocabulary: SharedVocabulary,
        *,
        device: torch.device,
        totals: EngineTotals,
        unknown_ids: Mapping[tuple[Network, str | None], frozenset[int]] | None = None,
    ) -> None:
        self.width = vocabulary.width
        self.device = device
        self._totals = totals
        self.masked_ids = upload(vocabulary.masked_ids, device, dtype=torch.long)
        self.kept_ids = upload(vocabulary.kept_ids, device) if vocabulary.kept_ids else None
        self._unknown_ids = {reader: upload(sorted(own), device) for reader, own in (unknown_ids or {}).items() if own}
        self.costs = StepCosts()
        self._streams: dict[Network, torch.cuda.Stream] = {}
        self._threads = ThreadPoolExecutor(MAX_SIDE_BY_SIDE, thread_name_prefix="eft-network")
        self._overlap_s = 0.0  # of forward passes that ran side by side

    def calibrate(self, networks: Sequence[Network]) -> None:
        """Time passes of a few sizes, so that the first decisions about drafting are not guesses. The first pass of each size
        pays for memory and is not counted; in llama.cpp the first of all, which has all of its memory.
        """
        self._time_passes(networks, CALIBRATION_SIZES, rounds=1)

    def settle_costs(self, networks: Sequence[Network]) -> None:
        """Time passes and the work beside them once on this machine, and go by that from now on, in every process: what is decided
        by costs is then always the same.
        """
        networks = list(dict.fromkeys(networks))
        self._time_passes(networks, (1,), rounds=0)  # which shows what a position takes
        sizes = (self.width, len(networks), torch.get_num_threads(), REMEMBERED_SIZES)
        facts = (*sizes, *(network.fingerprint for network in networks))
        parts: list[Part] = [*networks, *Work]
        if threads_side_by_side(dict.fromkeys(networks, 1)) is not None:
            parts.append(frozenset(networks))
        known = recall("costs", *facts)
        if known is None:
            self._time_passes(networks, REMEMBERED_SIZES, rounds=REMEMBERED_ROUNDS)
            self._time_work(len(networks))
            known = remember("costs", *facts, value=[self.costs.points(part) for part in parts])
        self.costs.settle(dict(zip(parts, known, strict=True)))

    def _time_work(self, num_members: int) -> None:
        """What is done with rows besides passes, about: they are normalised, added up and drawn from."""
        for num_rows in (1, 4, 16):
            logits = torch.zeros(num_rows, self.width, device=self.device)
            for _ in range(REMEMBERED_ROUNDS):
                for work, number in ((Work.DRAW, 1), (Work.VERIFY, num_members)):
                    with self.timing(work, num_rows):
                        for _ in range(number):
                            scores, _ = member_logprobs(logits, self.masked_ids)
                            scores += scores
                        scores.argmax(dim=-1).tolist()

    def _time_passes(self, networks: Sequence[Network], sizes: Sequence[int], *, rounds: int) -> None:
        slots = {network: network.kv_cache.allocate() for network in networks}
        for network, slot in slots.items():
            for num_tokens in sizes:
                for counted in (
                    (False, *[True] * rounds) if num_tokens == 1 or network.num_threads == 0 else [True] * rounds
                ):
                    started = time.perf_counter()
                    network.forward([Block(slot, [0] * num_tokens, 1)])
                    if network.device.type != "cpu":
                        torch.accelerator.synchronize(network.device)
                    if counted:
                        self.costs.note(network, num_tokens, time.perf_counter() - started)
                    slot.truncate(0)
        threads = threads_side_by_side(dict.fromkeys(networks, 1))
        if threads is not None:
            for _ in range(CALIBRATION_ROUNDS):
                self._compute_side_by_side({network: [Block(slot, [0], 1)] for network, slot in slots.items()}, threads)
                for slot in slots.values():
                    slot.truncate(0)
        for network, slot in slots.items():
            network.kv_cache.release(slot)

    @contextmanager
    def timing(self, work: Work, num_rows: int) -> Iterator[None]:
        """Note what the block takes besides forward passes. On an accelerator it only queues, so there nothing is noted."""
        started, forward_s = time.perf_counter(), self._totals.forward_s - self._overlap_s
        yield
        if self.device.type == "cpu":
            forward_s = self._totals.forward_s - self._overlap_s - forward_s
            self.costs.note(work, num_rows, time.perf_counter() - started - forward_s)

    def read(self, blocks: Iterable[tuple[Network, Block]]) -> None:
        """Feed blocks of which no logits are wanted."""
        for network, group in _grouped(blocks):
            self._forward(network, group)

    def logprobs(self, blocks: Iterable[tuple[Network, Block]]) -> Iterator[tuple[list[Block], Tensor, Tensor]]:
        """Feed blocks; yields, group by group, the blocks, their log-probabilities over the shared vocabulary
        `[sum of num_logits, width]` in float32, and the normalisers `[sum of num_logits]`.
        """
        for network, group, logits in self._run(list(_grouped(blocks))):
            if self.kept_ids is None:
                yield group, *member_logprobs(logits[:, : self.width].to(self.device), self.masked_ids)
            else:
                scores = self._of_known_ids(network, group, logits)
                yield group, *member_logprobs(scores, self.masked_ids, self.kept_ids)

    def _of_known_ids(self, network: Network, group: Sequence[Block], logits: Tensor) -> Tensor:
        """Logits `[rows, width]` in float32, -inf where a network has no such id or an id of its own stands there."""
        known = logits[:, : self.width].to(self.device, torch.float32, copy=True)
        scores = torch.nn.functional.pad(known, (0, self.width - known.shape[1]), value=-torch.inf)
        for adapter in {block.adapter for block in group}:
            unknown = self._unknown_ids.get((network, adapter))
            if unknown is not None:
                readers = [block.adapter for block in group for _ in range(block.num_logits)]
                rows = upload([row for row, own in enumerate(readers) if own == adapter], self.device, dtype=torch.long)
                scores[rows[:, None], unknown] = -torch.inf
        return scores

    def _run(self, groups: list[tuple[Network, list[Block]]]) -> Iterator[tuple[Network, list[Block], Tensor]]:
        """Groups and their logits. Networks may run side by side: on a GPU in streams, in llama.cpp in threads of their own."""
        threads = threads_side_by_side(_tokens(groups))
        on_gpu = self.device.type == "cuda" and all(network.device.type == "cuda" for network, _ in groups)
        if threads is not None:
            blocks = dict(groups)
            for network, (logits, seconds) in self._compute_side_by_side(blocks, threads).items():
                self._totals.count_forward(network, 1, seconds)
                yield network, blocks[network], logits
        elif on_gpu and len({network for network, _ in groups}) > 1:
            yield from self._run_in_streams(groups)
        else:
            yield from ((network, group, self._forward(network, group)) for network, group in groups)

    def _compute_side_by_side(
        self, blocks: Mapping[Network, list[Block]], threads: Mapping[Network, int]
    ) -> dict[Network, tuple[Tensor, float]]:
        """Logits and seconds of each network, which reads one token."""
        for network, number in threads.items():
            network.use_threads(number)
        try:
            started = time.perf_counter()
            passes = {network: self._threads.submit(self._timed, network, group) for network, group in blocks.items()}
            wait(passes.values())  # whatever fails: nobody computes when the step goes on
            done = {network: computed.result() for network, computed in passes.items()}
            seconds = time.perf_counter() - started
        finally:
            for network in threads:
                network.use_threads(network.num_threads)
        self.costs.note(frozenset(blocks), 1, seconds)
        self._overlap_s += sum(own for _, own in done.values()) - seconds
        return done

    def _run_in_streams(
        self, groups: list[tuple[Network, list[Block]]]
    ) -> Iterator[tuple[Network, list[Block], Tensor]]:
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
            done.append((network, group, logits))
        for stream in {self._streams[network] for network, _ in groups}:
            here.wait_stream(stream)
        yield from done

    @staticmethod
    def _timed(network: Network, group: list[Block]) -> tuple[Tensor, float]:
        started = time.perf_counter()
        logits = network.forward(group)
        return logits, time.perf_counter() - started

    def _forward(self, network: Network, group: list[Block]) -> Tensor:
        logits, seconds = self._timed(network, group)
        num_tokens = len(group) * max(len(block.token_ids) for block in group)
        if logits.device.type == "cpu":  # elsewhere the pass has only been queued by now
            self.costs.note(network, num_tokens, seconds)
        self._totals.count_forward(network, num_tokens, seconds)
        return logits


def _tokens(groups: Iterable[tuple[Network, list[Block]]]) -> dict[Network, int]:
    """Tokens of each network's passes."""
    tokens: Counter[Network] = Counter()
    for network, group in groups:
        tokens[network] += sum(len(block.token_ids) for block in group)
    return tokens


def _grouped(blocks: Iterable[tuple[Network, Block]]) -> Iterator[tuple[Network, list[Block]]]:
    by_network: dict[Network, list[Block]] = defaultdict(list)
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
