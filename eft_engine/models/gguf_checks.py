"""What a GGUF file says about its model, checked before anything is computed with it.

llama.cpp believes a file: it holds most shapes against the metadata, and what it does not check it asserts, or runs into, and
either ends the process. transformers builds whatever it is told to. So what either of them relies on is checked here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from eft_engine.errors import CorruptWeightsError, UnsupportedModelError
from eft_engine.models.gguf_file import GGML_TYPES, GGUFFile

MAX_LAYERS = 512
MAX_EXPERTS = 512
MAX_TOKENS = 2**31 - 1
"""Bounds that llama.cpp asserts."""
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
NOT_MULTIPLIED = ("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K")
"""Types that llama.cpp has no product of matrices for; it calls one all the same."""
KERNELS = re.compile(r"blk\.\d+\.(ssm_conv1d|shortconv\.conv)\.weight|blk\.\d+\.ssm_(a|d)")
"""Matrices that have to be F32 like vectors."""
BIASED_CONVOLUTIONS = (
    "mamba",
    "mamba2",
    "falcon-h1",
    "granitehybrid",
    "jamba",
    "nemotron_h",
    "nemotron_h_moe",
    "plamo2",
)


def check_gguf_model(file: GGUFFile, *, member: str) -> None:
    """Find out whether the file's metadata and tensors can be a model that writes text.

    Raises:
        CorruptWeightsError: a value is missing or cannot be meant, or a tensor is of a type that cannot be computed with.
        UnsupportedModelError: the model reads text and does not write it.
    """
    _Checks(file, member).run()


class _Checks:
    def __init__(self, file: GGUFFile, member: str) -> None:
        self.file = file
        self.member = member

    def fail(self, reason: str) -> NoReturn:
        raise CorruptWeightsError(
            f"{self.member}: {self.file.paths[0]} cannot be a model: {reason}; download it again, or convert the model anew",
            member=self.member,
            source=str(self.file.paths[0]),
        )

    def run(self) -> None:
        architecture = self.file.metadata.get("general.architecture")
        if not isinstance(architecture, str) or not architecture:
            self.fail(f"general.architecture is {architecture!r}, and it names the family of a model")
        if architecture == "clip" or self.file.value("attention.causal", True) is False:
            raise UnsupportedModelError(
                f"{self.member}: {self.file.paths[0]} ({architecture}) does not write text from left to right: "
                + (
                    "it is a projector of images"
                    if architecture == "clip"
                    else f"{architecture}.attention.causal is false"
                ),
                member=self.member,
                source=str(self.file.paths[0]),
            )
        if not self.file.tensors:
            self.fail("it has no tensors (a vocabulary alone)")
        self._sizes()
        self._numbers()
        self._vocabulary()
        self._tensors()

    def _count(self, key: str, *, least: int = 1, most: int = MAX_TOKENS, default: int | None = None) -> int:
        value = self.file.value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.fail(
                f"{self.file.architecture}.{key} is {value!r}, and it has to be a whole number from {least} to {most}"
            )
        return value

    def _per_layer(self, key: str, num_layers: int, *, least: int = 1, default: Any = None) -> list[int]:
        value = self.file.value(key, default)
        if not isinstance(value, np.ndarray):
            return [self._count(key, least=least, default=default)] * num_layers
        if len(value) != num_layers or value.dtype.kind not in "iu" or (value < least).any() or not value.any():
            self.fail(
                f"{self.file.architecture}.{key} is {value.tolist()[:20]}, and it has to be a count for each of {num_layers} layers"
            )
        return [int(number) for number in value]

    def _sizes(self) -> None:
        num_layers = self._count("block_count", most=MAX_LAYERS)
        found = {int(name.split(".")[1]) for name in self.file.tensors if re.match(r"blk\.\d+\.", name)}
        if missing := set(range(num_layers)) - found:
            self.fail(f"block_count is {num_layers}, and there is no tensor blk.{min(missing)}.*")
        if max(found) >= num_layers:
            self.fail(f"block_count is {num_layers}, and there are tensors blk.{max(found)}.*")
        self._count("context_length")
        width = self._count("embedding_length")
        self._per_layer("feed_forward_length", num_layers, least=0, default=1)
        self._count("nextn_predict_layers", least=0, most=num_layers, default=0)
        num_experts = self._count("expert_count", least=0, most=MAX_EXPERTS, default=0)
        used = self.file.value("expert_used_count", 0)
        most_used = int(used.max()) if isinstance(used, np.ndarray) else used
        if not isinstance(most_used, int) or not (1 <= most_used <= num_experts if num_experts else most_used == 0):
            self.fail(f"expert_used_count is {used!r} of {num_experts} experts")
        if self.file.value("attention.head_count") is None and self.file.value("ssm.state_size") is not None:
            return  # states alone
        heads = self._per_layer("attention.head_count", num_layers, least=0)
        shared = self._per_layer("attention.head_count_kv", num_layers, least=0, default=heads[0])
        if not any(heads) or not any(shared):
            self.fail("attention.head_count or attention.head_count_kv is 0")
        if any(kv and own % kv for own, kv in zip(heads, shared, strict=True)):
            self.fail(f"{heads[0]} heads (attention.head_count) cannot share {max(shared)} (attention.head_count_kv)")
        head_dim = self._count("attention.key_length", default=width // max(heads))
        self._count("attention.value_length", default=head_dim)
        turned = self._count("rope.dimension_count", default=head_dim)
        if turned % 2 or turned > head_dim:
            self.fail(
                f"rope.dimension_count is {turned} of {head_dim} (attention.key_length), and rotation turns pairs"
            )
        self._count("attention.sliding_window", least=0, most=2**24, default=0)
        for key in ("ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.time_step_rank", "ssm.group_count"):
            self._count(key, default=1)
        self._count("shortconv.l_cache", least=2, default=2)

    def _numbers(self) -> None:
        for key, least in (
            ("attention.layer_norm_rms_epsilon", 0.0),
            ("attention.layer_norm_epsilon", 0.0),
            ("rope.freq_base", 1e-30),
            ("rope.freq_base_swa", 1e-30),
            ("rope.scaling.factor", 0.0),
            ("rope.scale_linear", 0.0),
        ):
            value = self.file.value(key, 1.0)
            if not isinstance(value, float | int) or not math.isfinite(value) or value < least:
                self.fail(f"{self.file.architecture}.{key} is {value!r}")
        scaling = self.file.value("rope.scaling.type", "none")
        if scaling not in ROPE_SCALINGS:
            self.fail(
                f"{self.file.architecture}.rope.scaling.type is {scaling!r}, and {', '.join(ROPE_SCALINGS)} are known"
            )

    def _vocabulary(self) -> None:
        tokens = self.file.metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, list) or not tokens:
            return  # whether there is a tokenizer is found out elsewhere
        embedding = self.file.tensors.get("token_embd.weight")
        if embedding is not None and embedding.shape[:1] != (len(tokens),):
            self.fail(f"token_embd.weight has the shape {list(embedding.shape)}, and there are {len(tokens)} tokens")
        as_c = [token.partition("\0")[0] or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]
        if len(set(as_c)) < len(tokens):
            first: dict[str, int] = {}
            index = next(i for i, token in enumerate(as_c) if first.setdefault(token, i) != i)
            self.fail(f"tokenizer.ggml.tokens has {as_c[index]!r} twice, as {first[as_c[index]]} and {index}")
        for name in ("eos", "eot"):  # others that make no sense are ignored by everybody
            token_id = self.file.metadata.get(f"tokenizer.ggml.{name}_token_id")
            if token_id is not None and not (isinstance(token_id, int) and 0 <= token_id < len(tokens)):
                self.fail(f"tokenizer.ggml.{name}_token_id is {token_id!r}, and there are {len(tokens)} tokens")
        if not isinstance(self.file.metadata.get("tokenizer.chat_template", ""), str):
            self.fail("tokenizer.chat_template is no text")

    def _tensors(self) -> None:
        for reason in self._bad_tensors():
            self.fail(reason)

    def _bad_tensors(self) -> Iterator[str]:
        for name, tensor in self.file.tensors.items():
            kind = GGML_TYPES[tensor.ggml_type].name
            if not tensor.num_elements or not tensor.shape:
                yield f"tensor {name} has the shape {list(tensor.shape)}"
            if kind in NOT_MULTIPLIED:
                yield f"tensor {name} is of type {kind}, which is none of weights"
            if kind != "F32" and (len(tensor.shape) == 1 or KERNELS.fullmatch(name)):
                yield f"tensor {name} is of type {kind}, and it has to be F32"
        if self.file.architecture in BIASED_CONVOLUTIONS:
            for name in self.file.tensors:
                if name.endswith("ssm_conv1d.weight") and name.replace(".weight", ".bias") not in self.file.tensors:
                    yield f"tensor {name.replace('.weight', '.bias')} is missing"
