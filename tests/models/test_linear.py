"""The exchanged product is the linear layer up to rounding, whatever the shape; models get their own layers back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eft_engine.models import linear
from eft_engine.models.language_model import LanguageModel
from eft_engine.models.linear import FewRowsLinear, few_rows_linear, restore_linear, use_few_rows_linear, wide_linear
from tests.toy import make_model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_rows", [*range(1, 19), 63, 64, 65, 100])
def test_every_row_count_gives_the_product(num_rows: int, bias: bool) -> None:
    torch.manual_seed(num_rows)
    layer = nn.Linear(37, 23, bias=bias, dtype=torch.float64)
    rows = torch.randn(num_rows, 37, dtype=torch.float64)
    out = few_rows_linear(rows, layer.weight, layer.bias)
    torch.testing.assert_close(out, layer(rows), rtol=1e-12, atol=1e-12)
    assert out.is_contiguous()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_outputs", [1, linear.PART, linear.PART + 1, 2 * linear.PART + 7])
def test_product_in_parts_is_the_product(num_outputs: int, bias: bool) -> None:
    layer = nn.Linear(19, num_outputs, bias=bias, dtype=torch.float64)
    rows = torch.randn(24, 19, dtype=torch.float64)
    torch.testing.assert_close(wide_linear(rows, layer.weight, layer.bias), layer(rows), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "num_rows", [1, linear.FEW_ROWS_WIDE, linear.FEW_ROWS_WIDE + 1, 24, linear.MAX_ROWS_WIDE, linear.MAX_ROWS_WIDE + 1]
)
def test_output_layer_gives_the_product_for_every_row_count(num_rows: int) -> None:
    layer = nn.Linear(16, linear.WIDE + 3)
    rows = torch.randn(1, num_rows, 16)
    expected = layer(rows)
    layer.__class__ = FewRowsLinear
    torch.testing.assert_close(layer(rows), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 300), (3, 5, 300), (2, 40, 300), (1, 0, 300), (300,)])
def test_layer_takes_the_shapes_of_a_linear_layer(shape: tuple[int, ...]) -> None:
    layer = nn.Linear(300, 400)
    model = nn.Sequential(layer)
    inputs = torch.randn(shape)
    expected = layer(inputs)
    layer.__class__ = FewRowsLinear
    torch.testing.assert_close(model(inputs), expected, rtol=1e-4, atol=1e-4)


def test_strided_rows_give_the_product() -> None:
    layer = nn.Linear(64, 48)
    columns = torch.randn(64, 5)
    torch.testing.assert_close(few_rows_linear(columns.T, layer.weight, layer.bias), layer(columns.T))


@pytest.mark.parametrize("faster", [True, False])
def test_only_large_plain_float32_layers_change_and_come_back(faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(nn.Linear):
        pass

    monkeypatch.setattr(linear, "exchanged_is_faster", lambda: faster)
    kinds = {
        "large": (nn.Linear(512, 256), nn.Linear),
        "small": (nn.Linear(8, 8), nn.Linear),
        "in_bfloat16": (nn.Linear(512, 256, dtype=torch.bfloat16), nn.Linear),
        "own": (Own(512, 256), Own),
    }
    model = nn.ModuleDict({name: module for name, (module, _) in kinds.items()})
    use_few_rows_linear(model)
    changed = {name for name, module in model.items() if type(module) is FewRowsLinear}
    assert changed == ({"large"} if faster else set())
    restore_linear(model)
    assert all(type(model[name]) is kind for name, (_, kind) in kinds.items())


def test_model_is_given_back_with_its_own_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "exchanged_is_faster", lambda: True)
    monkeypatch.setattr(linear, "MIN_WEIGHT_SIZE", 1)
    model = make_model("llama")
    own = [type(module) for module in model.modules()]
    language_model = LanguageModel(model, name="base")
    assert any(type(module) is FewRowsLinear for module in model.modules())
    language_model.release()
    assert [type(module) for module in model.modules()] == own


def test_measurement_answers_with_a_choice() -> None:
    linear.exchanged_is_faster.cache_clear()
    assert linear.exchanged_is_faster() in (True, False)
    assert linear.exchanged_is_faster.cache_info().currsize == 1
