"""The reader of GGUF headers against the package `gguf`, which writes the files; every defect is refused by name."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from eft_engine.errors import CorruptWeightsError, LoadError, ModelNotFoundError
from eft_engine.models.gguf_file import FILE_TYPES, GGML_TYPES, read_gguf, split_paths

KIND = gguf.GGUFValueType
VALUES = {
    "kind.uint8": (255, KIND.UINT8),
    "kind.int8": (-128, KIND.INT8),
    "kind.uint16": (65535, KIND.UINT16),
    "kind.int16": (-32768, KIND.INT16),
    "kind.uint32": (2**32 - 1, KIND.UINT32),
    "kind.int32": (-(2**31), KIND.INT32),
    "kind.uint64": (2**64 - 1, KIND.UINT64),
    "kind.int64": (-(2**63), KIND.INT64),
    "kind.float32": (0.5, KIND.FLOAT32),
    "kind.float64": (0.1, KIND.FLOAT64),
    "kind.bool": (True, KIND.BOOL),
    "kind.string": ("naïve 世界\n\0 🙂", KIND.STRING),
}


def new_writer(path: Path, **options: int) -> gguf.GGUFWriter:
    """A writer of a llama file that says how long its context is."""
    writer = gguf.GGUFWriter(path, "llama", **options)
    writer.add_context_length(2048)
    return writer


def close(writer: gguf.GGUFWriter) -> None:
    """Write the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A file with two tensors: `first` (float32, 3 x 8) and `second` (Q8_0, 2 x 64)."""
    writer = new_writer(tmp_path / "good.gguf")
    writer.add_vocab_size(7)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_uint32("general.file_typo", 1)
    writer.add_token_list(["a", "b", "cde"])
    writer.add_tensor("first", np.arange(24, dtype=np.float32).reshape(3, 8))
    blocks = gguf.quants.quantize(np.ones((2, 64), dtype=np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("second", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    close(writer)
    return tmp_path / "good.gguf"


def test_values_of_all_kinds_come_back(tmp_path: Path) -> None:
    writer = new_writer(tmp_path / "m.gguf")
    for key, (value, kind) in VALUES.items():
        writer.add_key_value(key, value, kind)
        writer.add_key_value(f"{key}.list", [value, value], KIND.ARRAY, sub_type=kind)
    close(writer)
    metadata = read_gguf(tmp_path / "m.gguf", member="base").metadata
    for key, (value, kind) in VALUES.items():
        assert metadata[key] == value
        assert type(metadata[key]) is type(value)
        assert list(metadata[f"{key}.list"]) == [value, value]
        assert isinstance(metadata[f"{key}.list"], list if kind == KIND.STRING else np.ndarray)


def test_tensors_are_found_where_they_are(good: Path) -> None:
    file = read_gguf(good, member="base")
    assert list(file.tensors) == ["first", "second"]
    for tensor in gguf.GGUFReader(good).tensors:
        own = file.tensors[tensor.name]
        assert own.shape == tuple(reversed(tensor.shape.tolist()))
        assert (own.ggml_type, own.num_bytes, own.num_elements) == (
            tensor.tensor_type,
            tensor.n_bytes,
            tensor.n_elements,
        )
        assert own.offset == tensor.data_offset
        assert own.path == good
    first = file.tensors["first"]
    numbers = np.frombuffer(good.read_bytes(), dtype="<f4", count=first.num_elements, offset=first.offset)
    assert numbers.tolist() == list(range(24))


def test_a_file_describes_itself(good: Path) -> None:
    file = read_gguf(good, member="base")
    assert (file.architecture, file.kind, file.type_name) == ("llama", "model", "Q4_K_M")
    assert (file.num_parameters, file.tensor_bytes) == (24 + 128, 24 * 4 + 2 * 2 * 34)
    assert (file.context_len, file.vocab_size) == (2048, 3)  # as many as there are tokens, whatever the key says
    assert file.value("context_length") == 2048
    assert file.value("no.such.key", 5) == 5


def test_what_a_file_does_not_say_is_worked_out_or_zero(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_type("adapter")
    writer.add_tensor("small", np.zeros(3, dtype=np.float32))
    writer.add_tensor("large", np.zeros((4, 4), dtype=np.float16))
    close(writer)
    file = read_gguf(tmp_path / "m.gguf", member="base")
    assert (file.kind, file.type_name, file.context_len, file.vocab_size) == ("adapter", "F16", 0, 0)


def test_a_file_may_hold_no_tensors(tmp_path: Path) -> None:
    writer = new_writer(tmp_path / "m.gguf")
    writer.add_vocab_size(7)
    close(writer)
    file = read_gguf(tmp_path / "m.gguf", member="base")
    assert (file.num_parameters, file.type_name, file.vocab_size) == (0, "no tensors", 7)


def test_version_2_is_read_alike(good: Path) -> None:
    file = read_gguf(good, member="base")
    patch(good, 4, struct.pack("<I", 2))
    assert read_gguf(good, member="base").tensors == file.tensors


def test_tables_of_types_are_those_of_the_package() -> None:
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items() if kind.name != "Q8_1"}
    assert theirs.items() <= {number: tuple(kind) for number, kind in GGML_TYPES.items()}.items()
    names = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
    assert {number: name for number, name in names.items() if name != "GUESSED"}.items() <= FILE_TYPES.items()


# ---------------------------------------------------------------------------------------------------- parts


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """A file in three parts of two, two and one tensors."""
    writer = new_writer(tmp_path / "m.gguf", split_max_tensors=2)
    for index in range(5):
        writer.add_tensor(f"tensor.{index}", np.full(8, index, dtype=np.float32))
    close(writer)
    return sorted(tmp_path.glob("*.gguf"))


def test_all_parts_are_read(parts: list[Path]) -> None:
    file = read_gguf(parts[0], member="base")
    assert file.paths == tuple(parts) == split_paths(parts[1])
    assert [tensor.path for tensor in file.tensors.values()] == [parts[index // 2] for index in range(5)]
    assert file.context_len == 2048
    for index, tensor in enumerate(file.tensors.values()):
        assert np.fromfile(tensor.path, dtype="<f4", count=1, offset=tensor.offset) == index


def test_a_later_part_names_the_first(parts: list[Path]) -> None:
    with pytest.raises(CorruptWeightsError, match="name the first one, m-00001-of-00003.gguf"):
        read_gguf(parts[1], member="base")


def test_a_missing_part_is_named(parts: list[Path]) -> None:
    parts[2].unlink()
    with pytest.raises(ModelNotFoundError, match="m-00003-of-00003.gguf.* 1 of 3 parts are missing") as caught:
        read_gguf(parts[0], member="base")
    assert (caught.value.member, caught.value.source) == ("base", str(parts[2]))


def test_parts_that_changed_places_are_refused(parts: list[Path]) -> None:
    first, second = parts[1].read_bytes(), parts[2].read_bytes()
    parts[1].write_bytes(second)
    parts[2].write_bytes(first)
    with pytest.raises(CorruptWeightsError, match="by its name it is part 2 of 3, and by its metadata part 3 of 3"):
        read_gguf(parts[0], member="base")


def test_a_part_under_another_name_is_refused(parts: list[Path], tmp_path: Path) -> None:
    renamed = parts[0].rename(tmp_path / "whole.gguf")
    with pytest.raises(CorruptWeightsError, match="by its name it is part 1 of 1, and by its metadata part 1 of 3"):
        read_gguf(renamed, member="base")


def test_a_whole_file_under_the_name_of_a_part_is_refused(good: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"x-0000{number}-of-00002.gguf").write_bytes(good.read_bytes())
    with pytest.raises(CorruptWeightsError, match="by its name it is part 1 of 2, and by its metadata part 1 of 1"):
        read_gguf(tmp_path / "x-00001-of-00002.gguf", member="base")


def test_a_tensor_in_two_parts_is_refused(parts: list[Path]) -> None:
    patch_text(parts[1], "tensor.3", "tensor.0")
    with pytest.raises(CorruptWeightsError, match=r"'tensor.0' is in m-00001-of-00003.gguf already"):
        read_gguf(parts[0], member="base")


def test_too_few_tensors_in_all_parts_are_refused(parts: list[Path]) -> None:
    for part in parts:
        patch_after(part, "split.tensors.count", 4, struct.pack("<i", 6))
    with pytest.raises(CorruptWeightsError, match="promises 6 tensors in its 3 parts, and they hold 5"):
        read_gguf(parts[0], member="base")


@pytest.mark.parametrize("name", ["m.gguf", "m-00004-of-00003.gguf", "m-00000-of-00003.gguf", "m-1-of-3.gguf", "m.bin"])
def test_other_names_are_of_whole_files(name: str) -> None:
    assert split_paths(Path("folder", name)) == (Path("folder", name),)


# -------------------------------------------------------------------------------------------------- defects


def patch(path: Path, position: int, new: bytes) -> None:
    """Overwrite bytes of a file."""
    data = bytearray(path.read_bytes())
    data[position : position + len(new)] = new
    path.write_bytes(data)


def patch_text(path: Path, old: str, new: str) -> None:
    """Overwrite a text of a file by one of its length."""
    data = path.read_bytes()
    assert len(old) == len(new)
    assert data.count(old.encode()) == 1
    path.write_bytes(data.replace(old.encode(), new.encode()))


def patch_after(path: Path, text: str, distance: int, new: bytes) -> None:
    """Overwrite bytes that come `distance` bytes after a text of a file."""
    patch(path, path.read_bytes().index(text.encode()) + len(text) + distance, new)


def cut(path: Path, *, after: str) -> None:
    """End a file behind a text."""
    data = path.read_bytes()
    path.write_bytes(data[: data.index(after.encode()) + len(after)])


HUGE = struct.pack("<Q", 2**60)
# after a tensor's name: number of dimensions (4), dimensions (8 each, two of them), type (4), offset (8)
DEFECTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "it has 0 bytes"),
    "magic": (lambda path: patch(path, 0, b"GGML"), "it begins with b'GGML'"),
    "version 1": (lambda path: patch(path, 4, struct.pack("<I", 1)), "version 1, and 2 and 3 are known"),
    "version 4": (lambda path: patch(path, 4, struct.pack("<I", 4)), "version 4"),
    "big endian": (lambda path: patch(path, 4, struct.pack(">I", 3)), "big endian"),
    "only a magic": (lambda path: path.write_bytes(b"GGUF"), "cut off in its version"),
    "too many tensors": (
        lambda path: patch(path, 8, HUGE),
        "metadata values and 1152921504606846976 tensors do not fit",
    ),
    "too many values": (
        lambda path: patch(path, 16, HUGE),
        "1152921504606846976 metadata values and 2 tensors do not fit",
    ),
    "ends in a name": (lambda path: cut(path, after="tokenizer.gg"), "cut off in the name of metadata value 5"),
    "ends in a list": (lambda path: cut(path, after="cd"), "cut off in tokenizer.ggml.tokens: text 2 ends at"),
    "ends before a text": (
        lambda path: path.write_bytes(path.read_bytes().partition(b"cde")[0][:-1]),
        "cut off in tokenizer.ggml.tokens: text 2 begins at",
    ),
    "ends in a tensor": (lambda path: cut(path, after="second"), "cut off in second: 4 bytes are needed"),
    "ends in data": (
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        r"has \d+ bytes and needs \d+.*'second' is cut off",
    ),
    "a long text": (lambda path: patch_after(path, "general.architecture", 4, HUGE), "cut off in general.architecture"),
    "a long list": (lambda path: patch_after(path, "tokenizer.ggml.tokens", 8, HUGE), "texts do not fit behind byte"),
    "a long array": (
        lambda path: patch_after(path, "tokenizer.ggml.tokens", 4, struct.pack("<I", KIND.INT32) + HUGE),
        "cut off in tokenizer.ggml.tokens: 4611686018427387904 bytes are needed",
    ),
    "a list of lists": (
        lambda path: patch_after(path, "tokenizer.ggml.tokens", 4, struct.pack("<I", KIND.ARRAY)),
        "tokenizer.ggml.tokens is a list of type 9",
    ),
    "a value of no type": (
        lambda path: patch_after(path, "llama.vocab_size", 0, struct.pack("<I", 13)),
        "llama.vocab_size is of type 13",
    ),
    "a name twice": (
        lambda path: patch_text(path, "general.file_typo", "general.file_type"),
        "value 4 has the name 'general.file_type', which an earlier one has",
    ),
    "invalid text": (
        lambda path: patch_after(path, "general.architecture", 12, b"\xff"),
        "general.architecture is not valid UTF-8",
    ),
    "invalid text in a list": (
        lambda path: patch(path, path.read_bytes().index(b"cde"), b"\xffxx"),
        "text 2 of tokenizer.ggml.tokens is not valid UTF-8",
    ),
    "no architecture": (
        lambda path: patch_text(path, "general.architecture", "general.architectura"),
        "general.architecture is None",
    ),
    "five dimensions": (lambda path: patch_after(path, "first", 0, struct.pack("<I", 5)), "'first' has 5 dimensions"),
    "an unknown type": (lambda path: patch_after(path, "first", 20, struct.pack("<I", 4)), "'first' is of ggml type 4"),
    "part of a block": (
        lambda path: patch_after(path, "first", 20, struct.pack("<I", 8)),
        "rows of 8 numbers, and Q8_0 packs 32",
    ),
    "a long tensor": (lambda path: patch_after(path, "second", 12, HUGE), "'second' is cut off"),
    "a crooked offset": (
        lambda path: patch_after(path, "second", 24, struct.pack("<Q", 97)),
        "97, which is not a multiple of 32",
    ),
    "tensors that overlap": (
        lambda path: patch_after(path, "second", 24, struct.pack("<Q", 64)),
        "'second' begins at .*, inside 'first'",
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_refused_by_name(good: Path, name: str) -> None:
    make, words = DEFECTS[name]
    make(good)
    with pytest.raises(CorruptWeightsError, match=words) as caught:
        read_gguf(good, member="chat.tuned")
    assert (caught.value.member, caught.value.source) == ("chat.tuned", str(good))


@pytest.mark.parametrize("alignment", [0, 24])
def test_an_alignment_that_is_none_is_refused(tmp_path: Path, alignment: int) -> None:
    writer = new_writer(tmp_path / "m.gguf")
    writer.add_uint32("general.alignment", alignment)
    close(writer)
    with pytest.raises(CorruptWeightsError, match=f"general.alignment is {alignment}"):
        read_gguf(tmp_path / "m.gguf", member="base")


def test_another_alignment_is_kept_to(tmp_path: Path) -> None:
    writer = new_writer(tmp_path / "m.gguf")
    writer.add_custom_alignment(128)
    writer.add_tensor("first", np.zeros(3, dtype=np.float32))
    writer.add_tensor("second", np.full(3, 7, dtype=np.float32))
    close(writer)
    second = read_gguf(tmp_path / "m.gguf", member="base").tensors["second"]
    assert second.offset % 128 == 0
    assert np.fromfile(second.path, dtype="<f4", count=1, offset=second.offset) == 7


def test_two_tensors_of_one_name_are_refused(good: Path) -> None:
    data = good.read_bytes()
    good.write_bytes(data.replace(struct.pack("<Q", 6) + b"second", struct.pack("<Q", 5) + b"first", 1) + bytes(32))
    with pytest.raises(CorruptWeightsError, match="two tensors 'first'"):
        read_gguf(good, member="base")


def test_nothing_there_is_said_so(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(ModelNotFoundError, match="there is no file") as caught:
            read_gguf(path, member="base")
        assert caught.value.source == str(path)


def test_a_file_that_must_not_be_read_is_said_so(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CorruptWeightsError, match="cannot be opened: not yours"):
        read_gguf(good, member="base")


def test_whatever_is_damaged_is_an_error_of_loading(good: Path) -> None:
    """Bytes of the header are changed at random: the file is read, or refused by one of our errors, and never by another."""
    data, draw = good.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(500):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(600)] = draw.randrange(256)
        good.write_bytes(damaged[: draw.choice([len(data), len(data), draw.randrange(len(data))])])
        try:
            file = read_gguf(good, member="base")
        except LoadError:
            refused += 1
        else:
            assert file.num_parameters >= 0
            assert file.type_name
    assert refused > 100
