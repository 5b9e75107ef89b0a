"""The kernels as Python sees them: their structures, and packed matrices."""

from __future__ import annotations

import ctypes
import enum
import functools
import logging
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from eft_engine.models.native.build import compiled
from eft_engine.models.native.huge_pages import WeightMemory
from eft_engine.models.native.quantising import GROUP, Codes, Kind, to_codes

logger = logging.getLogger(__name__)

PANEL = 16
"""Columns of a matrix that lie together."""

PAGE = 16
"""Positions of a page of keys and values."""

QUERIES = 6
RUN = 8
"""Most rows of one text that attention takes together."""

_GROUP_BYTES = {Kind.INT8: 32 + 512, Kind.INT4: 64 + 256}


class MatrixStruct(ctypes.Structure):
    """`Matrix` of products.h."""

    _fields_ = (
        ("numbers", c_void_p),
        ("bias", c_void_p),
        ("inputs", c_int64),
        ("panels", c_int64),
        ("panel_bytes", c_int64),
        ("kind", c_int32),
        ("unused", c_int32),
    )


class Kinds(enum.IntEnum):
    """Kinds of operations."""

    EMBED = 0
    NORM = 1
    ROUND = 2
    LINEAR = 3
    ROTATE = 4
    HEAD_NORM = 5
    KEEP = 6
    ATTEND = 7
    GATE = 8
    SUM = 9
    TAKE_WANTED = 10


class Modes(enum.IntEnum):
    """What becomes of a product's results."""

    PUT = 0
    ADD = 1
    GATED = 2


class OperationStruct(ctypes.Structure):
    """`Operation` of pass.c."""

    _fields_ = (
        ("kind", c_int32),
        ("source", c_int32),
        ("to", c_int32),
        ("mode", c_int32),
        ("activation", c_int32),
        ("layer", c_int32),
        ("num_heads", c_int32),
        ("first", c_int32),
        ("panel_step", c_int32),
        ("adapter", c_int32),
        ("wanted", c_int32),
        ("table", c_int32),
        ("window", c_int32),
        ("size", c_int32),
        ("number", c_float),
        ("matrix", POINTER(MatrixStruct)),
        ("vector", c_void_p),
        ("rows", c_void_p),
    )


class DecoderStruct(ctypes.Structure):
    """`Decoder` of pass.c."""

    _fields_ = (
        ("num_key_heads", c_int32),
        ("head_size", c_int32),
        ("num_layers", c_int32),
        ("cache_kind", c_int32),
        ("num_operations", c_int32),
        ("embedding_kind", c_int32),
        ("operations", c_void_p),
        ("buffers", c_void_p),
        ("widths", c_void_p),
    )


class PassStruct(ctypes.Structure):
    """`Pass` of pass.c."""

    _fields_ = (
        ("num_rows", c_int64),
        ("num_wanted", c_int64),
        ("num_runs", c_int64),
        ("tokens", c_void_p),
        ("positions", c_void_p),
        ("text_of", c_void_p),
        ("wanted", c_void_p),
        ("run_starts", c_void_p),
        ("pages", c_void_p),
        ("first_page", c_void_p),
        ("adapter_rows", c_void_p),
        ("adapter_starts", c_void_p),
        ("tables", c_void_p),
        ("rounded", c_void_p),
        ("rounded_width", c_int64),
        ("scores", c_void_p),
        ("scores_width", c_int64),
        ("logits", c_void_p),
        ("logits_width", c_int64),
        ("num_threads", c_int32),
        ("unused", c_int32),
    )


ROUNDED_GROUP_BYTES = 8 + 2 * GROUP
"""Of `RoundedGroup` in products.h."""


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """The library, loaded; None where there is none (see `build.compiled`)."""
    path = compiled()
    if path is None:
        return None
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:  # a file system from which nothing may be run, for instance
        logger.warning(
            "networks are computed by torch: the kernels cannot be loaded (%s); EFT_CACHE_DIR names another folder for them",
            error,
        )
        return None
    matrix = POINTER(MatrixStruct)
    library.eft_pass.argtypes = [POINTER(DecoderStruct), POINTER(PassStruct)]
    library.eft_pass.restype = c_int
    library.eft_product.argtypes = [matrix, c_void_p, c_int64, c_int64, c_void_p, c_int]
    library.eft_product.restype = c_int
    library.eft_pack.argtypes = [c_void_p, c_int64, c_int64, matrix, c_int64, c_int64]
    library.eft_pack_codes.argtypes = [c_void_p, c_void_p, c_void_p, c_int64, matrix, c_int64, c_int64]
    library.eft_unpack.argtypes = [matrix, c_int64, c_int64, c_int64, c_int64, c_int32, c_void_p]
    return library


def _loaded() -> ctypes.CDLL:
    library = kernels()
    assert library is not None, "nothing is packed without kernels"
    return library


@dataclass(frozen=True)
class Place:
    """Where columns of one weight lie in a matrix: in every `step`-th panel from `panel` on."""

    columns: int
    panel: int
    step: int = 1

    @property
    def first_column(self) -> int:
        """Of a product's results."""
        return self.panel * PANEL


class PackedMatrix:
    """Weights `[out, in]` that read the same inputs, packed into one matrix.

    Args:
        kind: of its numbers.
        inputs: of each weight.
        places: where the weights come to lie; `apart` and `interleaved` make them.
        memory: where the numbers come to lie; None: in torch's.
    """

    def __init__(self, kind: Kind, inputs: int, places: Sequence[Place], *, memory: WeightMemory | None = None) -> None:
        self.kind, self.inputs, self.places = kind, inputs, tuple(places)
        together = GROUP if kind in _GROUP_BYTES else 2
        self.padded_inputs = -(-inputs // together) * together
        panels = max(place.panel + (-(-place.columns // PANEL) - 1) * place.step + 1 for place in places)
        if kind in _GROUP_BYTES:
            panel_bytes = self.padded_inputs // GROUP * _GROUP_BYTES[kind]
        else:
            panel_bytes = self.padded_inputs * PANEL * (4 if kind is Kind.F32 else 2)
        self.width = panels * PANEL
        num_bytes = panels * panel_bytes
        self._numbers = torch.zeros(num_bytes, dtype=torch.uint8) if memory is None else memory.zeros(num_bytes)
        self._bias: Tensor | None = None
        self.struct = MatrixStruct(
            numbers=self._numbers.data_ptr(),
            inputs=self.padded_inputs,
            panels=panels,
            panel_bytes=panel_bytes,
            kind=int(kind),
        )
        self.pointer = ctypes.pointer(self.struct)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed numbers."""
        return self._numbers.nbytes

    def put(self, index: int, weight: Tensor, bias: Tensor | None = None) -> None:
        """Pack the weight `[out, in]` of place `index`, rounded to codes if these are codes, and its bias `[out]`."""
        place = self.places[index]
        assert weight.shape == (place.columns, self.inputs), f"{tuple(weight.shape)} is no weight for {place}"
        weight = weight.detach()
        if self.kind in _GROUP_BYTES:
            self._put_codes(place, to_codes(weight, self.kind))
        else:
            numbers = weight.to(torch.float32 if self.kind is Kind.F32 else torch.bfloat16).contiguous()
            _loaded().eft_pack(numbers.data_ptr(), place.columns, self.inputs, self.pointer, place.panel, place.step)
        if bias is not None:
            if self._bias is None:
                self._bias = torch.zeros(self.width)
                self.struct.bias = self._bias.data_ptr()
            columns = torch.arange(place.columns)
            columns = (place.panel + columns // PANEL * place.step) * PANEL + columns % PANEL
            self._bias[columns] = bias.detach().float()

    def _put_codes(self, place: Place, codes: Codes) -> None:
        _loaded().eft_pack_codes(
            codes.numbers.data_ptr(),
            codes.scales.data_ptr(),
            codes.offsets.data_ptr(),
            place.columns,
            self.pointer,
            place.panel,
            place.step,
        )

    @property
    def has_bias(self) -> bool:
        """Whether any of its weights has one."""
        return self._bias is not None

    def unpack(self, index: int, dtype: torch.dtype) -> Tensor:
        """The weight `[out, in]` of place `index`, as it is computed with; float32 and bfloat16 come back to the bit."""
        place = self.places[index]
        assert dtype in (torch.float32, torch.bfloat16), f"weights are not of {dtype}"
        weight = torch.empty(place.columns, self.inputs, dtype=dtype)
        kind = Kind.F32 if dtype == torch.float32 else Kind.BF16
        _loaded().eft_unpack(
            self.pointer, place.columns, self.inputs, place.panel, place.step, int(kind), weight.data_ptr()
        )
        return weight

    def product(self, rows: Tensor, *, num_threads: int = 1) -> Tensor:
        """`rows` `[rows, in]` times the matrix, biases added: `[rows, width]` in float32."""
        padded = torch.zeros(len(rows), self.padded_inputs)
        padded[:, : self.inputs] = rows
        results = torch.empty(len(rows), self.width)
        failed = _loaded().eft_product(
            self.pointer, padded.data_ptr(), len(rows), self.width, results.data_ptr(), num_threads
        )
        if failed:
            raise MemoryError("no memory for a product")
        return results


def apart(columns: Sequence[int]) -> list[Place]:
    """Places one behind the other."""
    places, panel = [], 0
    for number in columns:
        places.append(Place(number, panel))
        panel += -(-number // PANEL)
    return places


def interleaved(columns: int) -> list[Place]:
    """Places of two weights of one size, panel by panel: gates, and what they open."""
    return [Place(columns, 0, 2), Place(columns, 1, 2)]
