"""Recurrences of transformers' modules: token by token, whole, and whole from a state they are one and the same."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from eft_engine.models.layout import BatchLayout, computing, current_scans
from eft_engine.models.network import KVSlot
from eft_engine.models.scans import FAMILIES, Scan, redirect_scans
from tests.models.hybrid_models import VOCAB_SIZE, make_hybrid

COLUMNS = 21
WITH_RECURRENCES = ("falcon_h1", "jamba", "kimi_linear", "mamba", "mamba2", "qwen3_next", "zamba")


class Noting:
    """Runs every scan from a text's start, as a direct call would, and keeps it."""

    def __init__(self) -> None:
        self.scans: list[Scan] = []

    def run_scan(self, scan: Scan) -> tuple[Tensor, Tensor]:
        """See `ScanRunner`."""
        self.scans.append(scan)
        return scan.chunk(scan.inputs, None)


def token_ids() -> Tensor:
    """Two texts of one length."""
    return torch.randint(VOCAB_SIZE, (2, COLUMNS), generator=torch.Generator().manual_seed(3))


def noted(model: PreTrainedModel) -> tuple[Tensor, list[Scan]]:
    """Logits of a pass in which scans are noted, and these."""
    redirect_scans(model, current_scans)
    noting = Noting()
    layout = BatchLayout.of([KVSlot(0), KVSlot(1)], [COLUMNS, COLUMNS])
    with computing(layout, noting), torch.inference_mode():
        logits = model(token_ids(), use_cache=False).logits
    return logits, noting.scans


def stepped(scan: Scan, state: Tensor, columns: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Outputs `[rows, len(columns), ...]` token by token."""
    outputs = []
    for column in columns:
        output, state = scan.step([each[:, column] for each in scan.inputs], state)
        outputs.append(output)
    return torch.stack(outputs, dim=1), state


def part(scan: Scan, start: int, stop: int) -> list[Tensor]:
    """Inputs of these columns."""
    return [each[:, start:stop] for each in scan.inputs]


@pytest.fixture(params=WITH_RECURRENCES)
def scans(request: pytest.FixtureRequest) -> Iterator[list[Scan]]:
    """Those of a model, with the inputs that its own modules give them."""
    with torch.inference_mode():
        found = noted(make_hybrid(request.param))[1]
        assert found
        yield found


def test_token_by_token_is_the_whole(scans: list[Scan]) -> None:
    for scan in scans:
        output, after = scan.chunk(scan.inputs, None)
        one_by_one, last = stepped(scan, torch.zeros_like(after), range(COLUMNS))
        torch.testing.assert_close(one_by_one, output, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(last, after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", [1, 8, 13])
def test_the_whole_goes_on_from_a_state(scans: list[Scan], start: int) -> None:
    for scan in scans:
        output, after = scan.chunk(scan.inputs, None)
        first, state = scan.chunk(part(scan, 0, start), None)
        assert state.abs().max() > 1e-3, "there is something to go on from"
        rest, last = scan.chunk(part(scan, start, COLUMNS), state)
        torch.testing.assert_close(torch.cat([first, rest], dim=1), output, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(last, after, rtol=1e-4, atol=1e-4)


def test_every_family_is_scanned_by_some_model() -> None:
    """So that no row of the table is left out of the tests above."""
    files = {
        sys.modules[type(module).__module__] for name in WITH_RECURRENCES for module in make_hybrid(name).modules()
    }
    assert all(any(hasattr(file, family.chunk_name) for file in files) for family in FAMILIES)


def test_limits_of_the_time_step_hold_token_by_token() -> None:
    """The function of transformers for single tokens knows none."""
    with torch.inference_mode():
        limited, free = make_hybrid("mamba2"), make_hybrid("mamba2")
        for module in free.modules():
            if hasattr(module, "time_step_limit"):
                module.time_step_limit = (0.0, float("inf"))
        outputs = []
        for model in (limited, free):
            scan = noted(model)[1][0]
            outputs.append(stepped(scan, torch.zeros_like(scan.chunk(scan.inputs, None)[1]), range(COLUMNS))[0])
        assert (outputs[0] - outputs[1]).abs().max() > 0.01 * outputs[1].abs().max(), "the limits bind"


@pytest.mark.parametrize("name", WITH_RECURRENCES)
def test_a_direct_call_is_what_it_was(name: str) -> None:
    """Files are redirected for good; whoever calls a model outside of a pass notices nothing, and inside the text is the same."""
    model = make_hybrid(name)
    other = copy.deepcopy(model)
    files = {sys.modules[type(module).__module__] for module in model.modules()}
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        for file in files:  # as no engine had ever held such a model
            for family in FAMILIES:
                held = vars(file).get(family.chunk_name)
                if held is not None:
                    patch.setattr(file, family.chunk_name, getattr(held, "__wrapped__", held))
        before = model(token_ids(), use_cache=False).logits
        redirect_scans(model, current_scans)
        assert torch.equal(other(token_ids(), use_cache=False).logits, before)
        torch.testing.assert_close(noted(model)[0], before, rtol=1e-4, atol=1e-4)
