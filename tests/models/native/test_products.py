"""Products of packed matrices, judged by torch's; equal to the bit in any company."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from eft_engine.models.native.library import PANEL, PackedMatrix, apart, interleaved
from eft_engine.models.native.quantising import GROUP, Kind, held_share, to_codes

SHAPES = [(16, 32), (48, 64), (50, 40), (200, 200)]
ROUNDING = {Kind.F32: 1e-6, Kind.BF16: 1e-6, Kind.INT8: 1e-4, Kind.INT4: 1e-4}
"""Rows are rounded to 16 bits where weights are codes."""


def matrix_of(
    kind: Kind, *shape: int, seed: int = 0, bias: bool = False
) -> tuple[PackedMatrix, torch.Tensor, torch.Tensor]:
    """A packed matrix, the weight that went into it, and its bias."""
    torch.manual_seed(seed)
    weight, added = torch.randn(shape), torch.randn(shape[0])
    matrix = PackedMatrix(kind, shape[1], apart([shape[0]]))
    matrix.put(0, weight, added if bias else None)
    return matrix, weight, added


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("shape", SHAPES)
def test_product_is_that_of_torch_with_the_numbers_that_are_held(kind: Kind, shape: tuple[int, int]) -> None:
    matrix, _, bias = matrix_of(kind, *shape, bias=True)
    rows = torch.randn(13, shape[1])
    expected = functional.linear(rows.double(), matrix.unpack(0, torch.float32).double(), bias.double())
    found = matrix.product(rows)[:, : shape[0]].double()
    assert (found - expected).abs().max() <= ROUNDING[kind] * expected.abs().max()


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("shape", [(50, 40), (200, 200)])
def test_rows_depend_on_no_company_and_no_threads(kind: Kind, shape: tuple[int, int]) -> None:
    matrix, _, _ = matrix_of(kind, *shape)
    rows = torch.randn(40, shape[1])
    whole = matrix.product(rows)
    for count in range(1, 14):
        for threads in (1, 2, 3):
            assert torch.equal(matrix.product(rows[5 : 5 + count], num_threads=threads), whole[5 : 5 + count])


@pytest.mark.parametrize(("kind", "dtype"), [(Kind.F32, torch.float32), (Kind.BF16, torch.bfloat16)])
def test_weights_come_back_to_the_bit(kind: Kind, dtype: torch.dtype) -> None:
    matrix, weight, _ = matrix_of(kind, 50, 40)
    assert torch.equal(matrix.unpack(0, dtype), weight.to(dtype))


@pytest.mark.parametrize("kind", [Kind.INT8, Kind.INT4])
def test_codes_are_within_half_a_step(kind: Kind) -> None:
    matrix, weight, _ = matrix_of(kind, 48, 64)
    codes = to_codes(weight, kind)
    steps = codes.scales.float().repeat_interleave(GROUP, dim=1)
    # Scales and offsets are rounded themselves, by up to a part in 256.
    slack = weight.abs().max() / 128
    assert ((matrix.unpack(0, torch.float32) - weight).abs() <= 0.5 * steps + slack).all()


def test_constant_and_zero_groups_are_exact() -> None:
    weight = torch.zeros(16, 64)
    weight[:, 32:] = 0.5
    for kind in (Kind.INT8, Kind.INT4):
        matrix = PackedMatrix(kind, 64, apart([16]))
        matrix.put(0, weight)
        found = matrix.unpack(0, torch.float32)
        assert torch.equal(found[:, :32], weight[:, :32])
        assert (found - weight).abs().max() <= 0.5 / 127


def test_interleaved_weights_lie_panel_by_panel() -> None:
    torch.manual_seed(1)
    first, second, rows = torch.randn(40, 32), torch.randn(40, 32), torch.randn(3, 32)
    matrix = PackedMatrix(Kind.F32, 32, interleaved(40))
    matrix.put(0, first)
    matrix.put(1, second)
    found = matrix.product(rows).view(3, -1, 2, PANEL)
    for index, weight in enumerate((first, second)):
        assert torch.allclose(found[:, :, index].reshape(3, -1)[:, :40], rows @ weight.T, atol=1e-5)
        assert torch.equal(matrix.unpack(index, torch.float32), weight)


@pytest.mark.parametrize("kind", Kind)
def test_what_is_not_finite_stays_in_its_row(kind: Kind) -> None:
    matrix, _, _ = matrix_of(kind, 48, 64)
    rows = torch.randn(6, 64)
    clean = matrix.product(rows)
    rows[2, 7] = torch.nan
    found = matrix.product(rows)
    assert found[2].isnan().all()
    assert torch.equal(found[[0, 1, 3, 4, 5]], clean[[0, 1, 3, 4, 5]])


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_share_of_bytes_is_what_is_held(name: str) -> None:
    matrix, _, _ = matrix_of({"int8": Kind.INT8, "int4": Kind.INT4}[name], 64, 128)
    assert matrix.nbytes == held_share(name, torch.bfloat16) * 64 * 128 * 2
