"""How much memory a trio takes on GPUs, out of configurations alone: weights, key/value caches, states, and the requests that fit.

The counts are those of an engine that holds every member by itself and splits all of them over the same GPUs, as vLLM does
(docs/vllm.md). Activations and what CUDA itself takes are left to `reserve`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig

from eft_engine.errors import InvalidOptionError
from eft_engine.models.planned_network import PlannedNetwork
from eft_engine.models.planning import TrioPlan

WITHOUT_KEYS = ("linear_attention", "conv", "moe", "mlp")
"""Kinds of layers that keep no keys and values: they have a state, or nothing."""

RESERVE = 0.1
"""Share of a GPU's memory that is left for activations, CUDA graphs and the driver; vLLM's own default."""


@dataclass(frozen=True)
class CacheLayers:
    """Layers that keep as much per token: `num_layers` of `num_kv_heads` x `head_dim`, at most `window` tokens (None: all)."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    window: int | None

    def bytes_per_token(self, element_bytes: int, num_gpus: int = 1) -> int:
        """Keys and values of one token on each GPU; a head is held whole, by several GPUs where there are more GPUs than heads."""
        heads = max(1, self.num_kv_heads // num_gpus)
        return 2 * self.num_layers * heads * self.head_dim * element_bytes


@dataclass(frozen=True)
class MemberSize:
    """One member: parameters, bytes of its weights, and what its layers keep."""

    name: str
    num_parameters: int
    weight_bytes: int
    """As they are stored: quantised ones are fewer than the parameters tell."""
    cache_element_bytes: int
    """Of a number in keys and values."""
    num_heads: int
    layers: tuple[CacheLayers, ...]
    state_bytes: int = 0
    """What layers without keys and values keep of a text of any length."""

    def can_be_split(self, num_gpus: int) -> bool:
        """Whether every GPU gets whole heads."""
        kv_heads = {layers.num_kv_heads for layers in self.layers}
        return self.num_heads % num_gpus == 0 and all(
            heads % num_gpus == 0 or num_gpus % heads == 0 for heads in kv_heads
        )

    def cache_bytes(self, num_tokens: int, num_gpus: int = 1) -> int:
        """Keys, values and states of a text of `num_tokens` on each GPU."""
        return self.state_bytes // num_gpus + sum(
            layers.bytes_per_token(self.cache_element_bytes, num_gpus) * min(num_tokens, layers.window or num_tokens)
            for layers in self.layers
        )


@dataclass(frozen=True)
class Capacity:
    """What one group of `num_gpus` holds: bytes per GPU, and requests of `context_len` tokens at a time."""

    num_gpus: int
    context_len: int
    weight_bytes: int
    cache_bytes: int
    request_bytes: int
    num_requests: int


def member_size(
    name: str,
    config: PreTrainedConfig,
    *,
    num_parameters: int,
    element_bytes: int,
    weight_bytes: int | None = None,
    state_bytes: int = 0,
) -> MemberSize:
    """The size of a member out of its configuration.

    Args:
        name: of the member.
        config: its configuration.
        num_parameters: how many it has.
        element_bytes: of a number in keys and values.
        weight_bytes: of all weights; None: as many as of keys and values for every parameter.
        state_bytes: what its layers keep that have a state (see `layers`).

    Raises:
        InvalidOptionError: the configuration has no attention heads, so its memory is of another kind.
    """
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    if not heads:
        raise InvalidOptionError(f"{name}: {type(text).__name__} has no attention heads to plan with", option="plan")
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    windows = _windows(text)
    layers = tuple(CacheLayers(windows.count(window), kv_heads, head_dim, window) for window in dict.fromkeys(windows))
    weights = num_parameters * element_bytes if weight_bytes is None else weight_bytes
    return MemberSize(name, num_parameters, weights, element_bytes, heads, layers, state_bytes)


def _windows(text: PreTrainedConfig) -> list[int | None]:
    """The window of every layer that has keys and values; None: the layer sees the whole text."""
    kinds: Sequence[str] | None = getattr(text, "layer_types", None)
    window: int | None = getattr(text, "sliding_window", None)
    num_layers: int = text.num_hidden_layers
    if kinds is None:
        uses = getattr(text, "use_sliding_window", True)
        return [window if uses else None] * num_layers
    spans = {
        "sliding_attention": window,
        "hybrid_sliding": window,
        "chunked_attention": getattr(text, "attention_chunk_size", None),
    }
    return [spans.get(kind) for kind in kinds if kind not in WITHOUT_KEYS]


def trio_sizes(plan: TrioPlan) -> list[MemberSize]:
    """The members of a plan, each by itself, also where our own engine would share a network.

    Raises:
        InvalidOptionError: a member runs in llama.cpp, which plans its memory otherwise.
    """
    return [_member_size(name, plan.networks[member.network]) for name, member in plan.members.items()]


def _member_size(name: str, network: PlannedNetwork) -> MemberSize:
    if network.config is None or network.dtype is None:
        raise InvalidOptionError(
            f"{name}: {network.source} runs in llama.cpp, and this plan is for networks in vLLM or torch; ask with runtime='torch'",
            option="plan",
        )
    return member_size(
        name,
        network.config,
        num_parameters=network.num_parameters + network.left_out_parameters,  # by our engine, and not by vLLM
        element_bytes=network.dtype.itemsize,
        weight_bytes=network.stored_bytes,
        state_bytes=network.layers.state_bytes,
    )


def splits(members: Sequence[MemberSize], *, up_to: int = 16) -> list[int]:
    """Numbers of GPUs that all members can be split over: each divides the attention heads of every member, and the key/value heads
    too, or is a multiple of them.
    """
    return [number for number in range(1, up_to + 1) if all(member.can_be_split(number) for member in members)]


def capacity(
    members: Sequence[MemberSize], *, num_gpus: int, gpu_bytes: int, context_len: int, reserve: float = RESERVE
) -> Capacity:
    """What a group of GPUs holds.

    Args:
        members: all of them are held by the same GPUs.
        num_gpus: GPUs that every layer is split over.
        gpu_bytes: memory of one.
        context_len: tokens of a request, prompt and answer.
        reserve: share of the memory that is left free.

    Raises:
        InvalidOptionError: the heads of a member cannot be split over so many GPUs.
    """
    if num_gpus not in splits(members, up_to=num_gpus):
        heads: Mapping[str, int] = {member.name: member.num_heads for member in members}
        raise InvalidOptionError(
            f"{num_gpus} GPUs do not divide the attention heads of every member ({heads}); possible are {splits(members)}",
            option="gpus",
            value=num_gpus,
        )
    weights = sum(member.weight_bytes for member in members) // num_gpus
    request = sum(member.cache_bytes(context_len, num_gpus) for member in members)
    cache = max(0, int(gpu_bytes * (1 - reserve)) - weights)
    return Capacity(num_gpus, context_len, weights, cache, request, cache // request)
