"""Packed weights give the linear layer's product up to rounding; models get their own layers back, to the bit."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import MambaConfig, MambaForCausalLM

from eft_engine.models import linear
from eft_engine.models.language_model import LanguageModel
from eft_engine.models.linear import PackedLinear, pack_linear, restore_linear
from eft_engine.models.network import Block
from tests.toy import make_model, save_adapter

TOLERANCE = {torch.float32: 1e-4}
HAS_BFLOAT16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
if HAS_BFLOAT16:  # oneDNN refuses it on processors without AVX-512
    TOLERANCE[torch.bfloat16] = 0.1


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack on every processor, and small layers too."""
    monkeypatch.setattr(linear, "packed_is_faster", lambda dtype: True)
    monkeypatch.setattr(linear, "MIN_WEIGHT_SIZE", 1)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "shape", [(1, 300), (2, 300), (17, 300), (1, 1, 300), (3, 5, 300), (2, 200, 300), (1, 0, 300), (300,)]
)
def test_packed_layer_takes_the_shapes_of_a_linear_layer(
    shape: tuple[int, ...], bias: bool, dtype: torch.dtype
) -> None:
    layer = nn.Linear(300, 400, bias=bias, dtype=dtype)
    inputs = torch.randn(shape, dtype=dtype)
    expected = layer(inputs)
    pack_linear(layer, keep_weights=False)
    with torch.inference_mode():
        product = layer(inputs)
    assert type(layer) is PackedLinear
    torch.testing.assert_close(product, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_strided_rows_give_the_product() -> None:
    layer = nn.Linear(64, 48)
    inputs = torch.randn(4, 5, 64).transpose(0, 1)[:, 1:3]
    expected = layer(inputs)
    pack_linear(layer, keep_weights=False)
    with torch.inference_mode():
        torch.testing.assert_close(layer(inputs), expected)


def test_weights_that_code_around_a_layer_multiplies_with_stay() -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8, initializer_range=0.3)
    model = MambaForCausalLM(config).eval()
    with torch.inference_mode():
        expected = model(torch.tensor([[1, 2, 3]]), use_cache=False).logits
        pack_linear(model, keep_weights=False)
        torch.testing.assert_close(model(torch.tensor([[1, 2, 3]]), use_cache=False).logits, expected)
    mixer = model.backbone.layers[0].mixer
    assert mixer.dt_proj.holds_weight
    assert not mixer.in_proj.holds_weight


@pytest.mark.parametrize("keep_weights", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_weights_are_held_once_and_come_back_to_the_bit(dtype: torch.dtype, keep_weights: bool) -> None:
    embedding, tied, own = (
        nn.Embedding(90, 33, dtype=dtype),
        nn.Linear(33, 90, dtype=dtype),
        nn.Linear(33, 7, dtype=dtype),
    )
    tied.weight = embedding.weight
    model = nn.ModuleList([embedding, tied, own])
    parameters = dict(model.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    pack_linear(model, keep_weights=keep_weights)
    assert torch.equal(embedding.weight, before["0.weight"]), "the embedding reads it"
    assert own.weight.isnan().all() != keep_weights
    assert (own.weight.shape, own.weight.dtype, own.weight.nbytes) == ((7, 33), dtype, before["2.weight"].nbytes)
    assert own.weight.untyped_storage().nbytes() == (own.weight.nbytes if keep_weights else own.weight.itemsize)
    restore_linear(model)
    assert [type(module) for module in model] == [nn.Embedding, nn.Linear, nn.Linear]
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
        assert torch.equal(parameter, before[name])
        assert parameter.is_contiguous()
    own(torch.ones(2, 33, dtype=dtype)).sum().backward()  # it can be trained again
    assert own.weight.grad is not None


@pytest.mark.parametrize("faster", [True, False])
def test_only_large_plain_layers_change(faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(nn.Linear):
        pass

    class Quantised(torch.Tensor):
        """As torchao's: a tensor that knows how to multiply itself, in a plain layer."""

    monkeypatch.undo()
    monkeypatch.setattr(linear, "packed_is_faster", lambda dtype: faster)
    model = nn.ModuleDict(
        {
            "large": nn.Linear(512, 256),
            "large_too": nn.Linear(256, 512, dtype=torch.bfloat16 if HAS_BFLOAT16 else torch.float32),
            "small": nn.Linear(8, 8),
            "in_float64": nn.Linear(512, 256, dtype=torch.float64),
            "own": Own(512, 256),
            "quantised": nn.Linear(512, 256),
        }
    )
    model["quantised"].weight = nn.Parameter(torch.ones(256, 512).as_subclass(Quantised))
    pack_linear(model, keep_weights=True)
    changed = {name for name, module in model.items() if type(module) is PackedLinear}
    assert changed == ({"large", "large_too"} if faster else set())


def test_model_of_somebody_else_keeps_its_weights_and_gets_its_layers_back() -> None:
    model = make_model("llama")
    own = [type(module) for module in model.modules()]
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    language_model = LanguageModel(model, name="base")
    assert any(type(module) is PackedLinear for module in model.modules())
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())
    language_model.release()
    assert [type(module) for module in model.modules()] == own


def test_an_adapter_is_loaded_onto_a_network_that_holds_packed_weights_alone(tmp_path: Path) -> None:
    """PEFT reads the weights of the layers that it wraps."""
    base = make_model("llama")
    folder = save_adapter(base, tmp_path, seed=1)
    logits = []
    for keep_weights in (True, False):
        network = LanguageModel(copy.deepcopy(base), name="toy", keep_weights=keep_weights)
        _, name = network.with_adapter(folder, member="tuned")
        assert sum(type(module) is PackedLinear for module in network.model.modules()) > 10
        blocks = [Block(network.kv_cache.allocate(), [5, 6, 7], 1, adapter) for adapter in (None, name)]
        logits.append(network.forward(blocks))
        network.release()
        for key, parameter in network.model.named_parameters():
            assert torch.equal(parameter, base.get_parameter(key.replace(".base_layer", ""))), key
    torch.testing.assert_close(*logits)


def test_a_torch_without_the_operators_is_served_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    linear.packed_is_faster.cache_clear()
    monkeypatch.setattr(linear, "_OPERATORS", ("_no_such_operator",))
    assert not linear.packed_is_faster(torch.float32)
    linear.packed_is_faster.cache_clear()


def test_measurement_answers_with_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    linear.packed_is_faster.cache_clear()
    answers = [linear.packed_is_faster(dtype) for dtype in (torch.float32, torch.bfloat16)]
    assert set(answers) <= {True, False}
    assert answers[1] is False or HAS_BFLOAT16
    assert linear.packed_is_faster.cache_info().currsize == 2
