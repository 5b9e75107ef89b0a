"""A model's weights, packed for the kernels, and the operations of its passes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eft_engine.models.native.families import (
    ROTARY_TYPES,
    NotForKernelsError,
    activation_of,
    family_of,
    norm_weights,
    rotary_type,
)
from eft_engine.models.native.huge_pages import WeightMemory
from eft_engine.models.native.library import Kinds, Modes, OperationStruct, PackedMatrix, Place, apart, interleaved
from eft_engine.models.native.quantising import GROUP, Kind

HIDDEN, NORMED, HEADS, ATTENDED, GATED, BOTH, BRANCH, LAST, LOW, NUM_BUFFERS = range(10)
"""Buffers of a pass: the residual stream; what norms give; queries, keys and values; what attention gives; opened gates; gates and
what they open; what is normalised before it is added; wanted rows; an adapter's inner numbers.
"""

TO_LOGITS = -1


@dataclass(frozen=True)
class Norm:
    """A norm's weights `[size]` and its epsilon."""

    weights: Tensor
    epsilon: float


@dataclass(frozen=True)
class PackedLayer:
    """One layer: its products and norms, which rotary table it has, and the model's own layers behind the products."""

    heads: PackedMatrix
    out: PackedMatrix
    both: PackedMatrix
    down: PackedMatrix
    before: Norm
    between: Norm
    behind_attention: Norm | None
    behind_gated: Norm | None
    query_norm: Norm | None
    key_norm: Norm | None
    table: int
    readers: tuple[nn.Linear, nn.Linear, nn.Linear]
    writer: nn.Linear
    gates: tuple[nn.Linear, nn.Linear]
    closer: nn.Linear


@dataclass(frozen=True)
class Adapted:
    """What an adapter adds to one weight: `up(down(rows))`, its scale inside `up`."""

    down: PackedMatrix
    up: PackedMatrix


AdapterParts = dict[nn.Module, Adapted]
"""By the linear layer of the model that an adapter adds to."""


class Packed:
    """Where a weight of the model lies."""

    def __init__(self, matrix: PackedMatrix, index: int) -> None:
        self.matrix, self.index = matrix, index

    @property
    def place(self) -> Place:
        """In its matrix."""
        return self.matrix.places[self.index]

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """See `PackedMatrix.unpack`."""
        return self.matrix.unpack(self.index, dtype)


class PackedDecoder:
    """A model of a family of `families`, its weights packed layer by layer.

    Args:
        model: not changed.
        codes: the kind that weights are rounded to; None: as they are.
        head_codes: the same for the head; None: as the others, but eight bits where those are four.
        drop: called with each linear layer once its weight is packed.

    Raises:
        NotForKernelsError: the kernels cannot compute it; nothing was dropped.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        codes: Kind | None = None,
        head_codes: Kind | None = None,
        drop: Callable[[nn.Module], object] | None = None,
    ) -> None:
        self.family = family_of(model)
        self._model: Any = model
        decoder, config = self._model.model, model.config
        self.dtype: torch.dtype = next(model.parameters()).dtype
        self.kind = codes or (Kind.F32 if self.dtype == torch.float32 else Kind.BF16)
        first = decoder.layers[0].self_attn
        self.head_size: int = first.head_dim
        self.num_heads = first.q_proj.out_features // self.head_size
        self.num_key_heads = first.k_proj.out_features // self.head_size
        self.hidden_size: int = decoder.embed_tokens.weight.shape[1]
        self.gated_size: int = decoder.layers[0].mlp.gate_proj.out_features
        self.num_layers = len(decoder.layers[: config.num_hidden_layers])
        self.activation = activation_of(decoder.layers[0].mlp.act_fn)
        self.attention_scale = float(first.scaling)
        self._check_alike(decoder.layers)
        self.layer_types: list[str | None] = [None]
        if self.family.norms_behind:  # layers with windows have rotary positions of their own
            self.layer_types = sorted(set(config.layer_types))
        for layer_type in self.layer_types:
            if rotary_type(config, layer_type) not in ROTARY_TYPES:
                raise NotForKernelsError(
                    f"its rotary positions ({rotary_type(config, layer_type)}) follow the text's length"
                )
        self.final = self._norm(decoder.norm)
        norms = [self._norms_of(layer) for layer in decoder.layers]
        # From here on nothing is refused, so that weights may go as they are packed.
        drop = drop or _keep
        self.weights: dict[nn.Module, Packed] = {}
        self._memory = WeightMemory()
        self.layers = [self._pack_layer(layer, own, drop) for layer, own in zip(decoder.layers, norms, strict=True)]
        head: nn.Linear = self._model.lm_head
        embedding = decoder.embed_tokens
        is_tied = head.weight is embedding.weight
        # The vocabulary's product loses most by few bits, as llama.cpp's quantisers know too.
        head_kind = head_codes or (Kind.INT8 if codes is Kind.INT4 else self.kind)
        self.head = self._pack([head], apart([head.out_features]), kind=head_kind)
        self.embedding: Tensor | None = None if is_tied else embedding.weight.detach()
        scale = getattr(embedding, "embed_scale", None)
        self.embedding_scale = 1.0 if scale is None else float(scale.to(embedding.weight.dtype))
        if is_tied:
            self.weights[embedding] = self.weights[head]
        drop(head)

    def _check_alike(self, layers: Sequence[Any]) -> None:
        def shape_of(layer: Any) -> tuple[object, ...]:
            attention, gated = layer.self_attn, layer.mlp
            sizes = tuple(
                child.weight.shape
                for child in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, gated.gate_proj)
            )
            return (*sizes, attention.head_dim, attention.scaling, activation_of(gated.act_fn))

        if any(shape_of(layer) != shape_of(layers[0]) for layer in layers):
            raise NotForKernelsError("its layers differ in their sizes")
        if self.head_size % 2 or self.num_heads % self.num_key_heads:
            raise NotForKernelsError("its heads have sizes that the kernels do not know")

    def _norm(self, module: nn.Module) -> Norm:
        return Norm(*norm_weights(module, self.family))

    def _norms_of(self, layer: Any) -> dict[str, Norm | None]:
        names = {"before": "input_layernorm", "between": "post_attention_layernorm"}
        if self.family.norms_behind:
            names = {
                "before": "input_layernorm",
                "behind_attention": "post_attention_layernorm",
                "between": "pre_feedforward_layernorm",
                "behind_gated": "post_feedforward_layernorm",
            }
        norms: dict[str, Norm | None] = {"behind_attention": None, "behind_gated": None}
        norms |= {own: self._norm(getattr(layer, name)) for own, name in names.items()}
        for own, name in (("query_norm", "q_norm"), ("key_norm", "k_norm")):
            held = getattr(layer.self_attn, name, None)
            norms[own] = None if held is None else self._norm(held)
        return norms

    def _pack(self, modules: Sequence[nn.Linear], places: Sequence[Place], *, kind: Kind | None = None) -> PackedMatrix:
        kind = self.kind if kind is None else kind
        matrix = PackedMatrix(kind, modules[0].in_features, places, memory=self._memory)
        for index, module in enumerate(modules):
            matrix.put(index, module.weight, module.bias)
            self.weights[module] = Packed(matrix, index)
        return matrix

    def _pack_layer(self, layer: Any, norms: dict[str, Any], drop: Callable[[nn.Module], object]) -> PackedLayer:
        attention, gated = layer.self_attn, layer.mlp
        readers, gates = (attention.q_proj, attention.k_proj, attention.v_proj), (gated.gate_proj, gated.up_proj)
        packed = PackedLayer(
            heads=self._pack(readers, apart([own.out_features for own in readers])),
            out=self._pack([attention.o_proj], apart([self.hidden_size])),
            both=self._pack(gates, interleaved(self.gated_size)),
            down=self._pack([gated.down_proj], apart([self.hidden_size])),
            readers=readers,
            writer=attention.o_proj,
            gates=gates,
            closer=gated.down_proj,
            table=self.layer_types.index(getattr(attention, "layer_type", None)) if len(self.layer_types) > 1 else 0,
            **norms,
        )
        for module in (*readers, attention.o_proj, *gates, gated.down_proj):
            drop(module)
        return packed

    @property
    def nbytes(self) -> int:
        """Bytes of all packed weights."""
        return sum(matrix.nbytes for matrix in {id(own.matrix): own.matrix for own in self.weights.values()}.values())

    def windows(self) -> list[int]:
        """How many positions each layer sees, as the model says now; 0: all."""
        layers = self._model.model.layers[: self.num_layers]
        if self.family.model.__name__.startswith("Mistral"):
            return [self._model.config.sliding_window or 0] * self.num_layers
        return [getattr(layer.self_attn, "sliding_window", None) or 0 for layer in layers]

    def rotary_table(self, layer_type: str | None, start: int, end: int) -> Tensor:
        """Cosines and sines `[end - start, 2, head size]` of these positions, in float32, from the model's own module."""
        rotary = self._model.model.rotary_emb
        arguments = () if layer_type is None else (layer_type,)
        cosines, sines = rotary(torch.zeros(1), torch.arange(start, end)[None], *arguments)
        return torch.stack([cosines[0], sines[0]], dim=1)

    def buffer_widths(self, adapter_width: int) -> list[int]:
        """Numbers of a row in each buffer."""
        layer = self.layers[0]
        attended, hidden, gated = (
            _padded(size) for size in (self.num_heads * self.head_size, self.hidden_size, self.gated_size)
        )
        widths = {
            HIDDEN: hidden,
            NORMED: hidden,
            HEADS: layer.heads.width,
            ATTENDED: attended,
            GATED: max(gated, layer.both.width // 2),
            BOTH: layer.both.width,
            BRANCH: hidden,
            LAST: hidden,
            LOW: adapter_width,
        }
        return [widths[buffer] for buffer in range(NUM_BUFFERS)]

    def operations(self, adapters: Sequence[AdapterParts], windows: Sequence[int]) -> ctypes.Array[OperationStruct]:
        """The operations of a pass in which rows may have these adapters, as the kernels take them."""
        operations = _ProgramWriter(self, adapters, windows).operations
        return (OperationStruct * len(operations))(*operations)


def _keep(module: nn.Module) -> None:
    """What is done with packed weights that somebody else has too."""


def _padded(size: int) -> int:
    return -(-size // GROUP) * GROUP


class _ProgramWriter:
    """Writes down the operations of a decoder's pass."""

    def __init__(self, decoder: PackedDecoder, adapters: Sequence[AdapterParts], windows: Sequence[int]) -> None:
        self._decoder = decoder
        self._adapters = adapters
        self.operations: list[OperationStruct] = []
        embedding = decoder.embedding
        self._add(
            Kinds.EMBED,
            to=HIDDEN,
            size=decoder.hidden_size,
            number=decoder.embedding_scale,
            matrix=decoder.head.pointer,
            rows=0 if embedding is None else embedding.data_ptr(),
        )
        for index, layer in enumerate(decoder.layers):
            self._attention(index, layer, windows[index])
            self._gated(layer)
        self._add(Kinds.TAKE_WANTED, source=HIDDEN, to=LAST, wanted=1)
        self._norm(decoder.final, LAST, LAST, wanted=1)
        self._product(decoder.head, LAST, TO_LOGITS, wanted=1)

    def _add(
        self, kind: Kinds, *, source: int = 0, to: int = 0, adapter: int = -1, panel_step: int = 1, **fields: Any
    ) -> None:
        self.operations.append(
            OperationStruct(kind=int(kind), source=source, to=to, adapter=adapter, panel_step=panel_step, **fields)
        )

    def _norm(self, norm: Norm, source: int, to: int, *, wanted: int = 0) -> None:
        self._add(
            Kinds.NORM,
            source=source,
            to=to,
            size=self._decoder.hidden_size,
            number=norm.epsilon,
            vector=norm.weights.data_ptr(),
            wanted=wanted,
        )

    def _product(
        self, matrix: PackedMatrix, source: int, to: int, *, mode: Modes = Modes.PUT, wanted: int = 0, **fields: Any
    ) -> None:
        if matrix.kind in (Kind.INT8, Kind.INT4):
            self._add(Kinds.ROUND, source=source, to=source, matrix=matrix.pointer, wanted=wanted)
        self._add(Kinds.LINEAR, source=source, to=to, mode=int(mode), matrix=matrix.pointer, wanted=wanted, **fields)

    def _adapted(self, modules: Sequence[nn.Module], source: int, to: int) -> None:
        """Let rows with an adapter have what it adds to these layers."""
        for adapter, parts in enumerate(self._adapters):
            for module in modules:
                if module in parts:
                    own, place = parts[module], self._decoder.weights[module].place
                    self._product(own.down, source, LOW, adapter=adapter)
                    self._product(
                        own.up,
                        LOW,
                        to,
                        mode=Modes.ADD,
                        adapter=adapter,
                        first=place.first_column,
                        panel_step=place.step,
                    )

    def _attention(self, index: int, layer: PackedLayer, window: int) -> None:
        decoder = self._decoder
        queries, keys, values = (place.first_column for place in layer.heads.places)
        self._norm(layer.before, HIDDEN, NORMED)
        self._product(layer.heads, NORMED, HEADS)
        self._adapted(layer.readers, NORMED, HEADS)
        for norm, first, number in (
            (layer.query_norm, queries, decoder.num_heads),
            (layer.key_norm, keys, decoder.num_key_heads),
        ):
            if norm is not None:
                self._add(
                    Kinds.HEAD_NORM,
                    source=HEADS,
                    first=first,
                    num_heads=number,
                    number=norm.epsilon,
                    vector=norm.weights.data_ptr(),
                )
            self._add(
                Kinds.ROTATE, source=HEADS, first=first, num_heads=number, table=layer.table, size=decoder.head_size
            )
        self._add(Kinds.KEEP, source=HEADS, layer=index, first=keys, size=values)
        self._add(
            Kinds.ATTEND,
            source=HEADS,
            to=ATTENDED,
            layer=index,
            num_heads=decoder.num_heads,
            window=window,
            number=decoder.attention_scale,
        )
        self._branch(layer.out, ATTENDED, [layer.writer], layer.behind_attention)

    def _gated(self, layer: PackedLayer) -> None:
        self._norm(layer.between, HIDDEN, NORMED)
        if layer.both.has_bias or any(own in parts for parts in self._adapters for own in layer.gates):
            self._product(layer.both, NORMED, BOTH)
            self._adapted(layer.gates, NORMED, BOTH)
            self._add(
                Kinds.GATE, source=BOTH, to=GATED, size=layer.both.width // 2, activation=self._decoder.activation
            )
        else:
            self._product(layer.both, NORMED, GATED, mode=Modes.GATED, activation=self._decoder.activation)
        self._branch(layer.down, GATED, [layer.closer], layer.behind_gated)

    def _branch(self, matrix: PackedMatrix, source: int, modules: Sequence[nn.Module], norm: Norm | None) -> None:
        """Add to the residual stream what a product gives, normalised where there is a norm."""
        if norm is None:
            self._product(matrix, source, HIDDEN, mode=Modes.ADD)
            self._adapted(modules, source, HIDDEN)
            return
        self._product(matrix, source, BRANCH)
        self._adapted(modules, source, BRANCH)
        self._norm(norm, BRANCH, BRANCH)
        self._add(Kinds.SUM, source=BRANCH, to=HIDDEN, size=self._decoder.hidden_size)
