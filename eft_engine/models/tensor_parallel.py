"""A network whose layers are split over several processes, run by rank 0 and followed by the others.

transformers splits the layers (its `tp_plan`): every rank holds some attention heads and some columns of each matrix, computes its
part for all rows, and the parts are added up. So every rank must run the same passes over the same rows in the same order, each
with a key/value cache for its own heads. Rank 0 decides. Ahead of a pass it sends what was done to the cache since the last one,
the lengths of all slots, and the blocks; the others repeat that. Cache operations are deterministic, so all ranks hold the same
rows in the same places, which is compared for every block.
"""

from __future__ import annotations

import atexit
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.distributed import DistributedConfig

from eft_engine.errors import TensorParallelError
from eft_engine.models.kv_cache import SlotKVCache
from eft_engine.models.language_model import LanguageModel
from eft_engine.models.network import Block, KVSlot
from eft_engine.models.process_group import Message, RankChannel
from eft_engine.models.state_rows import StateSlot

SPLITS_HEADS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value")
"""Layers whose output is attention heads, by the names that transformers' plans use."""

_OPEN: WeakSet[RankChannel] = WeakSet()


@atexit.register
def _close_all() -> None:
    """An engine that was never closed ends with its process, and the other ranks with it."""
    for channel in list(_OPEN):
        channel.close()


def loading_arguments() -> dict[str, Any]:
    """What `from_pretrained` needs to split a network over all ranks by the plan of its architecture."""
    return {"distributed_config": DistributedConfig(tp_plan="auto")}


def why_not_split(config: PreTrainedConfig, num_ranks: int) -> str | None:
    """Why the layers of this architecture cannot be split over so many ranks; None when they can."""
    text_config = config.get_text_config()
    plan = getattr(text_config, "base_model_tp_plan", None)
    if not plan:
        return "transformers has no tensor-parallel plan for its architecture"
    if any(style == "colwise" and layer.rsplit(".", 1)[-1] in SPLITS_HEADS for layer, style in plan.items()):
        num_heads = text_config.num_attention_heads
        num_kv_heads = getattr(text_config, "num_key_value_heads", None) or num_heads
        if num_heads % num_ranks or num_kv_heads % num_ranks:
            return f"its {num_heads} heads and {num_kv_heads} key/value heads cannot be dealt out to {num_ranks} ranks evenly"
    return None


class MirroredKVCache(SlotKVCache):
    """A cache that notes what is done to it, so that another rank can repeat it. Slots are numbered as they are allocated."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers: dict[StateSlot, int] = {}
        self._num_allocated = 0
        self._noted: list[tuple[str, list[Any], list[list[int]]]] | None = None

    def start_noting(self) -> None:
        """From now on operations are kept for `take_noted`."""
        self._noted = []

    def stop_noting(self) -> None:
        """There is nobody left to repeat anything."""
        self._noted = None

    def take_noted(self) -> list[tuple[str, list[Any], list[list[int]]]]:
        """Operations since the last time, in order: name, arguments, and the `lengths` that held before."""
        noted = self._noted
        if noted is None:
            return []
        self._noted = []
        return noted

    def lengths(self) -> list[list[Any]]:
        """Of every slot in use: number, length, reserved length, least length, and where it is to be kept."""
        return [
            [number, slot.length, slot.reserved_len, slot.least_len, sorted(slot.keep_at)]
            for slot, number in self._numbers.items()
        ]

    def number(self, slot: KVSlot) -> int:
        """What other ranks call this slot."""
        return self._numbers[self._own(slot)]

    def slots(self, lengths: Sequence[Sequence[Any]]) -> dict[int, StateSlot]:
        """Slots by number, once they have these lengths. `truncate` and reservations reach this rank no other way."""
        slots = {number: slot for slot, number in self._numbers.items()}
        assert list(slots) == [number for number, *_ in lengths], "ranks use the same slots"
        for number, length, reserved_len, least_len, keep_at in lengths:
            slot = slots[number]
            slot.length, slot.reserved_len, slot.least_len, slot.keep_at = (
                length,
                reserved_len,
                least_len,
                frozenset(keep_at),
            )
        return slots

    def repeat(self, operation: str, arguments: list[Any], lengths: list[list[int]]) -> None:
        """Do what another rank noted."""
        slots = self.slots(lengths)
        if operation == "allocate":
            self.allocate()
        elif operation == "release":
            self.release(slots[arguments[0]], erase=arguments[1])
        elif operation == "copy_prefix":
            self.copy_prefix(slots[arguments[0]], slots[arguments[1]], arguments[2])
        else:
            assert operation == "trim", f"{operation} is not an operation"
            self.trim()

    def _note(self, operation: str, arguments: list[Any], lengths: list[list[int]]) -> None:
        if self._noted is not None:
            self._noted.append((operation, arguments, lengths))

    def allocate(self) -> StateSlot:
        """As of `SlotKVCache`."""
        self._note("allocate", [], self.lengths())
        slot = super().allocate()
        self._numbers[slot] = self._num_allocated
        self._num_allocated += 1
        return slot

    def release(self, slot: KVSlot, *, erase: bool = False) -> None:
        """As of `SlotKVCache`."""
        self._note("release", [self.number(slot), erase], self.lengths())
        del self._numbers[self._own(slot)]
        super().release(slot, erase=erase)

    def trim(self) -> None:
        """As of `SlotKVCache`."""
        self._note("trim", [], self.lengths())
        super().trim()

    def copy_prefix(self, source: KVSlot, target: KVSlot, length: int) -> None:
        """As of `SlotKVCache`."""
        lengths = self.lengths()
        super().copy_prefix(source, target, length)
        # Noted once it succeeded: where memory ran out nothing was copied, and the slot is given back.
        self._note("copy_prefix", [self.number(source), self.number(target), length], lengths)


class ShardedLanguageModel(LanguageModel):
    """The part of a network that one rank holds. While it is made, all ranks run the same passes unled; then rank 0 leads."""

    kv_cache_type = MirroredKVCache
    kv_cache: MirroredKVCache
    _channel: RankChannel | None = None

    def lead(self, channel: RankChannel) -> None:
        """On rank 0: let the other ranks follow from now on."""
        self.kv_cache.start_noting()
        self._channel = channel
        _OPEN.add(channel)

    def forward(self, blocks: Sequence[Block]) -> Tensor:
        """As of `LanguageModel`, on all ranks together.

        Raises:
            TensorParallelError: it failed here or elsewhere. Ranks may be out of step then, so every later pass raises too.
        """
        channel = self._channel
        if channel is None:
            return super().forward(blocks)
        with channel.turn():
            try:
                blocks = [block.read() for block in blocks]
                channel.send(self._message(blocks))
                return super().forward(blocks)
            except TensorParallelError:
                raise
            except BaseException as error:
                channel.fail(f"a forward pass of {self.name} failed: {error!r}")
                if not isinstance(error, Exception):
                    raise
                raise TensorParallelError(
                    f"rank 0: a forward pass of {self.name} failed ({error}), and the ranks are out of step; start all "
                    "processes again",
                    rank=0,
                ) from error
            finally:
                self.kv_cache.take_noted()  # what a pass itself does to the cache, it does on all ranks
                if channel.failed:
                    self.kv_cache.stop_noting()

    def _message(self, blocks: Sequence[Block]) -> Message:
        return {
            "kind": "forward",
            "network": self.name,
            "operations": self.kv_cache.take_noted(),
            "lengths": self.kv_cache.lengths(),
            "blocks": [
                [
                    self.kv_cache.number(block.slot),
                    block.slot.index,
                    list(block.token_ids),
                    block.num_logits,
                    block.num_provisional,
                ]
                for block in blocks
            ],
        }

    @torch.inference_mode()
    def repeat(self, message: Message) -> None:
        """On other ranks: do what rank 0 does."""
        for operation in message["operations"]:
            self.kv_cache.repeat(*operation)
        slots = self.kv_cache.slots(message["lengths"])
        blocks = []
        for number, index, token_ids, num_logits, num_provisional in message["blocks"]:
            assert slots[number].index == index, f"slot {number} lies at {slots[number].index}, on rank 0 at {index}"
            blocks.append(Block(slots[number], token_ids, num_logits, num_provisional=num_provisional))
        self.forward(blocks)

    def release(self) -> None:
        """As of `LanguageModel`; on rank 0 the others end."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        super().release()


def follow(networks: Mapping[str, ShardedLanguageModel], channel: RankChannel) -> None:
    """On other ranks: repeat what rank 0 does with these networks, by name, until it closes them.

    Raises:
        TensorParallelError: rank 0 is lost or failed, or something failed here.
    """
    try:
        while (message := channel.receive())["kind"] != "close":
            try:
                networks[message["network"]].repeat(message)
            except Exception as error:
                raise TensorParallelError(
                    f"rank {channel.rank}: a forward pass of {message['network']} failed: {error!r}", rank=channel.rank
                ) from error
    finally:
        for network in networks.values():
            network.release()
