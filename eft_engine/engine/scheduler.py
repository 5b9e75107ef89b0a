"""Who takes part in the next step: admission in order of arrival, prompts read in chunks, everyone who is ready evaluated."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import NamedTuple

from eft_engine.engine.prefix_cache import PrefixCache, worth_waiting
from eft_engine.engine.routing import Stream
from eft_engine.engine.sequence import Sequence
from eft_engine.errors import KVCacheBudgetError
from eft_engine.models.network import Network


@dataclass(frozen=True)
class PrefillWork:
    """Let `stream` of `sequence` read `num_tokens` more tokens, without logits."""

    sequence: Sequence
    stream: Stream
    num_tokens: int


@dataclass(frozen=True)
class StepPlan:
    """`prefill` reads prompts; `ready` sequences can be evaluated, all their streams together."""

    prefill: tuple[PrefillWork, ...]
    ready: tuple[Sequence, ...]

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """Everyone who takes part."""
        return tuple(dict.fromkeys([*(work.sequence for work in self.prefill), *self.ready]))

    def only(self, sequences: Collection[Sequence]) -> StepPlan:
        """The part of this plan that concerns `sequences`, without what was read since it was made."""
        works = [
            replace(work, num_tokens=min(work.num_tokens, work.stream.num_pending(work.sequence.output_ids) - 1))
            for work in self.prefill
            if work.sequence in sequences
        ]
        return StepPlan(
            tuple(work for work in works if work.num_tokens > 0),
            tuple(sequence for sequence in self.ready if sequence in sequences),
        )


class Load(NamedTuple):
    """What an engine has in hand at one moment."""

    num_running: int
    num_waiting: int
    """Requests that no step has worked on yet, or that were preempted."""
    num_warm_prefixes: int
    """Conversations that are kept for what may come."""


class Scheduler:
    """Waiting and running sequences of one engine. Belongs to the engine's thread."""

    def __init__(
        self, *, max_num_seqs: int, prefill_chunk_len: int, max_kv_cache_bytes: int | None, prefixes: PrefixCache
    ) -> None:
        self._prefixes = prefixes
        self._max_kv_cache_bytes = max_kv_cache_bytes
        self._max_num_seqs = max_num_seqs
        self._limit = max_num_seqs  # lower for a while after memory ran out
        self._prefill_chunk_len = prefill_chunk_len
        self._networks: dict[Network, None] = {}  # whose caches may hold something, in the order in which they were met
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.waiting or self.running)

    @property
    def load(self) -> Load:
        """What it holds now."""
        return Load(len(self.running), len(self.waiting), self._prefixes.num_warm)

    @property
    def num_positions(self) -> int:
        """Tokens that the running requests hold in their caches; of each the longest of its streams. May be asked in any thread: of
        requests that come or go meanwhile it counts some.
        """
        return sum(max(_length(stream) for stream in sequence.streams) for sequence in tuple(self.running))

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.waiting.append(sequence)
        self._networks.update(dict.fromkeys(stream.network for stream in sequence.streams))

    def drop_finished(self) -> None:
        """Let go of finished and cancelled sequences and of their slots."""
        over = self._over()
        for sequence in over:
            if not sequence.finished:
                sequence.count("cancelled")
        num_before = len(self.running)
        for sequence in self.running:
            if sequence in over:
                self._let_go(sequence)
        self.running = [sequence for sequence in self.running if sequence not in over]
        self._limit = min(self._max_num_seqs, self._limit + num_before - len(self.running))
        self.waiting = deque(sequence for sequence in self.waiting if sequence not in over)

    def _over(self) -> set[Sequence]:
        """Sequences that are finished, or whose callers have left. Callers leave at any moment, so each is looked at once: who
        counts as gone here is counted, loses its slots and is removed; who leaves a moment later does so the next time.
        """
        return {sequence for sequence in (*self.running, *self.waiting) if sequence.finished or sequence.is_left}

    def plan(self) -> StepPlan:
        """Admit what fits and divide the step's prompt budget in order of arrival.

        A step reads at most `prefill_chunk_len` prompt tokens, so running streams wait for at most one chunk. A sequence's
        last chunk is part of its evaluation, in which all its streams take part together; or its last token alone, see
        `Sequence.ends_alone`.
        """
        while self.waiting and len(self.running) < self._limit and not self._should_wait(self.waiting[0]):
            if not self._has_room(self.waiting[0]):
                break
            self._admit(self.waiting[0])
            self.running.append(self.waiting.popleft())
        budget = self._prefill_chunk_len
        prefill: list[PrefillWork] = []
        ready: list[Sequence] = []
        for sequence in self.running:
            num_pending = sequence.num_pending
            if num_pending == 1:
                ready.append(sequence)
            elif num_pending <= budget:
                if sequence.ends_alone:
                    prefill += _chunks(sequence, budget)
                ready.append(sequence)
                budget -= num_pending
            elif budget > 0:
                prefill += _chunks(sequence, budget)
                budget = 0
        return StepPlan(tuple(prefill), tuple(ready))

    def _should_wait(self, sequence: Sequence) -> bool:
        streams = [stream for running in self.running for stream in running.streams]
        return any(worth_waiting(stream, streams) for stream in sequence.streams)

    def _has_room(self, sequence: Sequence) -> bool:
        """Whether the caches stay in their budget with this sequence; warm prefixes give way to it.

        Raises:
            KVCacheBudgetError: it does not fit, although nothing runs beside it.
        """
        if self._max_kv_cache_bytes is None or self._num_bytes_with(sequence) <= self._max_kv_cache_bytes:
            return True
        num_bytes = self._num_bytes_with(sequence)
        while num_bytes > self._max_kv_cache_bytes and self._prefixes.drop_oldest():
            self._trim()
            num_bytes = self._num_bytes_with(sequence)
        if num_bytes > self._max_kv_cache_bytes and not self.running:
            self._trim()
            num_bytes = self._num_bytes_with(sequence)
        if num_bytes > self._max_kv_cache_bytes and not self.running:
            raise KVCacheBudgetError(
                f"a prompt of {max(len(stream.prompt_ids) for stream in sequence.streams)} tokens and up to "
                f"{sequence.max_output_len} new ones need {num_bytes:,} bytes of key/value cache; max_kv_cache_bytes allows "
                f"{self._max_kv_cache_bytes:,}. Shorten the prompt, lower max_tokens, or raise the budget",
                needed_bytes=num_bytes,
                max_bytes=self._max_kv_cache_bytes,
            )
        return num_bytes <= self._max_kv_cache_bytes

    def _num_bytes_with(self, sequence: Sequence) -> int:
        """Bytes of all caches, should this sequence run too."""
        own: dict[Network, list[int]] = defaultdict(list)
        for stream in sequence.streams:
            own[stream.network].append(stream.reserved_len(sequence.max_output_len))
        others = self._networks.keys() - own.keys()
        return sum(network.kv_cache.num_bytes_with(lengths) for network, lengths in own.items()) + sum(
            network.kv_cache.num_bytes for network in others
        )

    def _admit(self, sequence: Sequence) -> None:
        """Give a waiting sequence its slots, all of them or none."""
        in_use = [(stream, running.output_ids) for running in self.running for stream in running.streams]
        try:
            for stream in sequence.streams:
                self._prefixes.attach(stream, in_use)
                assert stream.slot is not None
                stream.slot.reserved_len = stream.reserved_len(sequence.max_output_len)
        except BaseException:
            self._erase(sequence)
            raise
        sequence.clock.start()

    def postpone(self) -> bool:
        """Let the next newcomer wait, for whom there is no memory; warm prefixes go.

        False when nothing runs that could make room for it.
        """
        had_warm = self._prefixes.clear()
        self._limit = max(1, len(self.running))
        self._trim()
        return had_warm or bool(self.running)

    def preempt(self, sequence: Sequence) -> None:
        """Take the slots of a running sequence away and queue it first. What it has generated stays, and is read again when
        it is its turn, so its text does not change.
        """
        self.running.remove(sequence)
        self._erase(sequence)
        self.waiting.appendleft(sequence)

    def shrink(self) -> bool:
        """Make room after memory ran out: warm prefixes go, the newer half of the running sequences waits, caches are trimmed.

        As sequences finish, more may run together again. False when there was nothing to give up.
        """
        had_warm = self._prefixes.clear()
        num_running = len(self.running)
        if num_running > 1:
            self._limit = num_running // 2
            for sequence in reversed(self.running[self._limit :]):
                self.preempt(sequence)
        self._trim()
        return had_warm or num_running > 1

    def _trim(self) -> None:
        for network in self._networks:
            network.kv_cache.trim()

    def _let_go(self, sequence: Sequence) -> None:
        """Keep the slots of a sequence warm; those of a failed one may hold NaN and are erased."""
        if sequence.failed:
            self._erase(sequence)
            return
        self._prefixes.retire(sequence.streams, sequence.output_ids)

    def _erase(self, sequence: Sequence) -> None:
        for stream in sequence.streams:
            slot, stream.slot = stream.slot, None
            if slot is not None:
                stream.network.kv_cache.release(slot, erase=True)

    def clear(self) -> list[Sequence]:
        """Forget every sequence and give all slots back; returns those that somebody waits for."""
        over, left = self._over(), [*self.running, *self.waiting]
        for sequence in over:
            if not sequence.finished:
                sequence.count("cancelled")
        for sequence in self.running:
            self._erase(sequence)
        self._prefixes.clear()
        self.running.clear()
        self.waiting.clear()
        return [sequence for sequence in left if sequence not in over]


def _chunks(sequence: Sequence, budget: int) -> list[PrefillWork]:
    """What the streams that come next read ahead of their last token, at most `budget` tokens each."""
    chunks = [
        PrefillWork(sequence, stream, min(stream.num_pending(sequence.output_ids) - 1, budget))
        for stream in sequence.next_streams
    ]
    return [chunk for chunk in chunks if chunk.num_tokens > 0]


def _length(stream: Stream) -> int:
    return 0 if (slot := stream.slot) is None else slot.length
