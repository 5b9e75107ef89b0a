"""Broken GGUF files: what arrives after half a download, a wrong `cat`, another tool's bug, or malice.

llama.cpp answers some of them with an assertion that ends the process, runs others into garbage, and reads a few past their end. So
each has to be refused, with a typed error that names the member, before llama.cpp sees it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from tests.gguf_files import HYBRID_ARCHITECTURES, GgufContents, StoredTensor, gguf_contents, make_hybrid, write_split
from tests.toy import make_model, make_tokenizer

BOTH = ("torch", "llama.cpp")
HUGE = 2**60
UNSUPPORTED, NOT_FOUND, TOKENIZER, ADAPTER = (
    "UnsupportedModelError",
    "ModelNotFoundError",
    "TokenizerMissingError",
    "UnsupportedAdapterError",
)


@dataclass(frozen=True)
class BadFile:
    """One broken input. `make(folder)` writes it and returns the fields of the `MemberConfig` that loads it as `member`.

    Loading has to raise `error` (a name of `eft_engine.errors`) with a message in which the expression `words` is found. `runtimes`
    are those it is broken for: torch does not look at everything that llama.cpp relies on.
    """

    name: str
    make: Callable[[Path], dict[str, Any]]
    words: str
    error: str = "CorruptWeightsError"
    member: str = "base"
    runtimes: tuple[str, ...] = BOTH


@cache
def good_contents(file_type: str = "F32") -> GgufContents:
    """The llama of `toy.make_trio`'s base, whole."""
    return gguf_contents(make_model("llama", hidden_size=64, seed=1), make_tokenizer(), file_type=file_type)


def _contents(
    change: Callable[[GgufContents], GgufContents], *, file_type: str = "F32", **writing: Any
) -> Callable[[Path], dict[str, Any]]:
    """A maker of the good file with other contents."""

    def make(folder: Path) -> dict[str, Any]:
        return {"source": str(change(good_contents(file_type)).write(folder / "bad.gguf", **writing))}

    return make


def _keys(**changes: Any) -> Callable[[Path], dict[str, Any]]:
    """A maker of the good file with other metadata; `__` in a name stands for a dot."""
    return _contents(lambda file: file.with_keys({name.replace("__", "."): value for name, value in changes.items()}))


def _tensor(name: str, **changes: Any) -> Callable[[Path], dict[str, Any]]:
    """A maker of the good file with one tensor changed."""
    return _contents(lambda file: file.with_tensor(name, **changes))


def _bytes(change: Callable[[bytes], bytes], *, file_type: str = "F32") -> Callable[[Path], dict[str, Any]]:
    """A maker of the good file with other bytes."""

    def make(folder: Path) -> dict[str, Any]:
        path = good_contents(file_type).write(folder / "bad.gguf")
        path.write_bytes(change(path.read_bytes()))
        return {"source": str(path)}

    return make


def _renamed(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """A name in the file replaced by one that is as long."""
    assert len(old) == len(new)
    return lambda data: data.replace(old, new, 1)


def _joined(order: tuple[int, ...]) -> Callable[[bytes], bytes]:
    """What `cat` makes of the pieces of `split -b`, in this order. Pieces end inside a block."""

    def join(data: bytes) -> bytes:
        size = -(-len(data) // 3) + 5
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        return b"".join(pieces[index] for index in order)

    return join


def _with_value(name: str, index: int, value: float) -> Callable[[Path], dict[str, Any]]:
    """One number of an F32 tensor replaced."""

    def change(file: GgufContents) -> GgufContents:
        numbers = np.frombuffer(file.tensor(name).data, dtype=np.float32).copy()
        numbers[index] = value
        return file.with_tensor(name, data=numbers.tobytes())

    return _contents(change)


def _with_scale(name: str, value: float) -> Callable[[Path], dict[str, Any]]:
    """The scale (float16) of one Q8_0 block replaced; a block is 2 bytes of scale and 32 of numbers."""

    def change(file: GgufContents) -> GgufContents:
        data = bytearray(file.tensor(name).data)
        data[34 * 7 : 34 * 7 + 2] = np.float16(value).tobytes()
        return file.with_tensor(name, data=bytes(data))

    return _contents(change, file_type="Q8_0")


def _as_architecture(name: str) -> Callable[[GgufContents], GgufContents]:
    """The same file, all keys included, called another architecture."""

    def change(file: GgufContents) -> GgufContents:
        renamed = {key.replace("llama.", f"{name}.", 1): value for key, value in file.metadata.items()}
        return replace(file, metadata=renamed | {"general.architecture": name})

    return change


def _without_vocabulary(file: GgufContents) -> GgufContents:
    return file.with_keys({key: None for key in file.metadata if key.startswith("tokenizer.")})


def _split(change: Callable[[list[Path]], Path]) -> Callable[[Path], dict[str, Any]]:
    """The good file in three parts, with something done to them; `change` returns the part to load."""

    def make(folder: Path) -> dict[str, Any]:
        parts = write_split(good_contents().write(folder / "whole.gguf"), 3)
        (folder / "whole.gguf").unlink()
        return {"source": str(change(parts))}

    return make


def _remove_second(parts: list[Path]) -> Path:
    parts[1].unlink()
    return parts[0]


def _swap_last_two(parts: list[Path]) -> Path:
    second, third = parts[1].read_bytes(), parts[2].read_bytes()
    parts[1].write_bytes(third)
    parts[2].write_bytes(second)
    return parts[0]


def _repeat_second(parts: list[Path]) -> Path:
    parts[2].write_bytes(parts[1].read_bytes())
    return parts[0]


def _rename_first(parts: list[Path]) -> Path:
    return parts[0].rename(parts[0].with_name("model.gguf"))


def _cut_third(parts: list[Path]) -> Path:
    parts[2].write_bytes(parts[2].read_bytes()[:-100])
    return parts[0]


def _without_block_1(file: GgufContents) -> GgufContents:
    return replace(file, tensors=[tensor for tensor in file.tensors if not tensor.name.startswith("blk.1.")])


def _with_unknown_tensor(file: GgufContents) -> GgufContents:
    return replace(file, tensors=[*file.tensors, replace(file.tensor("output_norm.weight"), name="blk.0.attn_sinks")])


def _with_long_name(file: GgufContents) -> GgufContents:
    return replace(file, tensors=[*file.tensors, replace(file.tensor("output_norm.weight"), name="x" * 64)])


def _as_kind(name: str, kind: str) -> Callable[[Path], dict[str, Any]]:
    """One tensor stored in another ggml type, all numbers 0."""

    def change(file: GgufContents) -> GgufContents:
        number = GGMLQuantizationType[kind]
        block_len, block_bytes = (32, 36) if kind == "Q8_1" else GGML_QUANT_SIZES[number]  # the package has Q8_1 wrong
        size = math.prod(file.tensor(name).shape) // block_len * block_bytes
        return file.with_tensor(name, kind=int(number), data=bytes(size))

    return _contents(change)


def _with_half_bias(file: GgufContents) -> GgufContents:
    bias = StoredTensor("blk.0.attn_q.bias", (64,), GGMLQuantizationType.F16, bytes(128))
    return replace(file, tensors=[*file.tensors, bias])


def _with_heads(*, num_kv_heads: int, head_dim: int) -> Callable[[GgufContents], GgufContents]:
    """Other heads, in keys and shapes alike: four of queries."""

    def change(file: GgufContents) -> GgufContents:
        keys = {"key_length": head_dim, "value_length": head_dim, "head_count_kv": num_kv_heads}
        file = file.with_keys({f"llama.attention.{key}": value for key, value in keys.items()})
        file = file.with_keys({"llama.rope.dimension_count": head_dim})
        q, kv = 4 * head_dim, num_kv_heads * head_dim
        shapes = {"attn_q": (q, 64), "attn_k": (kv, 64), "attn_v": (kv, 64), "attn_output": (64, q)}
        for layer in range(2):
            for name, shape in shapes.items():
                zeros = bytes(4 * math.prod(shape))
                file = file.with_tensor(f"blk.{layer}.{name}.weight", shape=shape, data=zeros)
        return file

    return change


def _of_family(architecture: str, change: Callable[[GgufContents], GgufContents]) -> Callable[[Path], dict[str, Any]]:
    """A maker of a whole file of another family with something changed."""

    def make(folder: Path) -> dict[str, Any]:
        make_any = make_hybrid if architecture in HYBRID_ARCHITECTURES else make_model
        contents = gguf_contents(make_any(architecture, hidden_size=64, seed=1), make_tokenizer())
        return {"source": str(change(contents).write(folder / "bad.gguf"))}

    return make


def _heads(counts: list[int]) -> Callable[[Path], dict[str, Any]]:
    return _keys(llama__attention__head_count=np.array(counts, dtype=np.int32))


def _directory(folder: Path) -> dict[str, Any]:
    (folder / "bad.gguf").mkdir()
    return {"source": str(folder / "bad.gguf")}


def good_adapter() -> GgufContents:
    """A LoRA of rank 4 on the queries and values of the good file, as llama.cpp's converter writes one."""
    generator = np.random.default_rng(7)
    metadata = {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
    }

    def tensors() -> Iterator[StoredTensor]:
        for layer in range(2):
            for name, out in (("attn_q", 64), ("attn_v", 32)):
                for suffix, shape in (("lora_a", (4, 64)), ("lora_b", (out, 4))):
                    data = generator.normal(size=shape).astype(np.float32).tobytes()
                    yield StoredTensor(f"blk.{layer}.{name}.weight.{suffix}", shape, GGMLQuantizationType.F32, data)

    return GgufContents(metadata, list(tensors()))


def _adapter(change: Callable[[GgufContents], GgufContents]) -> Callable[[Path], dict[str, Any]]:
    """A maker of the good file with a changed adapter on it."""

    def make(folder: Path) -> dict[str, Any]:
        source = good_contents().write(folder / "good.gguf")
        return {"source": str(source), "adapter": str(change(good_adapter()).write(folder / "adapter.gguf"))}

    return make


def _renamed_tensor(old: str, new: str) -> Callable[[GgufContents], GgufContents]:
    def change(file: GgufContents) -> GgufContents:
        return replace(file, tensors=[replace(tensor, name=tensor.name.replace(old, new)) for tensor in file.tensors])

    return change


def _reshaped(name: str, shape: tuple[int, ...]) -> Callable[[GgufContents], GgufContents]:
    """One tensor in another shape, of as many numbers or fewer."""

    def change(file: GgufContents) -> GgufContents:
        return file.with_tensor(name, shape=shape, data=file.tensor(name).data[: 4 * math.prod(shape)])

    return change


def _rank_0(file: GgufContents) -> GgufContents:
    narrowed = file.with_tensor("blk.0.attn_q.weight.lora_a", shape=(0, 64), data=b"")
    return narrowed.with_tensor("blk.0.attn_q.weight.lora_b", shape=(64, 0), data=b"")


def _more(*tensors: tuple[str, tuple[int, ...]]) -> Callable[[GgufContents], GgufContents]:
    """More tensors, all ones."""
    added = [
        StoredTensor(name, shape, GGMLQuantizationType.F32, np.ones(shape, dtype=np.float32).tobytes())
        for name, shape in tensors
    ]
    return lambda file: replace(file, tensors=[*file.tensors, *added])


def _in_three_dimensions(file: GgufContents) -> GgufContents:
    wide = file.with_tensor("blk.0.attn_q.weight.lora_a", shape=(2, 4, 64), data=bytes(2048))
    return wide.with_tensor("blk.0.attn_q.weight.lora_b", shape=(2, 64, 4), data=bytes(2048))


def _adapter_kind(kind: str) -> Callable[[GgufContents], GgufContents]:
    return lambda file: file.with_tensor("blk.0.attn_q.weight.lora_a", kind=int(GGMLQuantizationType[kind]))


def _adapter_nan(file: GgufContents) -> GgufContents:
    return file.with_tensor("blk.0.attn_q.weight.lora_b", data=np.full((64, 4), np.nan, dtype=np.float32).tobytes())


def _adapter_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        fields = _adapter(lambda file: file)(folder)
        path = Path(fields["adapter"])
        path.write_bytes(change(path.read_bytes()))
        return fields

    return make


def _adapter_as_model(folder: Path) -> dict[str, Any]:
    return {"source": str(good_adapter().write(folder / "adapter.gguf"))}


def _model_as_adapter(folder: Path) -> dict[str, Any]:
    path = good_contents().write(folder / "good.gguf")
    return {"source": str(path), "adapter": str(path)}


def _llama_cpp(name: str, make: Callable[[Path], dict[str, Any]], words: str, **others: str) -> BadFile:
    """Bad for llama.cpp alone."""
    return BadFile(name, make, words, runtimes=("llama.cpp",), **others)


def _bad_adapter(
    name: str, change: Callable[[GgufContents], GgufContents], words: str, error: str = "CorruptWeightsError"
) -> BadFile:
    return _llama_cpp(name, _adapter(change), words, error=error, member="chat.tuned")


def _array(kind: GGUFValueType, count: int) -> bytes:
    """The head of an array that promises `count` values; none follow."""
    return struct.pack("<IIQ", GGUFValueType.ARRAY, kind, count)


def _text(length: int) -> bytes:
    """The head of a text that promises `length` bytes; none follow."""
    return struct.pack("<IQ", GGUFValueType.STRING, length)


def _tokens(change: Callable[[list[str]], list[str]]) -> Callable[[Path], dict[str, Any]]:
    """A maker of the good file with other tokens, and a type for each."""

    def changed(file: GgufContents) -> GgufContents:
        tokens = change(list(file.metadata["tokenizer.ggml.tokens"]))
        kinds = np.ones(len(tokens), dtype=np.int32)
        return file.with_keys({"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds})

    return _contents(changed)


CONTAINERS = [
    BadFile("empty", _bytes(lambda data: b""), "0 bytes"),
    BadFile("three_bytes", _bytes(lambda data: data[:3]), "3 bytes"),
    BadFile("wrong_magic", _bytes(lambda data: b"GGML" + data[4:]), "GGML"),
    BadFile("html_page", _bytes(lambda data: b"<!DOCTYPE html><html>404</html>"), "<!DO"),
    BadFile("folder_named_gguf", _directory, "bad.gguf", error=NOT_FOUND),
    BadFile("version_99", _contents(lambda file: file, version=99), "version 99"),
    BadFile("version_1", _contents(lambda file: file, version=1), "version 1"),
    BadFile("big_endian", _contents(lambda file: file, byte_order=">"), "big endian"),
    BadFile("cut_in_the_counts", _bytes(lambda data: data[:12]), "cut off"),
    BadFile("cut_in_the_keys", _bytes(lambda data: data[:500]), "cut off"),
    BadFile("cut_in_the_tokens", _bytes(lambda data: data[:2000]), "cut off"),
    BadFile("cut_in_the_table", _bytes(lambda data: data[: data.index(b"blk.1.ffn_norm.weight")]), "cut off"),
    BadFile("cut_before_the_data", _bytes(lambda data: data[: data.index(b"output.weight") + 90]), "cut off"),
    BadFile("cut_in_half", _bytes(lambda data: data[: len(data) // 2]), "cut off"),
    BadFile("last_byte_missing", _bytes(lambda data: data[:-1]), "cut off"),
    BadFile("middle_missing", _bytes(lambda data: data[:100_000] + data[200_000:]), "cut off"),
    BadFile("pieces_joined_1_3", _bytes(_joined((0, 2))), "cut off"),
    _llama_cpp("pieces_joined_1_3_2", _bytes(_joined((0, 2, 1)), file_type="Q8_0"), "finite|invalid data"),
    BadFile("pieces_joined_2_1_3", _bytes(_joined((1, 0, 2))), "begins with"),
    BadFile("keys_2_60", _bytes(lambda data: data[:16] + struct.pack("<Q", HUGE) + data[24:]), "cut off|keys"),
    BadFile("tensors_2_60", _bytes(lambda data: data[:8] + struct.pack("<Q", HUGE) + data[16:]), "cut off"),
    BadFile("tensors_2_63", _bytes(lambda data: data[:8] + struct.pack("<Q", 2**63) + data[16:]), "cut off"),
    BadFile("text_of_2_60_bytes", _keys(general__name=_text(HUGE)), "general.name"),
    BadFile("array_of_2_60_numbers", _keys(general__tags=_array(GGUFValueType.INT32, HUGE)), "general.tags"),
    BadFile("array_of_2_60_texts", _keys(general__tags=_array(GGUFValueType.STRING, HUGE)), "general.tags"),
    BadFile("array_of_arrays", _keys(general__tags=_array(GGUFValueType.ARRAY, 2)), "general.tags"),
    BadFile("value_of_type_77", _keys(general__name=struct.pack("<I", 77)), "77"),
    BadFile("key_twice", _bytes(_renamed(b"llama.rope.freq_base", b"llama.context_length")), "context_length"),
    BadFile("alignment_0", _keys(general__alignment=0), "alignment"),
    BadFile("alignment_24", _keys(general__alignment=24), "alignment"),
    BadFile("alignment_is_text", _keys(general__alignment="32"), "alignment"),
]

TENSORS = [
    BadFile("no_tensors", _contents(lambda file: replace(file, tensors=[])), "tensors|token_embd"),
    BadFile("no_embedding", _contents(lambda file: file.without("token_embd.weight")), "token_embd|embed_tokens"),
    BadFile("no_query", _contents(lambda file: file.without("blk.1.attn_q.weight")), "blk.1.attn_q|1.self_attn.q_proj"),
    BadFile("no_block_1", _contents(_without_block_1), r"blk\.1\.|layers\.1\."),
    BadFile("no_output_norm", _contents(lambda file: file.without("output_norm.weight")), r"output_norm|model\.norm"),
    _llama_cpp("unknown_tensor", _contents(_with_unknown_tensor), "attn_sinks|wrong number of tensors"),
    BadFile("tensor_twice", _bytes(_renamed(b"blk.1.ffn_up.weight", b"blk.0.ffn_up.weight")), "blk.0.ffn_up.weight"),
    _llama_cpp("name_too_long", _contents(_with_long_name), "xxxx|tensor info"),
    BadFile("other_shape", _tensor("blk.0.attn_q.weight", shape=(32, 128)), "blk.0.attn_q|0.self_attn.q_proj"),
    BadFile("shape_turned", _tensor("blk.0.attn_k.weight", shape=(64, 32)), "blk.0.attn_k|0.self_attn.k_proj"),
    BadFile("shape_longer_than_the_data", _tensor("output.weight", shape=(2600, 64)), "cut off"),
    BadFile("dimension_0", _tensor("blk.0.attn_q.weight", shape=(0, 64), data=b""), "blk.0.attn_q"),
    BadFile("no_dimensions", _tensor("output_norm.weight", shape=()), r"output_norm|model\.norm|tensor data"),
    BadFile("dimension_2_62", _tensor("blk.0.attn_q.weight", shape=(2**62, 64)), "blk.0.attn_q"),
    BadFile("dimension_2_63", _tensor("blk.0.attn_q.weight", shape=(2**63, 64)), "blk.0.attn_q"),
    BadFile("sizes_overflow", _tensor("blk.0.attn_q.weight", shape=(2**32, 2**32)), "blk.0.attn_q"),
    BadFile("dimensions_5", _tensor("blk.0.attn_q.weight", shape=(1, 1, 1, 64, 64)), "blk.0.attn_q"),
    BadFile("type_250", _tensor("blk.0.attn_q.weight", kind=250), "250"),
    BadFile("type_given_up", _tensor("blk.0.attn_q.weight", kind=4), "type 4"),
    _llama_cpp("type_of_activations", _as_kind("blk.0.attn_q.weight", "Q8_1"), "blk.0.attn_q"),
    _llama_cpp("weights_are_integers", _as_kind("blk.0.attn_q.weight", "I32"), "blk.0.attn_q"),
    _llama_cpp("weights_are_doubles", _as_kind("blk.0.attn_q.weight", "F64"), "blk.0.attn_q"),
    _llama_cpp("embedding_of_integers", _as_kind("token_embd.weight", "I8"), "token_embd"),
    _llama_cpp("norm_of_half_floats", _as_kind("blk.0.attn_norm.weight", "F16"), "blk.0.attn_norm"),
    _llama_cpp("norm_in_blocks", _as_kind("output_norm.weight", "Q8_0"), "output_norm"),
    _llama_cpp("bias_of_half_floats", _contents(_with_half_bias), "blk.0.attn_q.bias"),
    BadFile("part_of_a_block", _tensor("blk.0.attn_q.weight", kind=12), "blk.0.attn_q"),
    _llama_cpp("nan", _with_value("blk.0.attn_q.weight", 1000, float("nan")), "blk.0.attn_q"),
    _llama_cpp("infinity", _with_value("output.weight", 0, float("inf")), "output.weight"),
    _llama_cpp("nan_in_a_norm", _with_value("output_norm.weight", 3, float("nan")), "output_norm"),
    _llama_cpp("nan_scale", _with_scale("blk.0.ffn_up.weight", float("nan")), "blk.0.ffn_up"),
    _llama_cpp("infinite_scale", _with_scale("token_embd.weight", float("inf")), "token_embd"),
]

METADATA = [
    BadFile("no_architecture", _keys(general__architecture=None), "general.architecture"),
    BadFile("architecture_is_a_number", _keys(general__architecture=7), "general.architecture"),
    BadFile("unknown_architecture", _contents(_as_architecture("nosucharch")), "nosucharch", error=UNSUPPORTED),
    BadFile("keys_of_another_architecture", _keys(general__architecture="qwen2"), "qwen2"),
    BadFile("tensors_of_another_architecture", _contents(_as_architecture("qwen3")), "attn_[qk]_norm|q_norm|qwen3"),
    BadFile("a_projector", _contents(_as_architecture("clip")), "clip", error=UNSUPPORTED),
    BadFile("no_block_count", _keys(llama__block_count=None), "block_count"),
    BadFile("block_count_0", _keys(llama__block_count=0), "block_count"),
    BadFile("block_count_3", _keys(llama__block_count=3), r"blk\.2\.|layers\.2\.|block_count"),
    _llama_cpp("block_count_1", _keys(llama__block_count=1), r"blk\.1\.|block_count"),
    BadFile("block_count_100000", _keys(llama__block_count=100_000), r"blk\.2\.|layers\.2\.|block_count"),
    BadFile("block_count_is_text", _keys(llama__block_count="2"), "block_count"),
    BadFile("block_count_is_negative", _keys(llama__block_count=np.int32(-1)), "block_count"),
    BadFile("no_context_length", _keys(llama__context_length=None), "context_length"),
    BadFile("context_length_0", _keys(llama__context_length=0), "context_length"),
    BadFile("no_embedding_length", _keys(llama__embedding_length=None), "embedding_length"),
    BadFile("embedding_length_0", _keys(llama__embedding_length=0), "embedding_length|token_embd"),
    BadFile("embedding_length_128", _keys(llama__embedding_length=128), "embedding_length|token_embd|embed_tokens"),
    BadFile("feed_forward_length_0", _keys(llama__feed_forward_length=0), "feed_forward_length|ffn"),
    BadFile("no_head_count", _keys(llama__attention__head_count=None), "head_count|attn_q"),
    BadFile("head_count_0", _keys(llama__attention__head_count=0), "head_count"),
    BadFile("head_count_7", _keys(llama__attention__head_count=7), "head_count|attn_q|q_proj"),
    BadFile("head_count_of_one_layer", _heads([4]), "head_count"),
    BadFile("head_count_kv_0", _keys(llama__attention__head_count_kv=0), "head_count_kv|attn_k"),
    BadFile("head_count_kv_3", _keys(llama__attention__head_count_kv=3), "head_count_kv|attn_k|k_proj"),
    BadFile("head_count_kv_absent", _keys(llama__attention__head_count_kv=None), "head_count_kv|attn_k|k_proj"),
    BadFile("key_length_0", _keys(llama__attention__key_length=0), "key_length|attn_q"),
    _llama_cpp("key_length_8", _keys(llama__attention__key_length=8), "key_length|attn_q"),
    _llama_cpp("value_length_8", _keys(llama__attention__value_length=8), "value_length|attn_v"),
    BadFile("heads_that_do_not_share", _contents(_with_heads(num_kv_heads=3, head_dim=16)), "head_count_kv"),
    BadFile("odd_heads", _contents(_with_heads(num_kv_heads=2, head_dim=15)), "key_length|dimension_count|head"),
    BadFile("rope_dimensions_8", _keys(llama__rope__dimension_count=8), "dimension_count|n_rot|attn_q|q_proj"),
    BadFile("rope_dimensions_0", _keys(llama__rope__dimension_count=0), "dimension_count|n_rot"),
    BadFile("rope_base_nan", _keys(llama__rope__freq_base=float("nan")), "freq_base|not finite"),
    BadFile("rope_base_0", _keys(llama__rope__freq_base=0.0), "freq_base|not finite"),
    _llama_cpp("rope_base_is_an_integer", _keys(llama__rope__freq_base=10000), "freq_base"),
    _llama_cpp("rope_scaling_unknown", _keys(llama__rope__scaling__type="nonsense"), "scaling.type"),
    _llama_cpp("rope_scaling_nan", _keys(llama__rope__scaling__factor=float("nan")), "scaling.factor|not finite"),
    _llama_cpp("no_epsilon", _keys(llama__attention__layer_norm_rms_epsilon=None), "epsilon"),
    BadFile("epsilon_nan", _keys(llama__attention__layer_norm_rms_epsilon=float("nan")), "epsilon"),
    BadFile("epsilon_negative", _keys(llama__attention__layer_norm_rms_epsilon=-1.0), "epsilon"),
    BadFile("experts_9999", _keys(llama__expert_count=9999, llama__expert_used_count=2), "expert"),
    _llama_cpp("experts_used_but_none_there", _keys(llama__expert_used_count=2), "expert"),
    _llama_cpp("experts_none_used", _keys(llama__expert_count=4), "expert"),
    _llama_cpp("layers_to_predict_9", _keys(llama__nextn_predict_layers=9), "nextn"),
    _llama_cpp("name_is_a_number", _keys(general__name=3), "general.name"),
    _llama_cpp("count_of_64_bits", _keys(llama__block_count=np.uint64(2)), "block_count"),
    _llama_cpp(
        "window_2_31",
        _of_family("gemma3", lambda file: file.with_keys({"gemma3.attention.sliding_window": 2**31})),
        "sliding_window",
    ),
    _llama_cpp(
        "window_pattern_is_text",
        _of_family("gemma3", lambda file: file.with_keys({"gemma3.attention.sliding_window_pattern": "x"})),
        "sliding_window",
    ),
    _llama_cpp(
        "convolution_of_0",
        _of_family("lfm2", lambda file: file.with_keys({"lfm2.shortconv.l_cache": 0})),
        "l_cache|shortconv",
    ),
    _llama_cpp(
        "groups_0",
        _of_family("falcon_h1", lambda file: file.with_keys({"falcon-h1.ssm.group_count": 0})),
        "group_count|ssm_in",
    ),
    _llama_cpp(
        "no_convolution_bias",
        _of_family("falcon_h1", lambda file: file.without("blk.0.ssm_conv1d.bias")),
        "blk.0.ssm_conv1d",
    ),
    _llama_cpp("not_causal", _keys(llama__attention__causal=False), "causal", error=UNSUPPORTED),
]

VOCABULARIES = [
    BadFile("no_tokenizer", _contents(_without_vocabulary), "tokenizer", error=TOKENIZER),
    BadFile("no_tokens", _keys(tokenizer__ggml__tokens=None), "tokens|tokenizer", error=TOKENIZER),
    BadFile(
        "tokens_are_numbers",
        _keys(tokenizer__ggml__tokens=np.arange(260, dtype=np.int32)),
        "tokens|tokenizer",
        error=TOKENIZER,
    ),
    BadFile("tokenizer_unknown", _keys(tokenizer__ggml__model="nonsense"), "nonsense", error=TOKENIZER),
    _llama_cpp("pre_tokenizer_unknown", _keys(tokenizer__ggml__pre="nonsense"), "nonsense", error=TOKENIZER),
    BadFile("tokens_short", _tokens(lambda tokens: tokens[:200]), "token_embd|embed_tokens|vocab"),
    _llama_cpp("tokens_long", _tokens(lambda tokens: [*tokens, "<|more|>"]), "token_embd|embed_tokens|vocab"),
    BadFile("token_twice", _tokens(lambda tokens: [*tokens[:-1], tokens[0]]), "twice|same|tokens"),
    _llama_cpp("tokens_alike_up_to_nul", _tokens(lambda tokens: ["a\0b", "a\0c", *tokens[2:]]), "tokens"),
    BadFile("tokens_none", _tokens(lambda tokens: []), "tokens|tokenizer", error=TOKENIZER),
    BadFile("vocabulary_is_left_out", _keys(tokenizer__ggml__model="none"), "none|tokenizer", error=TOKENIZER),
    BadFile("token_not_utf_8", _bytes(_renamed(b"<|user|>", b"<|us\xff\xfe|>")), "UTF-8"),
    _llama_cpp("token_types_short", _keys(tokenizer__ggml__token_type=np.ones(9, dtype=np.int32)), "token_type"),
    _llama_cpp("token_types_are_bytes", _keys(tokenizer__ggml__token_type=np.ones(260, dtype=np.uint8)), "token_type"),
    _llama_cpp("scores_short", _keys(tokenizer__ggml__scores=np.ones(9, dtype=np.float32)), "scores"),
    BadFile("no_merges", _keys(tokenizer__ggml__merges=None), "merges|tokenizer", error=TOKENIZER),
    BadFile(
        "merges_are_numbers",
        _keys(tokenizer__ggml__merges=np.arange(3, dtype=np.int32)),
        "merges|tokenizer",
        error=TOKENIZER,
    ),
    BadFile("end_out_of_range", _keys(tokenizer__ggml__eos_token_id=9999), "eos|9999|tokenizer"),
    BadFile("end_is_text", _keys(tokenizer__ggml__eos_token_id="256"), "eos|256|tokenizer"),
    BadFile("template_is_a_number", _keys(tokenizer__chat_template=7), "chat_template"),
]

SPLITS = [
    BadFile("part_missing", _split(_remove_second), "00002-of-00003", error=NOT_FOUND),
    BadFile("parts_swapped", _split(_swap_last_two), "part"),
    BadFile("part_twice", _split(_repeat_second), "part"),
    BadFile("part_cut", _split(_cut_third), "cut off"),
    BadFile("later_part_named", _split(lambda parts: parts[1]), "first"),
    BadFile("part_renamed", _split(_rename_first), "part"),
]

ADAPTERS = [
    BadFile("adapter_as_model", _adapter_as_model, "adapter", error=NOT_FOUND),
    BadFile("model_as_adapter", _model_as_adapter, "adapter", error=ADAPTER, member="chat.tuned"),
    _bad_adapter(
        "adapter_of_another_architecture",
        lambda file: file.with_keys({"general.architecture": "qwen2"}),
        "qwen2",
        error=ADAPTER,
    ),
    _bad_adapter("adapter_of_another_kind", lambda file: file.with_keys({"adapter.type": "ia3"}), "ia3", error=ADAPTER),
    _bad_adapter(
        "adapter_without_kind", lambda file: file.with_keys({"adapter.type": None}), "adapter.type", error=ADAPTER
    ),
    _bad_adapter(
        "adapter_architecture_is_a_number",
        lambda file: file.with_keys({"general.architecture": 3}),
        "general.architecture",
    ),
    _bad_adapter(
        "adapter_kind_is_a_number", lambda file: file.with_keys({"adapter.type": 3}), "adapter.type", error=ADAPTER
    ),
    _bad_adapter(
        "adapter_after_a_call",
        lambda file: file.with_keys({"adapter.alora.invocation_tokens": np.arange(2, dtype=np.uint32)}),
        "aLoRA|alora",
        error=ADAPTER,
    ),
    _bad_adapter("adapter_alpha_is_an_integer", lambda file: file.with_keys({"adapter.lora.alpha": 8}), "alpha"),
    _bad_adapter("adapter_alpha_nan", lambda file: file.with_keys({"adapter.lora.alpha": float("nan")}), "alpha"),
    _bad_adapter("adapter_without_b", lambda file: file.without("blk.0.attn_q.weight.lora_b"), "blk.0.attn_q"),
    _bad_adapter("adapter_without_tensors", lambda file: replace(file, tensors=[]), "tensors"),
    _bad_adapter(
        "adapter_for_no_tensor",
        _renamed_tensor("blk.0.attn_q.weight.", "blk.7.attn_q.weight."),
        "blk.7.attn_q",
        error=ADAPTER,
    ),
    _bad_adapter("adapter_with_other_suffix", _renamed_tensor(".lora_a", ".lora_c"), "lora_c", error=ADAPTER),
    _bad_adapter("adapter_for_wider_inputs", _reshaped("blk.0.attn_q.weight.lora_a", (2, 128)), "blk.0.attn_q"),
    _bad_adapter("adapter_for_wider_outputs", _reshaped("blk.0.attn_v.weight.lora_b", (64, 2)), "blk.0.attn_v"),
    _bad_adapter("adapter_of_two_ranks", _reshaped("blk.1.attn_q.weight.lora_a", (2, 64)), "blk.1.attn_q"),
    _bad_adapter(
        "adapter_of_two_ranks_on_embeddings",
        _more(("token_embd.weight.lora_a", (260, 8)), ("token_embd.weight.lora_b", (64, 4))),
        "token_embd",
    ),
    _bad_adapter("adapter_in_three_dimensions", _in_three_dimensions, "blk.0.attn_q"),
    _bad_adapter(
        "adapter_for_a_norm",
        _more(("blk.0.attn_norm.weight.lora_a", (4, 64)), ("blk.0.attn_norm.weight.lora_b", (1, 4))),
        "blk.0.attn_norm",
        error=ADAPTER,
    ),
    _bad_adapter("adapter_of_rank_0", _rank_0, "blk.0.attn_q"),
    _bad_adapter("adapter_in_integers", _adapter_kind("I32"), "blk.0.attn_q", error=ADAPTER),
    _bad_adapter("adapter_nan", _adapter_nan, "blk.0.attn_q"),
    _llama_cpp("adapter_cut", _adapter_bytes(lambda data: data[:-50]), "cut off", member="chat.tuned"),
    _llama_cpp("adapter_empty", _adapter_bytes(lambda data: b""), "0 bytes", member="chat.tuned"),
]

BAD_FILES = [*CONTAINERS, *TENSORS, *METADATA, *VOCABULARIES, *SPLITS, *ADAPTERS]
