"""Prompts that were read before are not read again: slots of finished requests stay warm, and newcomers start from them.

An agent resends its whole history, a RAG application its system prompt. A stream that starts looks for the slot, warm or in use,
that shares the longest beginning with its prompt. A warm slot that would be mostly used is taken over; from any other one the
beginning is copied, which costs a memory copy instead of a forward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eft_engine.engine.routing import Stream
from eft_engine.models.network import KVSlot, Network

MIN_SHARED_LEN = 16
"""Shorter common beginnings are read again: that is as fast as moving them."""


def common_prefix_len(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of equal tokens at the start, by bisection over slices, which compare at the speed of C.

    >>> common_prefix_len((1, 2, 3), (1, 2, 4, 5)), common_prefix_len((), (1,))
    (2, 0)
    """
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(frozen=True, eq=False)
class ReadPrefix:
    """Tokens that a slot holds. `warm`: no request uses the slot, so it may be taken over."""

    network: Network
    adapter: str | None
    token_ids: tuple[int, ...]
    slot: KVSlot
    warm: bool

    def shared_len(self, stream: Stream) -> int:
        """Tokens at the start of the stream's prompt that this slot can give it; the last one is always left to be read."""
        length = self.common_len(stream)
        return self.network.kv_cache.keepable_len(self.slot, length) if length else 0

    def common_len(self, stream: Stream) -> int:
        """Tokens at the start of the stream's prompt, but for its last one, that the slot has read."""
        if (self.network, self.adapter) != (stream.network, stream.adapter):
            return 0
        return common_prefix_len(self.token_ids, stream.prompt_ids[:-1])


Conversation = list[ReadPrefix]
"""Warm slots of one finished request: one for each of its streams, but for those that a later request has taken over."""


class PrefixCache:
    """The warm slots of one engine, by conversation. Belongs to the engine's thread.

    The slots of a request are kept, counted and given back together. A later request may take over some of them and leave others
    (at weight 0 it runs the base alone); what is left counts as one conversation until its last slot is gone.

    Args:
        max_warm: most conversations kept warm; 0 keeps none, and copying between running requests stays.
    """

    def __init__(self, *, max_warm: int) -> None:
        self._max_warm = max_warm
        self._warm: list[Conversation] = []  # in the order in which they ended

    @property
    def num_warm(self) -> int:
        """Conversations of which at least one slot is kept warm now."""
        return len(self._warm)

    def attach(self, stream: Stream, running: Iterable[tuple[Stream, Sequence[int]]]) -> None:
        """Give `stream` a slot that holds as much of its prompt as any slot does.

        Args:
            stream: without a slot.
            running: streams in use with the output tokens of their sequences.
        """
        in_use = [
            ReadPrefix(other.network, other.adapter, other.read_ids(output_ids), other.slot, warm=False)
            for other, output_ids in running
            if other.slot is not None
        ]
        known = [*(prefix for conversation in self._warm for prefix in conversation), *in_use]
        best = max(known, key=lambda prefix: prefix.shared_len(stream), default=None)
        shared_len = best.shared_len(stream) if best else 0
        cache = stream.network.kv_cache
        if best is None or shared_len < MIN_SHARED_LEN:
            stream.slot = cache.allocate()
        elif best.warm and 2 * shared_len >= len(best.token_ids):
            self._take_over(best)
            stream.slot = best.slot
            stream.slot.truncate(shared_len)
        else:
            stream.slot = cache.allocate()
            cache.copy_prefix(best.slot, stream.slot, shared_len)
        stream.num_cached = stream.slot.length
        stream.slot.least_len = len(stream.prompt_ids)
        if stream.network.has_state:
            # Where others left the same beginning the next ones may too; and the same prompt may come again.
            branches = {prefix.common_len(stream) for prefix in known}
            stream.slot.keep_at = frozenset({length for length in branches if length >= MIN_SHARED_LEN}) | {
                len(stream.prompt_ids) - 1
            }

    def _take_over(self, prefix: ReadPrefix) -> None:
        for conversation in self._warm:
            if prefix in conversation:
                conversation.remove(prefix)
        self._warm = [conversation for conversation in self._warm if conversation]

    def retire(self, streams: Iterable[Stream], output_ids: Sequence[int]) -> None:
        """Keep the slots of a request that is done, those that are worth keeping; the oldest conversation makes room, of those that
        no more networks read than this one.
        """
        ended: Conversation = []
        for stream in streams:
            assert stream.slot is not None, "a stream is retired once"
            held = ReadPrefix(stream.network, stream.adapter, stream.read_ids(output_ids), stream.slot, warm=True)
            held.slot.reserved_len = held.slot.length
            stream.slot = None
            if len(held.token_ids) < MIN_SHARED_LEN:
                _release(held)
            else:
                ended.append(held)
        if ended:
            self._warm.append(ended)
        while len(self._warm) > self._max_warm:
            # One that few networks read does not push out what more of them did.
            fewest = min(map(len, self._warm))
            self._drop(next(own for own in self._warm if len(own) <= max(fewest, len(ended))))

    def drop_oldest(self) -> bool:
        """Give the slots of the conversation back that ended first. False when there is none."""
        if not self._warm:
            return False
        self._drop(self._warm[0])
        return True

    def _drop(self, conversation: Conversation) -> None:
        self._warm.remove(conversation)
        for prefix in conversation:
            _release(prefix)

    def clear(self) -> bool:
        """Give all warm slots back. False when there were none."""
        had_any = bool(self._warm)
        while self.drop_oldest():
            pass
        return had_any


def _release(prefix: ReadPrefix) -> None:
    prefix.network.kv_cache.release(prefix.slot)


def worth_waiting(stream: Stream, running: Iterable[Stream]) -> bool:
    """Whether a running request is about to read a beginning that `stream` shares, so that starting later means reading less."""
    if stream.network.has_state:  # by the time that the beginning was read, more was
        return False
    for other in running:
        if (other.network, other.adapter) == (stream.network, stream.adapter) and other.cache_len < len(
            other.prompt_ids
        ):
            shared_len = common_prefix_len(other.prompt_ids, stream.prompt_ids[:-1])
            if shared_len >= max(4 * MIN_SHARED_LEN, 2 * other.cache_len):
                return True
    return False
