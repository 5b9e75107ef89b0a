"""What a GGUF file says about itself: metadata and the places of its tensors. Tensor data is not read.

    metadata    typed values under names such as `llama.block_count`; the tokenizer's lists are among them
    ggml type   how a tensor's numbers are packed: in blocks of so many elements, so many bytes each
    file type   what the file as a whole is called (Q4_K_M); its tensors have different ggml types
    part        one of several files that hold the tensors together: name-00001-of-00003.gguf

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A file is checked as far as it is read: no length
that it states is believed before it is held against the size of the file.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from eft_engine.errors import CorruptWeightsError, ModelNotFoundError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
MIN_VALUE_BYTES, MIN_TENSOR_BYTES = 13, 24
"""What a metadata value and a tensor take in the header, without their names."""
STRING, ARRAY = 8, 9
SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
"""How a value of each metadata type is stored; text and lists have their own layout."""


class GGMLType(NamedTuple):
    """How numbers are packed: `block_len` elements in `block_bytes` bytes."""

    name: str
    block_len: int
    block_bytes: int


GGML_TYPES: dict[int, GGMLType] = {
    0: GGMLType("F32", 1, 4),
    1: GGMLType("F16", 1, 2),
    2: GGMLType("Q4_0", 32, 18),
    3: GGMLType("Q4_1", 32, 20),
    6: GGMLType("Q5_0", 32, 22),
    7: GGMLType("Q5_1", 32, 24),
    8: GGMLType("Q8_0", 32, 34),
    9: GGMLType("Q8_1", 32, 36),
    10: GGMLType("Q2_K", 256, 84),
    11: GGMLType("Q3_K", 256, 110),
    12: GGMLType("Q4_K", 256, 144),
    13: GGMLType("Q5_K", 256, 176),
    14: GGMLType("Q6_K", 256, 210),
    15: GGMLType("Q8_K", 256, 292),
    16: GGMLType("IQ2_XXS", 256, 66),
    17: GGMLType("IQ2_XS", 256, 74),
    18: GGMLType("IQ3_XXS", 256, 98),
    19: GGMLType("IQ1_S", 256, 50),
    20: GGMLType("IQ4_NL", 32, 18),
    21: GGMLType("IQ3_S", 256, 110),
    22: GGMLType("IQ2_S", 256, 82),
    23: GGMLType("IQ4_XS", 256, 136),
    24: GGMLType("I8", 1, 1),
    25: GGMLType("I16", 1, 2),
    26: GGMLType("I32", 1, 4),
    27: GGMLType("I64", 1, 8),
    28: GGMLType("F64", 1, 8),
    29: GGMLType("IQ1_M", 256, 56),
    30: GGMLType("BF16", 1, 2),
    34: GGMLType("TQ1_0", 256, 54),
    35: GGMLType("TQ2_0", 256, 66),
    39: GGMLType("MXFP4", 32, 17),
    40: GGMLType("NVFP4", 64, 36),
    41: GGMLType("Q1_0", 128, 18),
    42: GGMLType("Q2_0", 64, 18),
}
"""By their number in the file. Numbers that are left out were given up by llama.cpp."""

_FILE_TYPE_NAMES = """
    F32 F16 Q4_0 Q4_1 - - - Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ2_XXS IQ2_XS Q2_K_S IQ3_XS
    IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16 - - - TQ1_0 TQ2_0 MXFP4_MOE NVFP4 Q1_0 Q2_0
"""
FILE_TYPES = {number: name for number, name in enumerate(_FILE_TYPE_NAMES.split()) if name != "-"}
"""By `general.file_type`, as llama.cpp counts them."""
GUESSED_FILE_TYPE = 1024
"""Added to a file type that was guessed from the tensors."""

PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True)
class GGUFTensor:
    """Where one tensor lies. `shape` is outermost first, as torch and numpy have it; `offset` counts from the file's start."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    path: Path
    offset: int
    num_bytes: int

    @property
    def num_elements(self) -> int:
        """How many numbers the tensor holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class GGUFFile:
    """One model's GGUF file, or all parts of one that is split.

    `metadata` values are int, float, bool, str, a list of str, or an array of numbers; it is that of the first part. `tensors`
    are those of all parts.
    """

    paths: tuple[Path, ...]
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]

    @property
    def architecture(self) -> str:
        """The family, as llama.cpp calls it (llama, qwen2, ...)."""
        return str(self.metadata["general.architecture"])

    @property
    def kind(self) -> str:
        """What the file holds: model, adapter, mmproj, imatrix, ..."""
        return str(self.metadata.get("general.type", "model"))

    @property
    def num_parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(tensor.num_elements for tensor in self.tensors.values())

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, as they are stored."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    @property
    def type_name(self) -> str:
        """What the quantisation is called (Q4_K_M); the type of most numbers when the file does not say."""
        file_type = self.metadata.get("general.file_type")
        if isinstance(file_type, int) and file_type % GUESSED_FILE_TYPE in FILE_TYPES:
            return FILE_TYPES[file_type % GUESSED_FILE_TYPE]
        elements: dict[str, int] = {}
        for tensor in self.tensors.values():
            name = GGML_TYPES[tensor.ggml_type].name
            elements[name] = elements.get(name, 0) + tensor.num_elements
        return max(elements, key=elements.__getitem__, default="no tensors")

    @property
    def context_len(self) -> int:
        """Tokens that the model was made for; 0 when the file does not say."""
        context_len = self.value("context_length")
        return context_len if isinstance(context_len, int) else 0

    @property
    def vocab_size(self) -> int:
        """Number of tokens; 0 when the file does not say."""
        tokens, size = self.metadata.get("tokenizer.ggml.tokens"), self.value("vocab_size")
        if isinstance(tokens, list):
            return len(tokens)
        return size if isinstance(size, int) else 0

    def value(self, key_suffix: str, default: Any = None) -> Any:
        """The architecture's own metadata: `value("block_count")` of a llama file is what it has under `llama.block_count`."""
        return self.metadata.get(f"{self.architecture}.{key_suffix}", default)


def split_paths(path: Path) -> tuple[Path, ...]:
    """All parts of the file that `path` is a part of, in order; `path` alone when its name is not that of a part.

    >>> [part.name for part in split_paths(Path("m-00002-of-00002.gguf"))]
    ['m-00001-of-00002.gguf', 'm-00002-of-00002.gguf']
    >>> split_paths(Path("m.gguf"))[0].name
    'm.gguf'
    """
    found = PART.fullmatch(path.name)
    if found is None or not 1 <= int(found["number"]) <= int(found["count"]):
        return (path,)
    count = int(found["count"])
    return tuple(path.with_name(f"{found['stem']}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1))


def read_gguf(path: Path, *, member: str) -> GGUFFile:
    """Read the metadata and the tensors' places of a GGUF file and, when it is the first of several parts, of all of them.

    Args:
        path: the file, or its first part. It may hold no tensors (a vocabulary only).
        member: whose file it is, for messages.

    Raises:
        ModelNotFoundError: the file or one of its parts does not exist.
        CorruptWeightsError: it is no GGUF file of version 2 or 3, it is damaged or cut off, or its parts do not fit together.
    """
    paths = split_paths(path)
    if path != paths[0]:
        raise CorruptWeightsError(
            f"{member}: {path} is a later part of a file in {len(paths)} parts; name the first one, {paths[0].name}",
            member=member,
            source=str(path),
        )
    missing = [part for part in paths if not part.is_file()]
    if missing:
        others = f"; it is part of {path.name}, and {len(missing)} of {len(paths)} parts are missing"
        raise ModelNotFoundError(
            f"{member}: there is no file {missing[0]}{others if len(paths) > 1 else ''}; put it there or name another file",
            member=member,
            source=str(missing[0]),
        )
    metadata: dict[str, Any] = {}
    tensors: dict[str, GGUFTensor] = {}
    for number, part in enumerate(paths):
        header = _Header(part, member)
        header.check_part(number, len(paths))
        if number == 0:
            metadata = header.metadata
        for tensor in header.tensors:
            if tensor.name in tensors:
                header.fail(f"tensor {tensor.name!r} is in {tensors[tensor.name].path.name} already")
            tensors[tensor.name] = tensor
    if not isinstance(metadata.get("general.architecture"), str):
        raise CorruptWeightsError(
            f"{member}: {path} does not say what it holds: general.architecture is "
            f"{metadata.get('general.architecture')!r}; name the file of a model",
            member=member,
            source=str(path),
        )
    expected = metadata.get("split.tensors.count")
    if isinstance(expected, int) and expected != len(tensors):
        raise CorruptWeightsError(
            f"{member}: {path} promises {expected} tensors in its {len(paths)} parts, and they hold {len(tensors)}; "
            "download all parts again",
            member=member,
            source=str(path),
        )
    return GGUFFile(paths, metadata, tensors)


class _Header:
    """Reads one file from its beginning to the end of its list of tensors."""

    def __init__(self, path: Path, member: str) -> None:
        self.path = path
        self.member = member
        self.position = 0
        self.metadata: dict[str, Any] = {}
        self.tensors: list[GGUFTensor] = []
        try:
            self.size = path.stat().st_size
            if self.size < len(MAGIC):
                self.fail(f"it has {self.size} bytes, and its header alone needs more")
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as self.buffer:
                self._read()
        except OSError as error:
            self.fail(f"it cannot be opened: {error}", advice="check its permissions")

    def fail(self, reason: str, *, advice: str = "download it again") -> NoReturn:
        raise CorruptWeightsError(
            f"{self.member}: {self.path} is not a GGUF file that can be read: {reason}; {advice}",
            member=self.member,
            source=str(self.path),
        )

    def check_part(self, number: int, count: int) -> None:
        """That the file's own `split.no` and `split.count` are what its name says."""
        own_number, own_count = self.metadata.get("split.no", 0), self.metadata.get("split.count", 1)
        if not isinstance(own_number, int) or not isinstance(own_count, int) or own_count <= 1:
            own_number, own_count = 0, 1
        if (own_number, own_count) != (number, count):
            self.fail(
                f"by its name it is part {number + 1} of {count}, and by its metadata part {own_number + 1} of {own_count}",
                advice="give all parts the names that they had (name-00001-of-00003.gguf)",
            )

    def _read(self) -> None:
        magic = self._take(4, "its beginning")
        if magic != MAGIC:
            self.fail(f"it begins with {magic!r}, not with {MAGIC!r}", advice="name a .gguf file")
        version = int(self._scalar(4, "its version"))
        if version & 0xFFFF == 0:
            self.fail(
                "it is big endian", advice="convert it with llama.cpp's gguf_convert_endian.py, or use a usual one"
            )
        if version not in VERSIONS:
            self.fail(f"it is of GGUF version {version}, and 2 and 3 are known", advice="convert the model anew")
        num_tensors = int(self._scalar(10, "the number of tensors"))
        num_values = int(self._scalar(10, "the number of metadata values"))
        if num_values * MIN_VALUE_BYTES + num_tensors * MIN_TENSOR_BYTES > self.size - self.position:
            self.fail(
                f"it is cut off: {num_values} metadata values and {num_tensors} tensors do not fit into {self.size} bytes"
            )
        for index in range(num_values):
            self._read_value(index)
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            self.fail(f"general.alignment is {alignment!r} and must be a power of two")
        places = [self._read_place() for _ in range(num_tensors)]
        self._place(places, data_start=-(-self.position // alignment) * alignment, alignment=alignment)

    def _read_value(self, index: int) -> None:
        what = f"metadata value {index}"
        key = self._text(f"the name of {what}")
        if not key or key in self.metadata:
            self.fail(f"{what} has the name {key!r}, " + ("which an earlier one has" if key else "which is none"))
        kind = int(self._scalar(4, what))
        if kind == ARRAY:
            element_kind = int(self._scalar(4, key))
            self.metadata[key] = self._array(element_kind, int(self._scalar(10, key)), key)
        else:
            self.metadata[key] = self._text(key) if kind == STRING else self._scalar(kind, key)

    def _take(self, num_bytes: int, what: str) -> bytes:
        """The next bytes."""
        if num_bytes > self.size - self.position:
            self.fail(
                f"it is cut off in {what}: {num_bytes} bytes are needed at {self.position}, and the file has {self.size}"
            )
        taken = self.buffer[self.position : self.position + num_bytes]
        self.position += num_bytes
        return taken

    def _scalar(self, kind: int, what: str) -> Any:
        if kind not in SCALARS:
            self.fail(f"{what} is of type {kind}, and types 0 to 12 are known", advice="convert the model anew")
        return SCALARS[kind].unpack(self._take(SCALARS[kind].size, what))[0]

    def _text(self, what: str) -> str:
        encoded = self._take(int(self._scalar(10, what)), what)
        try:
            return encoded.decode("utf-8")
        except UnicodeDecodeError as error:
            self.fail(f"{what} is not valid UTF-8 ({error})")

    def _array(self, kind: int, count: int, what: str) -> Any:
        """A list of texts, or an array of numbers."""
        if kind == STRING:
            return self._texts(count, what)
        if kind not in SCALARS:
            self.fail(f"{what} is a list of type {kind}, and lists of numbers and texts are known")
        encoded = self._take(count * SCALARS[kind].size, what)
        return np.frombuffer(encoded, dtype=np.dtype(SCALARS[kind].format).newbyteorder("<"))

    def _texts(self, count: int, what: str) -> list[str]:
        """`count` texts; one loop, since vocabularies have hundreds of thousands."""
        if count * 8 > self.size - self.position:
            self.fail(f"it is cut off in {what}: {count} texts do not fit behind byte {self.position} of {self.size}")
        buffer, end, unpack = self.buffer, self.position, SCALARS[10].unpack_from
        texts: list[str] = []
        try:
            for _ in range(count):
                start = end + 8
                end = start + unpack(buffer, end)[0]
                if end > self.size:
                    self.fail(
                        f"it is cut off in {what}: text {len(texts)} ends at {end}, and the file has {self.size} bytes"
                    )
                texts.append(buffer[start:end].decode("utf-8"))
        except struct.error:
            self.fail(f"it is cut off in {what}: text {len(texts)} begins at {end}, and the file has {self.size} bytes")
        except UnicodeDecodeError as error:
            self.fail(f"text {len(texts)} of {what} is not valid UTF-8 ({error})")
        self.position = end
        return texts

    def _read_place(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, ggml type and offset behind the header of the next tensor."""
        name = self._text("the name of a tensor")
        num_dimensions = int(self._scalar(4, name))
        if num_dimensions > MAX_DIMENSIONS:
            self.fail(f"tensor {name!r} has {num_dimensions} dimensions, and {MAX_DIMENSIONS} are the most there are")
        lengths = [int(self._scalar(10, name)) for _ in range(num_dimensions)]
        return name, tuple(reversed(lengths)), int(self._scalar(4, name)), int(self._scalar(10, name))

    def _place(self, places: list[tuple[str, tuple[int, ...], int, int]], *, data_start: int, alignment: int) -> None:
        names: set[str] = set()
        for name, shape, ggml_type, offset in places:
            if name in names:
                self.fail(f"it has two tensors {name!r}")
            names.add(name)
            if ggml_type not in GGML_TYPES:
                self.fail(
                    f"tensor {name!r} is of ggml type {ggml_type}, which is unknown", advice="convert the model anew"
                )
            kind = GGML_TYPES[ggml_type]
            row_len = shape[-1] if shape else 1
            if row_len % kind.block_len:
                self.fail(
                    f"tensor {name!r} has rows of {row_len} numbers, and {kind.name} packs {kind.block_len} together"
                )
            if offset % alignment:
                self.fail(f"tensor {name!r} begins at {offset}, which is not a multiple of {alignment}")
            num_bytes = math.prod(shape) // kind.block_len * kind.block_bytes
            self.tensors.append(GGUFTensor(name, shape, ggml_type, self.path, data_start + offset, num_bytes))
        end, before = data_start, ""
        for tensor in sorted(self.tensors, key=lambda tensor: (tensor.offset, tensor.num_bytes)):
            if tensor.offset < end:
                self.fail(f"tensor {tensor.name!r} begins at {tensor.offset}, inside {before!r}, which ends at {end}")
            end, before = tensor.offset + tensor.num_bytes, tensor.name
        if self.tensors and end > self.size:
            self.fail(f"it has {self.size} bytes and needs {end}: tensor {before!r} is cut off")
