"""Small random trios on disk, in shapes that vLLM's attention on a CPU has, and the loop over transformers models that judges
vLLM.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, PreTrainedModel, Qwen2Config

from tests.toy import END_ID, VOCAB_SIZE, make_tokenizer

CONTEXT_LEN = 512
WEIGHTS = (-0.7, 0.0, 0.5, 1.0, 1.37, 2.0)


def _shape(hidden_size: int, num_layers: int, num_heads: int, num_kv_heads: int, **others: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "max_position_embeddings": CONTEXT_LEN,
        # Large enough for varied texts; at 0.3 float32 itself is off by 1e-4 in transformers, measured against float64.
        "initializer_range": 0.15,
        "bos_token_id": None,
        "eos_token_id": END_ID,
        "pad_token_id": None,
        **others,
    }


def _gemma3(hidden_size: int, num_layers: int) -> Gemma3TextConfig:
    layers = ["sliding_attention", "full_attention"] * (num_layers // 2)
    shape = _shape(
        hidden_size, num_layers, 4, 2, head_dim=32, sliding_window=64, layer_types=layers, tie_word_embeddings=False
    )
    return Gemma3TextConfig(**shape)


FAMILIES: dict[str, tuple[Any, Any]] = {
    "llama": (
        LlamaConfig(**_shape(128, 4, 4, 4, tie_word_embeddings=False)),
        LlamaConfig(**_shape(64, 2, 2, 2, tie_word_embeddings=True)),
    ),
    "gemma3": (_gemma3(128, 4), _gemma3(64, 2)),
    # The base's vocabulary is padded to another size than the small models', as in Qwen 2.5.
    "qwen2": (
        Qwen2Config(**_shape(128, 3, 2, 2, tie_word_embeddings=False) | {"vocab_size": VOCAB_SIZE + 60}),
        Qwen2Config(**_shape(64, 2, 2, 1, tie_word_embeddings=True)),
    ),
}
"""Configurations of base and small models."""


@dataclass(frozen=True)
class TrioFolders:
    """A base with one or more pairs, saved in float32."""

    base: Path
    pairs: Mapping[str, tuple[Path, Path]]

    @property
    def overrides(self) -> dict[str, Any]:
        """What turns the base into the trio."""
        pairs = {
            name: {"tuned": str(tuned), "reference": str(reference)} for name, (tuned, reference) in self.pairs.items()
        }
        return {"architectures": ["EFTForCausalLM"], "eft": {"pairs": pairs}}


def save_trio(family: str, folder: Path, *, pairs: Sequence[str] = ("chat",)) -> TrioFolders:
    """Make the family's models with random weights and save them with their tokenizer."""
    base, small = FAMILIES[family]
    saved = {}
    for index, name in enumerate(pairs):
        tuned, reference = folder / f"{name}-tuned", folder / f"{name}-reference"
        _save(small, tuned, seed=2 * index + 2)
        _save(small, reference, seed=2 * index + 3)
        saved[name] = (tuned, reference)
    _save(base, folder / "base", seed=1)
    return TrioFolders(folder / "base", saved)


def _save(config: Any, folder: Path, *, seed: int) -> None:
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


@dataclass(frozen=True)
class Asked:
    """One greedy request."""

    prompt_ids: list[int]
    weights: list[float]
    max_tokens: int


def mixed_requests(num_requests: int, num_pairs: int, *, max_tokens: int = 40, longest: int = 250) -> list[Asked]:
    """Requests of 5 to 250 prompt tokens, one of them the longest, each with weights of its own."""
    rng = random.Random(0)
    lengths = [longest, *(rng.randint(5, 120) for _ in range(num_requests - 1))]
    return [
        Asked([rng.randrange(256) for _ in range(length)], [rng.choice(WEIGHTS) for _ in range(num_pairs)], max_tokens)
        for length in lengths
    ]


class Judge:
    """The formula as it is written, over transformers models in float32, one request at a time."""

    def __init__(self, trio: TrioFolders) -> None:
        self._base = self._load(trio.base)
        self._pairs = [(self._load(tuned), self._load(reference)) for tuned, reference in trio.pairs.values()]

    @staticmethod
    def _load(folder: Path) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def logprobs(self, token_ids: Sequence[int], weights: Sequence[float]) -> torch.Tensor:
        """Composed log-probabilities after every token: [tokens, shared vocabulary]."""
        input_ids = torch.tensor([list(token_ids)])
        composed = self._base(input_ids).logits[0].log_softmax(-1)
        for (tuned, reference), weight in zip(self._pairs, weights, strict=True):
            delta = tuned(input_ids).logits[0].log_softmax(-1) - reference(input_ids).logits[0].log_softmax(-1)
            composed = composed[:, : delta.shape[1]] + weight * delta
        return composed.log_softmax(-1)

    def greedy(self, asked: Asked) -> list[int]:
        """Token ids of the answer; an end token ends it and is part of it."""
        token_ids = list(asked.prompt_ids)
        for _ in range(asked.max_tokens):
            token_ids.append(int(self.logprobs(token_ids, asked.weights)[-1].argmax()))
            if token_ids[-1] == END_ID:
                break
        return token_ids[len(asked.prompt_ids) :]
