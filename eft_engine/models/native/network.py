"""A network computed by the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from eft_engine.config import Quantization
from eft_engine.errors import UnsupportedModelError
from eft_engine.models.language_model import LanguageModel
from eft_engine.models.native.choice import kernels_are_faster
from eft_engine.models.native.decoder import Adapted, AdapterParts, PackedDecoder
from eft_engine.models.native.draft_copy import DraftCopy
from eft_engine.models.native.families import NotForKernelsError, family_of
from eft_engine.models.native.library import PackedMatrix, apart, kernels
from eft_engine.models.native.pages import PagedKVCache
from eft_engine.models.native.passes import Passes
from eft_engine.models.native.quantising import KINDS, Kind
from eft_engine.models.native.weights import KernelWeights
from eft_engine.models.network import Block


def native_network(
    model: PreTrainedModel,
    *,
    name: str,
    self_check: bool,
    keep_weights: bool,
    quantization: Quantization = "none",
    draft_quantization: Quantization = "none",
    only_if_faster: bool = False,
) -> NativeLanguageModel:
    """The model computed by the kernels.

    Args:
        model, name, self_check, keep_weights: see `LanguageModel`.
        quantization: what its weights are rounded to.
        draft_quantization: what a copy of them is rounded to, which drafts; none: there is no copy.
        only_if_faster: leave it to torch where that is faster.

    Raises:
        NotForKernelsError: there are no kernels here, or they cannot compute it; the model is as it was.
        CorruptWeightsError: see `LanguageModel`.
    """
    family_of(model)  # before anything is compiled
    if kernels() is None:
        raise NotForKernelsError("kernels of our own could not be compiled here")
    if only_if_faster and not kernels_are_faster(model.dtype):
        raise NotForKernelsError(f"torch is faster here in {model.dtype}")
    rounded = None
    if draft_quantization != "none":
        kind = KINDS[draft_quantization]
        rounded = PackedDecoder(model, codes=kind, head_codes=kind)  # whose head is a good part of what a draft reads
    weights = KernelWeights(model, codes=KINDS.get(quantization), keep_weights=keep_weights)
    try:
        return NativeLanguageModel(model, weights, name=name, self_check=self_check, rounded=rounded)
    except UnsupportedModelError as error:
        raise NotForKernelsError(str(error)) from error


class NativeLanguageModel(LanguageModel):
    """A causal language model of transformers whose passes the kernels compute.

    Logits are in float32. They depend on a text alone, to the bit: not on its company, on chunks, drafts or threads.

    Args:
        model: whose weights these are; it computes itself only for checks.
        weights: packed.
        name: what to call it in reports and errors.
        self_check: see `LanguageModel`.
        rounded: the same weights in fewer bits, which draft.
    """

    kv_cache: PagedKVCache  # type: ignore[assignment]

    def __init__(
        self,
        model: PreTrainedModel,
        weights: KernelWeights,
        *,
        name: str,
        self_check: bool,
        rounded: PackedDecoder | None = None,
    ) -> None:
        self._decoder = weights.decoder
        self.rounds_rows = weights.decoder.kind in (Kind.INT8, Kind.INT4)
        self._passes = Passes(weights.decoder, adapter_kind=Kind.F32)
        self._all_passes = [self._passes]
        super().__init__(model, name=name, self_check=self_check, held_weights=weights)
        if rounded is not None:
            self._all_passes.append(Passes(rounded, adapter_kind=Kind.BF16))
            self.drafter = DraftCopy(self, self._all_passes[-1], self.kv_cache)

    def _new_cache(self) -> PagedKVCache:  # type: ignore[override]
        decoder = self._decoder
        return PagedKVCache(
            num_layers=decoder.num_layers,
            num_key_heads=decoder.num_key_heads,
            head_size=decoder.head_size,
            dtype=decoder.dtype,
        )

    @property
    def is_invariant(self) -> bool:
        """Always."""
        return True

    @property
    def has_state(self) -> bool:
        """Never: these are attention layers alone."""
        return False

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed weights, with those that draft."""
        return sum(passes.decoder.nbytes for passes in self._all_passes)

    def spans_changed(self) -> None:
        """See `LanguageModel`."""
        self._forget()

    def _forget(self) -> None:
        for passes in self._all_passes:
            passes.forget()

    def _add_adapter(self, folder: Path, *, member: str) -> str:
        self._forget()
        return super()._add_adapter(folder, member=member)

    def _adapter_added(self, adapter: str) -> None:
        for passes in self._all_passes:
            passes.add_adapter(adapter, _parts_of(self.model, adapter, self._decoder, kind=passes.adapter_kind))

    def _pass(self, blocks: Sequence[Block]) -> Tensor:
        return self._passes.read(blocks, self.kv_cache, logits_width=self.logits_width)

    def release(self) -> None:
        """As of `LanguageModel`."""
        super().release()
        for passes in self._all_passes:
            passes.remove_adapters()
        self.drafter = None


def _parts_of(model: nn.Module, adapter: str, decoder: PackedDecoder, *, kind: Kind) -> AdapterParts:
    """What an adapter that PEFT has put into the model adds to each linear layer, its numbers held as `kind`."""
    from peft.tuners.lora import LoraLayer  # takes a while to import, and most trios have no adapter

    parts: AdapterParts = {}
    for module in model.modules():
        if not isinstance(module, LoraLayer) or adapter not in module.lora_A:
            continue
        base, scaling = module.get_base_layer(), module.scaling[adapter]
        assert base in decoder.weights, f"{type(base).__name__} has an adapter and is not packed"
        inner, outer = module.lora_A[adapter], module.lora_B[adapter]
        down = PackedMatrix(kind, inner.in_features, apart([inner.out_features]))
        down.put(0, inner.weight, inner.bias)
        up: Any = PackedMatrix(kind, outer.in_features, apart([outer.out_features]))
        up.put(0, outer.weight.float() * scaling, None if outer.bias is None else outer.bias.float() * scaling)
        parts[base] = Adapted(down, up)
    return parts
