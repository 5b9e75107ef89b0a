"""A network under the engine: wanted logits only, refused where it cannot be exact, given back as it came."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    PreTrainedModel,
    RwkvConfig,
    RwkvForCausalLM,
)

from eft_engine.errors import UnsupportedModelError
from eft_engine.models.language_model import LanguageModel
from eft_engine.models.network import Block
from tests.models.ragged import Reader, some_ids
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


def test_attention_sinks_and_windows_are_those_of_the_model() -> None:
    """gpt-oss: a window in every other layer, sinks in all."""

    def make() -> GptOssForCausalLM:
        torch.manual_seed(0)
        config = GptOssConfig(
            **SMALL, num_local_experts=2, num_experts_per_tok=1, sliding_window=4, initializer_range=0.5
        )
        return GptOssForCausalLM(config).eval()

    reader = Reader(LanguageModel(make(), name="gpt-oss"), make())
    first, second = reader.start(), reader.start()
    reader.read((first, some_ids(11)), (second, some_ids(3, start=1)))
    reader.read((second, some_ids(4, start=2)), (first, [1]))
    reader.keep_length(second, 5)
    reader.read((first, [2]), (second, [3]))
    assert reader.worst < 1e-4


@pytest.mark.parametrize(
    "make",
    [
        lambda: RwkvForCausalLM(RwkvConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2)),
        lambda: OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=64, n_embd=32, n_layer=2, n_head=4)),
    ],
    ids=["a state that is no cache", "no cache"],
)
def test_unsupported_architectures_are_refused(make: Callable[[], PreTrainedModel]) -> None:
    with pytest.raises(UnsupportedModelError, match="toy: .*takes no cache") as refused:
        LanguageModel(make(), name="toy", self_check=False)
    assert refused.value.member == "toy"


class _Drifting(LlamaForCausalLM):
    """Adds to its logits whenever a cache is used."""

    def forward(self, *args: object, **kwargs: object) -> object:
        out = super().forward(*args, **kwargs)
        if kwargs.get("use_cache"):
            out.logits = out.logits + torch.arange(out.logits.shape[-1])
        return out


def test_model_whose_logits_change_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"change by .*docs/models\.md"):
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
