"""Who takes part in the next step: admission in order of arrival, prompts read in chunks, everyone who is ready evaluated."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, replace

from eft_engine.engine.prefix_cache import PrefixCache, worth_waiting
from eft_engine.engine.routing import Stream
from eft_engine.engine.sequence import Sequence
from eft_engine.errors import KVCacheBudgetError


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
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.waiting or self.running)

    @property
    def num_warm_prefixes(self) -> int:
        """Slots that are kept for what may come."""
        return self._prefixes.num_warm

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.waiting.append(sequence)

    def drop_finished(self) -> None:
        """Let go of finished and cancelled sequences and of their slots."""
        for sequence in (*self.running, *self.waiting):
            if sequence.cancelled and not sequence.finished:
                sequence.count("cancelled")
        for sequence in self.running:
            if sequence.finished or sequence.cancelled:
                self._let_go(sequence)
        num_before = len(self.running)
        self.running = [s for s in self.running if not (s.finished or s.cancelled)]
        self._limit = min(self._max_num_seqs, self._limit + num_before - len(self.running))
        self.waiting = deque(s for s in self.waiting if not (s.finished or s.cancelled))

    def plan(self) -> StepPlan:
        """Admit what fits and divide the step's prompt budget in order of arrival.

        A step reads at most `prefill_chunk_len` prompt tokens, so running streams wait for at most one chunk. A sequence's
        last chunk is part of its evaluation, in which all its streams take part together.
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
                ready.append(sequence)
                budget -= num_pending
            elif budget > 0:
                chunks = [
                    PrefillWork(sequence, stream, min(stream.num_pending(sequence.output_ids) - 1, budget))
                    for stream in sequence.streams
                ]
                prefill += [chunk for chunk in chunks if chunk.num_tokens > 0]
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
        if self._prefixes.clear() or not self.running:
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
        """Bytes of all caches, should this sequence run too. Its streams on one network are counted as one slot."""
        own = {stream.network: stream.reserved_len(sequence.max_output_len) for stream in sequence.streams}
        others = {stream.network for running in self.running for stream in running.streams} - own.keys()
        return sum(network.kv_cache.num_bytes_with(length) for network, length in own.items()) + sum(
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
        for network in {stream.network for sequence in (*self.running, *self.waiting) for stream in sequence.streams}:
            network.kv_cache.trim()

    def _let_go(self, sequence: Sequence) -> None:
        """Keep the slots of a sequence warm; those of a failed one may hold NaN and are erased."""
        if sequence.failed:
            self._erase(sequence)
            return
        for stream in sequence.streams:
            self._prefixes.retire(stream, sequence.output_ids)

    def _erase(self, sequence: Sequence) -> None:
        for stream in sequence.streams:
            slot, stream.slot = stream.slot, None
            if slot is not None:
                stream.network.kv_cache.release(slot, erase=True)

    def clear(self) -> list[Sequence]:
        """Forget every sequence and give all slots back; returns those that were not finished."""
        left = [s for s in (*self.running, *self.waiting) if not (s.finished or s.cancelled)]
        for sequence in self.running:
            self._erase(sequence)
        self._prefixes.clear()
        self.running.clear()
        self.waiting.clear()
        return left
