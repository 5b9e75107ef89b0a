"""What the engine needs of a network, whoever computes it.

A network reads ragged blocks of tokens into slots and returns the logits that are wanted. A slot's length is its only state that
others see: taking tokens back is changing it. Two runtimes are behind this: torch (`language_model`) and llama.cpp (`llama_cpp`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from eft_engine.models.work_memory import Widths


@dataclass(eq=False)
class KVSlot:
    """One stream's place in a cache. `length` is the number of valid positions, `reserved_len` how many it may need.

    `least_len` is how long its text will be at least, when it starts to read a longer one piece by piece. `keep_at` are lengths
    at which others may want to begin from it: where layers keep a state, it is copied there.
    """

    index: int
    length: int = 0
    reserved_len: int = 0
    least_len: int = 0
    keep_at: frozenset[int] = frozenset()

    def truncate(self, length: int) -> None:
        """Keep the first `length` positions."""
        assert 0 <= length <= self.length, f"cannot keep {length} of {self.length} positions"
        self.length = length


@dataclass(frozen=True)
class Block:
    """What one stream feeds in one forward pass, and for how many of its last tokens logits are wanted."""

    slot: KVSlot
    token_ids: Sequence[int]
    num_logits: int
    adapter: str | None = None
    num_provisional: int = 0
    """How many of its last tokens may be taken back: drafts."""
    unread_ids: Tensor | None = None
    """The block's last tokens where only the device knows them yet; `token_ids` has placeholders there."""

    def read(self) -> Block:
        """The same block with all of its tokens known to the host, which waits for the device if it must."""
        if self.unread_ids is None:
            return self
        known = self.token_ids[: len(self.token_ids) - len(self.unread_ids)]
        return replace(self, token_ids=[*known, *self.unread_ids.tolist()], unread_ids=None)


class KVCache(Protocol):
    """The slots of one network and the memory behind them. Belongs to the thread that runs the network."""

    @property
    def num_bytes(self) -> int:
        """Bytes held."""

    def num_bytes_with(self, needed_lens: Sequence[int]) -> int:
        """Bytes held once so many more slots are in use, and slots have the length that they or the new ones may need."""

    def allocate(self) -> KVSlot:
        """A free slot, empty."""

    def release(self, slot: KVSlot, *, erase: bool = False) -> None:
        """Give the slot back. `erase`: it may hold NaN, which must not reach others."""

    def keepable_len(self, slot: KVSlot, length: int) -> int:
        """How many of the first `length` positions the slot can go on from, without reading them again."""

    def resumable_len(self, slot: KVSlot, length: int) -> int:
        """How many of the first `length` positions the slot itself can go on from, as `length` may be set back to them."""

    def copy_prefix(self, source: KVSlot, target: KVSlot, length: int) -> None:
        """Let `target`, which is empty, begin with the first `length` positions of `source`; these are `keepable_len`."""

    def trim(self) -> None:
        """Give back the memory that no slot in use needs."""


class Network(ABC):
    """A causal language model, run over slots."""

    name: str
    """What it is called in reports and errors."""
    device: torch.device
    """Where the logits lie."""
    logits_width: int
    vocab_size: int
    """It reads ids below this one."""
    context_len: int
    kv_cache: KVCache
    num_threads: int = 0
    """Threads of its own that it computes with, in whose way torch's would be; 0: it computes with torch's."""
    drafter: Network | None = None
    """A faster and less exact copy of it over the same slots. What that reads must be taken back before anything else is read."""
    weight_bytes: int = 0
    """Bytes that it reads in a pass; told by networks with threads of their own."""

    @property
    def has_state(self) -> bool:
        """Whether layers keep a state, so that others can begin from a text only where one was kept."""
        return False

    @property
    def is_invariant(self) -> bool:
        """Whether a row's logits depend on its text alone, to the bit: not on what is read beside it or with it."""
        return False

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """What its passes cost on a machine follows from this."""

    @abstractmethod
    def forward(self, blocks: Sequence[Block]) -> Tensor:
        """Feed every block to its slot and advance the slots' lengths.

        Returns:
            Logits `[sum of num_logits, logits_width]`, any float dtype, block after block in the order given; for each block
            those after its last `num_logits` tokens, oldest first.
        """

    def work_bytes(self, *, num_tokens: int, num_logits: int) -> int:
        """About the most bytes that are alive during a pass, beside weights and caches."""
        return Widths(self.logits_width).pass_bytes(num_tokens=num_tokens, num_logits=num_logits)

    def use_threads(self, number: int) -> None:
        """Compute with so many of `num_threads` from now on; only for networks that have threads of their own."""
        raise NotImplementedError

    @abstractmethod
    def with_adapter(self, adapter: Path, *, member: str) -> tuple[Network, str | None]:
        """The network that runs `member`, this one's weights with an adapter on top, and the adapter's name in its blocks.

        Args:
            adapter: a PEFT folder, or a file of the network's own format.
            member: whom errors name.

        Raises:
            UnsafeWeightsError, CorruptWeightsError, UnsupportedAdapterError: the adapter is not one for this network.
        """

    @abstractmethod
    def release(self) -> None:
        """Give back everything; the network is not run again."""
