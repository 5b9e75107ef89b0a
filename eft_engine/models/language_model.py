"""One network under the engine: feeds ragged blocks of tokens to its slots and returns only the logits that are wanted."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eft_engine.errors import UnsupportedModelError
from eft_engine.models.adapters import AdapterRows, AdapterSwitch
from eft_engine.models.held_model import HeldModel, HeldWeights
from eft_engine.models.kv_cache import SlotKVCache
from eft_engine.models.layers import CACHE_ARGUMENTS, cache_argument
from eft_engine.models.layout import BatchLayout
from eft_engine.models.linear import PackedLayers
from eft_engine.models.network import Block, KVSlot, Network
from eft_engine.models.recording import RecordedPasses, Recorder
from eft_engine.models.self_check import WHAT_TO_DO, before_adapter, check_adapter_rows, check_network
from eft_engine.models.skeleton import context_len_of_config
from eft_engine.models.state_rows import StateSlot
from eft_engine.models.states import STEPWISE_LEN
from eft_engine.models.support import why_refused
from eft_engine.models.work_memory import widths_of
from eft_engine.transfer import upload


class LanguageModel(Network):
    """A causal language model of transformers, run over slots.

    While it is held here the model's attention function, its output layer and, on a CPU, its linear layers are ours; `release`
    gives the model back as it came.

    Args:
        model: on its device(s), any dtype; it is put into eval mode.
        name: what to call it in reports and errors.
        attention: which of `ATTENTION_BACKENDS` computes its attention.
        self_check: compare what it says in the engine's hands with what it says by itself (see `self_check`).
        recorder: record and replay passes of few tokens (see `recording`); None: do not.
        keep_weights: see `linear.pack_linear`; False for a model that nobody else holds.
        held_weights: what becomes of its weights instead of that.

    Raises:
        UnsupportedModelError: the model has no output layer, the attention backend cannot run it, or the engine's way of running
            it changes its logits.
    """

    rounds_rows = False
    """Whether rows are rounded to whole numbers before they are multiplied with weights."""
    kv_cache_type: ClassVar[type[SlotKVCache]] = SlotKVCache
    kv_cache: SlotKVCache

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        name: str,
        attention: str = "sdpa",
        self_check: bool = True,
        recorder: Recorder | None = None,
        keep_weights: bool = True,
        held_weights: HeldWeights | None = None,
    ) -> None:
        reason = why_refused(model)
        if reason is not None:
            raise UnsupportedModelError(f"{name}: {reason}; {WHAT_TO_DO}", member=name)
        self.name = name
        self.model = model
        output_layer = model.get_output_embeddings()
        self.logits_width: int = output_layer.weight.shape[0]
        self.vocab_size: int = _num_embeddings(model)
        self.context_len = context_len_of_config(model.config)
        self.device = model.get_input_embeddings().weight.device
        self.adapters = AdapterSwitch(model)
        self._adapter_names: dict[Path, str] = {}
        self._wanted: tuple[Tensor, Tensor] | None = None
        self._cache_argument = cache_argument(model) or CACHE_ARGUMENTS[0]
        accepted = inspect.signature(model.forward).parameters
        passes_on = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in accepted.values())
        self._takes_positions = passes_on or "position_ids" in accepted
        self._held = HeldModel(
            model,
            name=name,
            attention=attention,
            weights=held_weights or PackedLayers(model, keep_weights=keep_weights),
        )
        self._long_rope = self._held.long_rope
        self._hook = output_layer.register_forward_pre_hook(self._keep_wanted)
        self.kv_cache = self._new_cache()
        self.recorded: RecordedPasses | None = None
        if recorder is not None and not self._long_rope:
            self.recorded = RecordedPasses(self.kv_cache, self._run, recorder=recorder, name=name, device=self.device)
        self._self_check = self_check
        if self_check:
            try:
                check_network(self)
            except BaseException:
                self.release()
                raise

    def _new_cache(self) -> SlotKVCache:
        return self.kv_cache_type()

    @property
    def num_parameters(self) -> int:
        """Parameters of the network without its adapters."""
        return sum(parameter.numel() for parameter in self._own_parameters())

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the network's weights without its adapters."""
        return sum(parameter.nbytes for parameter in self._own_parameters())

    def work_bytes(self, *, num_tokens: int, num_logits: int) -> int:
        """See `Network`."""
        widths = widths_of(self.model, self.model.dtype)
        return widths.pass_bytes(num_tokens=num_tokens, num_logits=num_logits)

    def _own_parameters(self) -> Iterator[Tensor]:
        return (parameter for key, parameter in self.model.named_parameters() if ".lora_" not in key)

    def with_adapter(self, adapter: Path, *, member: str) -> tuple[LanguageModel, str]:
        """See `Network`: the network itself, onto which the LoRA adapter of a PEFT folder is loaded, each folder once.
        Errors: `AdapterSwitch.add`.
        """
        if adapter not in self._adapter_names:
            self._adapter_names[adapter] = self._add_adapter(adapter, member=member)
        return self, self._adapter_names[adapter]

    def _add_adapter(self, folder: Path, *, member: str) -> str:
        before = before_adapter(self) if self._self_check else None
        if self.recorded is not None:
            self.recorded.forget()
        with self._held.own_layers():  # PEFT looks at the weights of the layers that it wraps
            adapter = self.adapters.add(folder, member=member)
        self._adapter_added(adapter)
        if before is not None:
            check_adapter_rows(self, adapter, before=before, member=member, source=str(folder))
        return adapter

    def _adapter_added(self, adapter: str) -> None:
        """PEFT has put it into the model."""

    def spans_changed(self) -> None:
        """Windows and the like of the model's configurations and modules have other lengths now."""

    @property
    def turns_long_texts(self) -> bool:
        """Whether texts beyond some length have other rotary factors than shorter ones (see `long_rope`)."""
        return bool(self._long_rope)

    @property
    def fingerprint(self) -> str:
        """See `Network`."""
        dtypes = sorted({str(parameter.dtype) for parameter in self._own_parameters()})
        threads = torch.get_num_threads() if self.device.type == "cpu" else self.device
        return (
            f"{type(self).__name__} {self.model.config.to_json_string()} {dtypes} {threads} torch {torch.__version__}"
        )

    @property
    def has_state(self) -> bool:
        """See `Network`; known from the first pass on."""
        return bool(self.kv_cache.states)

    @torch.inference_mode()
    def forward(self, blocks: Sequence[Block]) -> Tensor:
        """Feed every block to its slot and advance the slots' lengths.

        Returns:
            Logits `[sum of num_logits, logits_width]` in the model's dtype, block after block in the order given; for each
            block those after its last `num_logits` tokens, oldest first.
        """
        assert blocks, "a forward pass has at least one block"
        return self._long_rope.read(blocks, self._pass) if self._long_rope else self._pass(blocks)

    def _pass(self, blocks: Sequence[Block]) -> Tensor:
        first, rest = _split_where_kept(blocks) if self.has_state else ([], blocks)
        if first:
            self._pass(first)
            return self._pass(rest)
        slots = self.kv_cache.arrange([block.slot for block in blocks], from_first=self.recorded is not None)
        by_slot = {block.slot: block for block in blocks}
        rows = [by_slot[slot] for slot in slots]
        counts = [len(block.token_ids) for block in rows]
        row_of: dict[KVSlot, int] = {slot: row for row, slot in enumerate(slots)}
        wanted = [
            (row_of[block.slot], len(block.token_ids) - block.num_logits + position)
            for block in blocks
            for position in range(block.num_logits)
        ]
        indices = upload([[row for row, _ in wanted], [column for _, column in wanted]], self.device, dtype=torch.long)
        input_ids = self._input_ids(rows)
        adapters = self.adapters.rows_of([block.adapter for block in rows])
        shape = self.recorded.shape_of(slots, counts) if self.recorded is not None else None
        replayed = None
        if self.recorded is not None and shape is not None:
            replayed = self.recorded.forward(shape, slots, input_ids, counts, adapters)
        if replayed is not None:
            logits = replayed[indices[0], indices[1]]
            _advance(slots, counts)
            return logits  # [wanted, width]
        layout = BatchLayout.of(slots, counts)
        if self._long_rope:
            layout.is_long = tuple(slot.is_long for slot in slots)
        self.kv_cache.reserve(layout.needed_len)
        used = {name: upload(own, self.device) for name, own in adapters.items() if own.any()}
        self._wanted = (indices[0], indices[1])
        provisional = [_num_provisional(block) for block in rows]
        settled = [count - own for count, own in zip(counts, provisional, strict=True)]
        try:
            with self.kv_cache.computing(layout, slots, settled, provisional), self.adapters.on(used):
                logits = self._logits(input_ids, upload(layout.positions, self.device))[0]
                _advance(slots, counts)
        finally:
            self._wanted = None
        return logits  # [wanted, width]

    def _input_ids(self, rows: Sequence[Block]) -> Tensor:
        """Token ids `[rows, columns]` on the device, short rows padded on the right."""
        columns = max(len(block.token_ids) for block in rows)
        input_ids = upload([[*block.token_ids, *[0] * (columns - len(block.token_ids))] for block in rows], self.device)
        unread = [(row, block, block.unread_ids) for row, block in enumerate(rows) if block.unread_ids is not None]
        if unread:
            places = [
                (row, len(block.token_ids) - back) for row, block, ids in unread for back in range(len(ids), 0, -1)
            ]
            at = upload([[row for row, _ in places], [column for _, column in places]], self.device)
            input_ids[at[0], at[1]] = torch.cat([ids.to(self.device) for _, _, ids in unread])
        return input_ids

    def _run(self, input_ids: Tensor, position_ids: Tensor, layout: BatchLayout, adapters: AdapterRows) -> Tensor:
        """A pass that is recorded: logits `[rows, columns, width]`."""
        with self.kv_cache.computing(layout), self.adapters.on(adapters):
            return self._logits(input_ids, position_ids)

    def _logits(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """The model over its slots: logits `[rows, columns, width]`, or `[1, wanted, width]` while `_wanted` is set."""
        arguments: dict[str, Any] = {self._cache_argument: self.kv_cache}
        if self._takes_positions:
            arguments["position_ids"] = position_ids
        logits: Tensor = self.model(input_ids=input_ids, use_cache=True, **arguments).logits
        return logits

    def _keep_wanted(self, module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Pre-hook of the output layer: multiply only the wanted hidden states with the vocabulary."""
        if self._wanted is None:
            return None
        rows, columns = (
            index.to(args[0].device) for index in self._wanted
        )  # it may lie on another device than the first layer
        return (args[0][rows, columns][None], *args[1:])  # [1, wanted, hidden]

    @torch.inference_mode()
    def own_logits(self, token_ids: Sequence[int], *, adapter: str | None = None) -> Tensor:
        """Logits `[tokens, width]` of a text as the model computes them by itself, without a cache."""
        with self._held.own_forward(), self.adapters.only(adapter):
            logits: Tensor = self.model(input_ids=torch.tensor([token_ids], device=self.device), use_cache=False).logits
        return logits[0]

    def release(self) -> None:
        """Give the model back: own attention function, own linear layers, no hooks, no adapters of ours. The cache is dropped."""
        self._hook.remove()
        self.adapters.remove()
        self._adapter_names.clear()
        self._held.give_back()
        self.recorded = None
        self.kv_cache = self._new_cache()


def _num_embeddings(model: PreTrainedModel) -> int:
    embeddings: Any = model.get_input_embeddings()
    return int(getattr(embeddings, "num_embeddings", len(embeddings.weight)))


def _advance(slots: Sequence[StateSlot], counts: Sequence[int]) -> None:
    for slot, count in zip(slots, counts, strict=True):
        slot.length += count


def _kept_inside(block: Block) -> list[int]:
    """Lengths at which the block's slot is to be kept and that the block passes, counted from its start."""
    start, count = block.slot.length, len(block.token_ids)
    return sorted(length - start for length in block.slot.keep_at if start < length < start + count)


def _num_provisional(block: Block) -> int:
    """Last tokens of a block that are not settled by its pass: those that may be taken back, and those behind a length to be
    kept.
    """
    behind = [len(block.token_ids) - place for place in _kept_inside(block)]
    return max(block.num_provisional, *(own for own in behind if own <= STEPWISE_LEN), 0)


def _split_where_kept(blocks: Sequence[Block]) -> tuple[list[Block], list[Block]]:
    """Blocks that pass a length to be kept and go on for long are read in two: what is read first, and then all that is left."""
    first, rest = [], []
    for block in blocks:
        count = len(block.token_ids)
        places = [
            place for place in _kept_inside(block) if count - place >= max(block.num_logits, block.num_provisional)
        ]
        if not places or (len(places) == 1 and count - places[0] <= STEPWISE_LEN):
            rest.append(block)
            continue
        first.append(
            replace(block, token_ids=block.token_ids[: places[0]], num_logits=0, num_provisional=0, unread_ids=None)
        )
        rest.append(replace(block, token_ids=block.token_ids[places[0] :]))
    return first, rest
