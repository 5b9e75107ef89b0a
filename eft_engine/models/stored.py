"""How a checkpoint is stored, out of the headers of its safetensors files: names, types and bytes of all tensors.

A header is a few kilobytes at the beginning of a file. In a folder, and in what the hub's client has downloaded, it is read there;
of a checkpoint on the hub it is fetched by itself. No weight is read.
"""

from __future__ import annotations

import json
import logging
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import HfApi, try_to_load_from_cache

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

MAX_HEADER_BYTES = 100_000_000
"""What safetensors itself allows."""

FLOAT_TYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Types that a network can be held in, by their names in headers; float8 and the like are types of packed weights."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: its type as the header has it (`BF16`, `F8_E4M3`, `U8`), its numbers and its bytes."""

    dtype: str
    numel: int
    num_bytes: int


@dataclass(frozen=True)
class StoredWeights:
    """All tensors of a checkpoint by name."""

    tensors: Mapping[str, StoredTensor]

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors, as they are stored."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    @property
    def float_shares(self) -> dict[torch.dtype, float]:
        """The floating types that a network can be held in, by their share of the bytes in such types, the largest first."""
        sizes: Counter[torch.dtype] = Counter()
        for tensor in self.tensors.values():
            if tensor.dtype in FLOAT_TYPES:
                sizes[FLOAT_TYPES[tensor.dtype]] += tensor.num_bytes
        return {dtype: num_bytes / (sizes.total() or 1) for dtype, num_bytes in sizes.most_common()}

    def held_bytes(self, *, dtype: torch.dtype, converted: Callable[[str], bool], read: Callable[[str], bool]) -> int:
        """Bytes in memory where packed tensors stay as they are.

        Args:
            dtype: what other tensors are converted to.
            converted: whether a tensor of this name is, where it has a floating type.
            read: whether a tensor of this name is read at all.
        """
        return sum(
            tensor.numel * dtype.itemsize if tensor.dtype in FLOAT_TYPES and converted(name) else tensor.num_bytes
            for name, tensor in self.tensors.items()
            if read(name)
        )


def read_stored(location: str, *, revision: str | None = None, file_name: str | None = None) -> StoredWeights | None:
    """The headers of a folder or a hub id; None where they cannot be had: loading says why in full.

    Args:
        location: the folder or hub id.
        revision: of the hub id.
        file_name: what the configuration names as its file or index; None: the usual names.
    """
    try:
        folder = Path(location)
        if folder.is_dir():
            return _from_files(lambda name: folder / name, file_name)
        return _from_files(lambda name: _cached(location, name, revision), file_name) or _from_hub(location, revision)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        logger.debug("the headers of %s cannot be read: %r", location, error)
        return None


def _from_files(find: Callable[[str], Path | None], file_name: str | None) -> StoredWeights | None:
    """In the order in which transformers looks for them; None where no file is there, or not all that an index names."""
    for name in [file_name] if file_name else [SINGLE_FILE, INDEX_FILE]:
        path = find(name)
        if path is None or not path.is_file():
            continue
        if not name.endswith(".index.json"):
            return StoredWeights(_header(path))
        shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        paths = [found for shard in shards if (found := find(shard)) is not None]
        if len(paths) < len(shards):
            return None
        return StoredWeights({name: tensor for shard in paths for name, tensor in _header(shard).items()})
    return None


def _header(path: Path) -> dict[str, StoredTensor]:
    """Eight bytes of length, then JSON (safetensors' own description of its format)."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"{path} says that its header has {length} bytes")
        header = json.loads(file.read(length))
    return {
        name: _tensor(entry["dtype"], entry["shape"], entry["data_offsets"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _tensor(dtype: str, shape: list[int], offsets: tuple[int, int] | list[int]) -> StoredTensor:
    return StoredTensor(dtype, torch.Size(shape).numel(), offsets[1] - offsets[0])


def _cached(repository: str, name: str, revision: str | None) -> Path | None:
    found = try_to_load_from_cache(repository, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _from_hub(repository: str, revision: str | None) -> StoredWeights | None:
    try:
        found = HfApi().get_safetensors_metadata(repository, revision=revision)
    except Exception as error:  # of the network, the hub, or its client, which has a class for each
        logger.debug("the hub does not say how %s is stored: %r", repository, error)
        return None
    return StoredWeights(
        {
            name: _tensor(tensor.dtype, tensor.shape, tensor.data_offsets)
            for file in found.files_metadata.values()
            for name, tensor in file.tensors.items()
        }
    )
