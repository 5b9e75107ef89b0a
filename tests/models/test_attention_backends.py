"""Attention backends: each gives the logits of the others, or says what it lacks.

The real flash-attn kernels need a GPU. Here a function with their documented behaviour, written in plain torch, stands in for them.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from types import ModuleType
from typing import get_args

import pytest
import torch
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedModel
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

from eft_engine import EngineConfig, SamplingParams
from eft_engine.errors import UnsupportedModelError
from eft_engine.models import attention_backends
from eft_engine.models.attention import slot_attention
from eft_engine.models.attention_backends import ATTENTION_BACKENDS
from eft_engine.models.flash_attention import flash_attention, missing_for_flash
from eft_engine.models.language_model import LanguageModel
from eft_engine.models.layout import BatchLayout, computing
from eft_engine.models.masks import slot_mask
from eft_engine.models.network import Block, KVSlot
from tests.toy import make_model, make_trio


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    cache_seqlens: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
) -> Tensor:
    """What flash-attn 2 documents for this function: query i of a row stands at key i + seqlen_k - seqlen_q, keys behind
    `cache_seqlens` do not exist, a query that sees no key gives zeros, and strides are free except for the last dimension.
    """
    assert q.dim() == k_cache.dim() == v_cache.dim() == 4
    assert k_cache.stride(-1) == v_cache.stride(-1) == 1
    rows, columns, heads, head_dim = q.shape
    assert k_cache.shape[::3] == v_cache.shape[::3] == (rows, head_dim)
    assert heads % k_cache.shape[2] == 0
    assert (cache_seqlens.dtype, cache_seqlens.shape) == (torch.int32, (rows,))
    assert int(cache_seqlens.max()) <= k_cache.shape[1]
    scale = head_dim**-0.5 if softmax_scale is None else softmax_scale
    out = torch.zeros_like(q)
    for row, num_keys in enumerate(cache_seqlens.tolist()):
        for head in range(heads):
            kv_head = head // (heads // k_cache.shape[2])
            keys, values = k_cache[row, :num_keys, kv_head], v_cache[row, :num_keys, kv_head]
            for column in range(columns):
                place = column + num_keys - columns
                first = 0 if window_size[0] < 0 else max(0, place - window_size[0])
                last = num_keys - 1 if window_size[1] < 0 else place + window_size[1]
                seen = slice(first, min(last, place if causal else last) + 1)
                if seen.start < seen.stop:
                    scores = keys[seen] @ q[row, column, head] * scale
                    if softcap > 0:
                        scores = softcap * torch.tanh(scores / softcap)
                    out[row, column, head] = scores.softmax(dim=-1) @ values[seen]
    return out


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """flash-attn is installed, and it runs on a CPU in any dtype."""
    module = ModuleType("flash_attn")
    module.flash_attn_with_kvcache = flash_attn_with_kvcache  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    anywhere = dataclasses.replace(ATTENTION_BACKENDS["flash"], missing=lambda _: [])
    monkeypatch.setattr(attention_backends, "ATTENTION_BACKENDS", {**ATTENTION_BACKENDS, "flash": anywhere})


def make_gemma2() -> PreTrainedModel:
    """Soft-capped scores, and a sliding window in every other layer."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        attn_logit_softcapping=2.0,
        initializer_range=0.5,
    )
    return Gemma2ForCausalLM(config)


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: make_model("llama"),
    "mistral": lambda: make_model("mistral"),
    "gemma2": make_gemma2,
}


def ragged_logits(model: PreTrainedModel, attention: str) -> Tensor:
    """Prompts of unequal length, then passes in which rows have different numbers of new tokens and take some of them back."""
    network = LanguageModel(model, name="toy", attention=attention)
    slots = [network.kv_cache.allocate() for _ in range(3)]
    found = []
    for counts, kept in (
        ((9, 2, 5), (9, 2, 5)),
        ((1, 4, 2), (1, 2, 0)),
        ((6, 1, 3), (4, 1, 3)),
        ((1, 1, 1), (1, 1, 1)),
    ):
        lens = [slot.length for slot in slots]
        blocks = [
            Block(slot, [(7 * slot.length + 3 * column + row) % 60 for column in range(count)], count)
            for row, (slot, count) in enumerate(zip(slots, counts, strict=True))
        ]
        found.append(network.forward(blocks))
        for slot, length, num in zip(slots, lens, kept, strict=True):
            slot.truncate(length + num)
    network.release()
    return torch.cat(found)


@pytest.mark.parametrize("architecture", MODELS)
def test_flash_gives_the_logits_of_sdpa_over_ragged_blocks(architecture: str, stand_in: None) -> None:
    model = MODELS[architecture]()
    expected, found = ragged_logits(model, "sdpa"), ragged_logits(model, "flash")
    assert torch.allclose(found, expected, atol=1e-4)


def test_an_engine_writes_the_same_text_with_flash(stand_in: None) -> None:
    trio, greedy = make_trio("mistral"), SamplingParams(temperature=0.0, max_tokens=12)
    prompts, weights = ["ab", "a longer prompt, behind the window", "c"], [0.0, 1.0, 0.5]
    texts = []
    for attention in ("sdpa", "flash"):
        with trio.engine(attention=attention) as engine:
            texts.append([out.token_ids for out in engine.generate(prompts, sampling=greedy, reward_weights=weights)])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("by_head", [False, True])
def test_attention_equals_the_formula(
    softcap: float | None, window: int | None, has_sinks: bool, by_head: bool
) -> None:
    lengths, counts = [5, 2], [3, 2]
    layout = BatchLayout.of([KVSlot(index, length) for index, length in enumerate(lengths)], counts)
    query = torch.randn(2, 4, max(counts), 8)
    key, value = torch.randn(2, 2, layout.window, 8), torch.randn(2, 2, layout.window, 8)
    sinks = torch.randn(4) if has_sinks else None
    chosen = torch.rand(2, 4, max(counts), layout.window) < 0.5  # of each head, and its own position always
    chosen |= layout.positions[:, None, :, None] == torch.arange(layout.window)
    with computing(layout):
        function = causal_mask_function if window is None else sliding_window_causal_mask_function(window)
        mask = slot_mask(mask_function=function, local_size=window, allow_is_causal_skip=not by_head)
        if by_head:
            assert mask is not None
            mask = mask & chosen
        out, _ = slot_attention(
            torch.nn.Module(), query, key, value, mask, scaling=0.3, sliding_window=window, softcap=softcap, s_aux=sinks
        )
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        for column in range(count):
            position = length + column
            first = 0 if window is None else max(0, position - window + 1)
            for head in range(4):
                seen = [at for at in range(first, position + 1) if not by_head or chosen[row, head, column, at]]
                scores = key[row, head // 2, seen] @ query[row, head, column] * 0.3
                if softcap:
                    scores = softcap * torch.tanh(scores / softcap)
                total = scores.exp().sum() + (sinks[head].exp() if sinks is not None else 0.0)
                expected = (scores.exp() / total) @ value[row, head // 2, seen]
                assert torch.allclose(out[row, column, head], expected, atol=1e-5)


def test_attention_outside_of_a_pass_is_refused(stand_in: None) -> None:
    ones = torch.ones(1, 2, 1, 8)
    for function in (slot_attention, flash_attention):
        with pytest.raises(UnsupportedModelError, match="close the engine first"):
            function(torch.nn.Module(), ones, ones, ones, None)


def test_flash_says_all_that_is_missing() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"a GPU for all of it \(cpu\); float16 or bfloat16 .*; the package flash-attn"
    ):
        LanguageModel(make_model("llama"), name="base", attention="flash")


def test_flash_needs_a_head_size_that_its_kernels_have() -> None:
    model = make_model("llama", hidden_size=16).to(torch.bfloat16)
    assert "a head size that is a multiple of 8 up to 256 (4)" in missing_for_flash(model)


def test_soft_capped_scores_need_a_release_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("flash_attn")
    module.__spec__ = type(sys.__spec__)("flash_attn", None)
    module.flash_attn_with_kvcache = lambda q, k_cache, v_cache: q  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    assert "flash-attn 2.6 or later, the first with soft-capped scores" in missing_for_flash(make_gemma2())
    assert not any("flash-attn" in lack for lack in missing_for_flash(make_model("llama")))


def test_every_choice_of_the_configuration_is_in_the_table() -> None:
    assert list(ATTENTION_BACKENDS) == list(get_args(EngineConfig.model_fields["attention"].annotation))
