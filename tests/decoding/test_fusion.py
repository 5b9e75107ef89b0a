"""What is fused on accelerators gives the same numbers, and goes on where it cannot be compiled."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from eft_engine.decoding import fusion
from eft_engine.decoding.composition import _compose_at_once, member_logprobs
from eft_engine.decoding.fusion import fused
from eft_engine.decoding.races import times_of_counter

META = torch.device("meta")
"""Not a CPU; nothing is computed on it."""


def doubled(values: Tensor) -> Tensor:
    """Something to fuse."""
    return values * 2


def test_on_a_cpu_a_function_runs_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("a CPU needs no compiler"))
    assert fused(doubled)(torch.tensor([1.0])).tolist() == [2.0]


def test_elsewhere_it_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Callable[..., Any]] = []

    def compile_(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    function = fused(doubled)
    for _ in range(2):
        assert function(torch.ones(3, device=META)).shape == (3,)
    assert compiled == [doubled]


def test_what_cannot_be_compiled_runs_as_written_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compile_(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def broken(*args: Any) -> Any:
            raise RuntimeError("no compiler here")

        return broken

    monkeypatch.setattr(torch, "compile", compile_)
    function = fused(doubled)
    with caplog.at_level(logging.WARNING, logger=fusion.__name__):
        for _ in range(2):
            assert function(torch.ones(3, device=META)).shape == (3,)
    assert [record.getMessage() for record in caplog.records] == ["doubled cannot be compiled here; it runs unfused"]


def test_memory_that_runs_out_is_not_mistaken_for_a_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def full(*args: Any) -> Any:
            raise torch.OutOfMemoryError("full")

        return full

    monkeypatch.setattr(torch, "compile", compile_)
    function = fused(doubled)
    with pytest.raises(torch.OutOfMemoryError):
        function(torch.ones(3, device=META))


LOGITS = torch.tensor([[0.5, -1.0, 2.0], [3.0, 0.0, -2.0]])
CASES: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
    (member_logprobs, (LOGITS, torch.tensor([1]))),
    (_compose_at_once, (LOGITS.log_softmax(-1)[None], torch.tensor([[1.0, -0.5]]))),
    (times_of_counter, (torch.tensor([7, 3, 0]), 11)),
]


@pytest.mark.parametrize(("function", "args"), CASES, ids=["member_logprobs", "compose", "times_of_counter"])
def test_fused_functions_are_one_graph(function: Any, args: tuple[Any, ...]) -> None:
    """No part of them falls back to Python, and tracing changes no number."""
    traced = torch.compile(function.__wrapped__, dynamic=True, fullgraph=True, backend="eager")
    torch.testing.assert_close(traced(*args), function(*args), rtol=0, atol=0)
