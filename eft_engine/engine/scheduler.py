"""Who takes part in the next step: admission in order of arrival, prompts read in chunks, everyone who is ready evaluated."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from eft_engine.engine.prefix_cache import PrefixCache, worth_waiting
from eft_engine.engine.routing import Stream
from eft_engine.engine.sequence import Sequence


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


class Scheduler:
    """Waiting and running sequences of one engine. Belongs to the engine's thread."""

    def __init__(self, *, max_num_seqs: int, prefill_chunk_len: int, prefixes: PrefixCache) -> None:
        self._prefixes = prefixes
        self._max_num_seqs = max_num_seqs
        self._prefill_chunk_len = prefill_chunk_len
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.waiting.append(sequence)

    def drop_finished(self) -> None:
        """Let go of finished and cancelled sequences and of their slots."""
        for sequence in self.running:
            if sequence.finished or sequence.cancelled:
                self._let_go(sequence)
        self.running = [s for s in self.running if not (s.finished or s.cancelled)]
        self.waiting = deque(s for s in self.waiting if not (s.finished or s.cancelled))

    def plan(self) -> StepPlan:
        """Admit what fits and divide the step's prompt budget in order of arrival.

        A step reads at most `prefill_chunk_len` prompt tokens, so running streams wait for at most one chunk. A sequence's
        last chunk is part of its evaluation, in which all its streams take part together.
        """
        while self.waiting and len(self.running) < self._max_num_seqs and not self._should_wait(self.waiting[0]):
            self._admit(self.waiting.popleft())
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

    def _admit(self, sequence: Sequence) -> None:
        in_use = [(stream, running.output_ids) for running in self.running for stream in running.streams]
        for stream in sequence.streams:
            self._prefixes.attach(stream, in_use)
        sequence.clock.start()
        self.running.append(sequence)

    def _let_go(self, sequence: Sequence) -> None:
        """Keep the slots of a sequence warm; those of a failed one may hold NaN and are erased."""
        for stream in sequence.streams:
            if stream.slot is None:
                continue
            if sequence.failed:
                stream.network.kv_cache.release(stream.slot, erase=True)
                stream.slot = None
            else:
                self._prefixes.retire(stream, sequence.output_ids)

    def clear(self) -> list[Sequence]:
        """Forget every sequence and give all slots back; returns those that were not finished."""
        left = [s for s in (*self.running, *self.waiting) if not (s.finished or s.cancelled)]
        for sequence in self.running:
            self._let_go(sequence)
        self._prefixes.clear()
        self.running.clear()
        self.waiting.clear()
        return left
