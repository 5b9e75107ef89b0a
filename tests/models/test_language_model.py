"""A network under the engine: wanted logits only, refused where it cannot be exact, given back as it came."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from eft_engine.errors import UnsupportedModelError
from eft_engine.models.attention import slot_attention
from eft_engine.models.layout import BatchLayout, computing
from eft_engine.models.language_model import LanguageModel
from eft_engine.models.network import Block, KVSlot
from tests.toy import make_model

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def test_only_wanted_logits_are_computed_in_the_order_of_the_blocks() -> None:
    model, plain = LanguageModel(make_model("llama"), name="toy"), make_model("llama")
    slots = [model.kv_cache.allocate() for _ in range(3)]
    prompts = [[1, 2, 3], [4], [5, 6]]
    logits = model.forward([Block(slots[i], prompts[i], wanted) for i, wanted in ((2, 2), (0, 0), (1, 1))])
    expected = torch.cat([plain(torch.tensor([prompts[2]])).logits[0], plain(torch.tensor([prompts[1]])).logits[0]])
    assert torch.allclose(logits, expected, atol=1e-4)


def test_softcapped_attention_passes_the_self_check() -> None:
    torch.manual_seed(0)
    LanguageModel(Gemma2ForCausalLM(Gemma2Config(**SMALL, initializer_range=0.5)), name="gemma2").release()


@pytest.mark.parametrize(
    "model",
    [
        lambda: MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2)),
        lambda: GptOssForCausalLM(GptOssConfig(**SMALL, num_local_experts=2, num_experts_per_tok=1)),
    ],
    ids=["state space", "attention sinks"],
)
def test_unsupported_architectures_are_refused(model: object) -> None:
    with pytest.raises(UnsupportedModelError):
        LanguageModel(model(), name="toy")  # type: ignore[operator]


class _Drifting(LlamaForCausalLM):
    """Adds to its logits whenever a cache is used."""

    def forward(self, *args: object, **kwargs: object) -> object:
        out = super().forward(*args, **kwargs)
        if kwargs.get("use_cache"):
            out.logits = out.logits + torch.arange(out.logits.shape[-1])
        return out


def test_model_whose_logits_change_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"change by .*self_check=False"):
        LanguageModel(_Drifting(make_model("llama").config), name="toy")
    LanguageModel(_Drifting(make_model("llama").config), name="toy", self_check=False)


def test_model_without_output_layer_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="has no output layer"):
        LanguageModel(make_model("llama").model, name="toy")


def test_release_gives_the_model_back() -> None:
    model = make_model("llama")
    before = model.config._attn_implementation, model(torch.tensor([[1, 2, 3]])).logits
    held = LanguageModel(model, name="toy")
    with pytest.raises(UnsupportedModelError, match="close the engine first"):
        model(torch.tensor([[1, 2, 3]]))
    held.release()
    assert model.config._attn_implementation == before[0]
    assert torch.equal(model(torch.tensor([[1, 2, 3]])).logits, before[1])


@pytest.mark.parametrize(("eos", "expected"), [(5, {5}), ([5, 6], {5, 6})])
def test_end_ids_come_from_the_generation_configuration(eos: object, expected: set[int]) -> None:
    model = make_model("llama")
    model.generation_config.eos_token_id = eos
    assert LanguageModel(model, name="toy", self_check=False).eos_token_ids == expected


def test_end_ids_fall_back_to_the_configuration() -> None:
    model = make_model("llama")
    model.generation_config.eos_token_id = None
    assert LanguageModel(model, name="toy", self_check=False).eos_token_ids == {256}
    model.config.eos_token_id = None
    assert LanguageModel(model, name="toy", self_check=False).eos_token_ids == frozenset()


@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("window", [None, 3])
def test_attention_equals_the_formula(softcap: float | None, window: int | None) -> None:
    lengths, columns = [5, 2], 3
    layout = BatchLayout.of([KVSlot(0, lengths[0]), KVSlot(1, lengths[1])], [columns, 2])
    query = torch.randn(2, 4, columns, 8)
    key, value = torch.randn(2, 2, layout.window, 8), torch.randn(2, 2, layout.window, 8)
    out, _ = slot_attention(
        torch.nn.Module(),
        query,
        key,
        value,
        None,
        scaling=0.3,
        sliding_window=window,
        softcap=softcap,
        kv_layout=layout,
    )
    for row, fed in ((0, 3), (1, 2)):
        for column in range(fed):
            position = lengths[row] + column
            first = 0 if window is None else max(0, position - window + 1)
            for head in range(4):
                keys = key[row, head // 2, first : position + 1]
                scores = keys @ query[row, head, column] * 0.3
                if softcap:
                    scores = softcap * torch.tanh(scores / softcap)
                expected = scores.softmax(dim=-1) @ value[row, head // 2, first : position + 1]
                assert torch.allclose(out[row, column, head], expected, atol=1e-5)
