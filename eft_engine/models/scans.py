"""The recurrences of transformers' models, asked for one token or for many, from any state.

The modules of hybrid models hand their recurrence to a function of their file, one per kind (`FAMILIES`). While a pass of an
engine is computed those calls come here: the same functions do the work, but the state is the slots', and rows of different
lengths are kept apart (see `states`). Everybody else's calls go straight through.

Gated delta rule: arXiv 2412.06464; Kimi delta attention: 2510.26692; Mamba: 2312.00752; Mamba-2: 2405.21060.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from eft_engine.models.model_files import files_of

Kernel = Callable[..., Any]


@dataclass(frozen=True)
class Scan:
    """A recurrence over the tokens of a pass.

    Args:
        inputs: what varies from token to token, `[rows, columns, ...]` each.
        step: inputs of one token `[rows, ...]` and a state, which may be changed in place: output `[rows, ...]` and the state
            behind.
        chunk: inputs `[rows, columns, ...]` and a state or None (a text's start): outputs `[rows, columns, ...]` and the state
            behind.
    """

    inputs: Sequence[Tensor]
    step: Callable[[Sequence[Tensor], Tensor], tuple[Tensor, Tensor]]
    chunk: Callable[[Sequence[Tensor], Tensor | None], tuple[Tensor, Tensor]]


class ScanRunner(Protocol):
    """Where a pass of an engine takes the states from."""

    def extend_convolution(self, layer: tuple[int, ...], new: Tensor, width: int) -> Tensor:
        """Take in `[rows, channels, columns]`; returns them behind the `width` inputs before them."""

    def enter_recurrence(self, layer: tuple[int, ...]) -> None:
        """What is scanned next belongs to this layer."""

    def run_scan(self, scan: Scan) -> tuple[Tensor, Tensor]:
        """Outputs `[rows, columns, ...]` and the last states `[rows, ...]`."""


@dataclass(frozen=True)
class Family:
    """A kind of recurrence: what people call its layers, the names of its two functions, and how a call of the first becomes a
    `Scan`, and outputs its result.
    """

    title: str
    chunk_name: str
    step_name: str
    bind: Callable[[Kernel, Kernel, tuple[Any, ...], dict[str, Any]], tuple[Scan, Callable[[Tensor, Tensor], Any]]]


def _delta_rule(
    chunk: Kernel, step: Kernel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Scan, Callable[[Tensor, Tensor], Any]]:
    """Gated delta rule and Kimi delta attention: all inputs `[rows, columns, heads, ...]`."""
    query, key, value = args
    options = {name: held for name, held in kwargs.items() if name not in ("g", "beta", "initial_state")}

    def run(kernel: Kernel, inputs: Sequence[Tensor], state: Tensor | None) -> tuple[Tensor, Tensor]:
        own_query, own_key, own_value, decay, beta = inputs
        output, after = kernel(
            own_query,
            own_key,
            own_value,
            g=decay,
            beta=beta,
            initial_state=state,
            **options | {"output_final_state": True},
        )
        return output, after

    def one(inputs: Sequence[Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        output, after = run(step, [each[:, None] for each in inputs], state)
        return output[:, 0], after

    scan = Scan((query, key, value, kwargs["g"], kwargs["beta"]), one, functools.partial(run, chunk))
    return scan, lambda output, state: (output, state)


def _mamba2(
    chunk: Kernel, step: Kernel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Scan, Callable[[Tensor, Tensor], Any]]:
    """Mamba-2: hidden states `[rows, columns, heads, head_dim]`, time steps `[rows, columns, heads]`, B and C with groups."""
    hidden, time_step, decay, in_matrix, out_matrix = args
    options = dict(kwargs)
    options.pop("initial_states", None)
    returns_state = options.pop("return_final_states", False)
    gate = options.pop("z", None)
    assert gate is None, "Mamba-2 gates behind its recurrence"

    def whole(inputs: Sequence[Tensor], state: Tensor | None) -> tuple[Tensor, Tensor]:
        own_hidden, own_step, own_in, own_out = inputs
        output, after = chunk(
            own_hidden, own_step, decay, own_in, own_out, initial_states=state, return_final_states=True, **options
        )
        return output, after

    def one(inputs: Sequence[Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        own_hidden, own_step, own_in, own_out = inputs
        width, num_states = own_hidden.shape[-1], own_in.shape[-1]
        # The function for single tokens knows no limits of the time step, so it gets the limited one.
        bias, limit = options.get("dt_bias"), options.get("dt_limit", (0.0, float("inf")))
        own_step = own_step if bias is None else own_step + bias.to(own_step.dtype)
        own_step = functional.softplus(own_step) if options.get("dt_softplus") else own_step
        own_step = own_step.clamp(*limit)
        skip = options.get("D")
        output = step(
            state,
            own_hidden,
            own_step[..., None].expand(-1, -1, width),
            decay[:, None, None].expand(-1, width, num_states),
            own_in,
            own_out,
            None if skip is None else skip[:, None].expand(-1, width),
        )
        return output, state

    scan = Scan((hidden, time_step, in_matrix, out_matrix), one, whole)
    return scan, lambda output, state: (output, state) if returns_state else output


def _mamba(
    chunk: Kernel, step: Kernel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Scan, Callable[[Tensor, Tensor], Any]]:
    """Mamba: everything `[rows, channels, columns]`. Its function for many tokens starts from nothing, so what a state adds to
    that is computed here: the recurrence is linear in it.
    """
    hidden, time_step, decay, in_matrix, out_matrix = args
    options = dict(kwargs)
    gate, skip = options.pop("z", None), options.pop("D", None)
    bias, softplus = options.get("delta_bias"), options.get("delta_softplus", False)
    returns_state = options.pop("return_last_state", False)

    def whole(inputs: Sequence[Tensor], state: Tensor | None) -> tuple[Tensor, Tensor]:
        own_hidden, own_step, own_in, own_out, *own_gate = (each.transpose(1, 2) for each in inputs)
        output, after = chunk(
            own_hidden,
            own_step,
            decay,
            own_in,
            own_out,
            D=skip,
            z=own_gate[0] if own_gate else None,
            return_last_state=True,
            **options,
        )
        if state is None:
            return output.transpose(1, 2), after
        lasts = own_step if bias is None else own_step + bias.to(own_step.dtype)[..., None]
        lasts = (functional.softplus(lasts) if softplus else lasts).float().cumsum(dim=-1)  # [rows, channels, columns]
        left = torch.exp(decay.float()[None, :, None, :] * lasts[..., None]) * state.float()[:, :, None, :]
        added = torch.einsum("rctn,rnt->rct", left, own_out.float())
        if own_gate:
            added = added * functional.silu(own_gate[0].float())
        after = after.to(state.dtype) + left[:, :, -1].to(state.dtype)
        return (output + added.to(output.dtype)).transpose(1, 2), after

    def one(inputs: Sequence[Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        own_hidden, own_step, own_in, own_out, *own_gate = inputs
        output = step(
            state,
            own_hidden,
            own_step,
            decay,
            own_in,
            own_out,
            skip,
            z=own_gate[0] if own_gate else None,
            dt_bias=bias,
            dt_softplus=softplus,
        )
        return output, state

    inputs = [each.transpose(1, 2) for each in (hidden, time_step, in_matrix, out_matrix, gate) if each is not None]

    def result(output: Tensor, state: Tensor) -> Any:
        return (output.transpose(1, 2), state) if returns_state else output.transpose(1, 2)

    return Scan(inputs, one, whole), result


FAMILIES = (
    Family("gated delta net", "torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule", _delta_rule),
    Family("Kimi delta attention", "chunk_kimi_delta_attention", "recurrent_kimi_delta_attention", _delta_rule),
    Family("Mamba-2", "mamba2_chunk_scan", "mamba2_selective_state_update", _mamba2),
    Family("Mamba", "mamba_selective_scan", "mamba_selective_state_update", _mamba),
)


class _Redirected:
    """Stands in a modelling file for the function of a recurrence."""

    def __init__(self, family: Family, chunk: Kernel, step: Kernel, runner: Callable[[], ScanRunner | None]) -> None:
        functools.update_wrapper(self, chunk)
        self._family = family
        self._chunk = chunk
        self._step = step
        self._runner = runner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        runner = self._runner()
        if runner is None:
            return self._chunk(*args, **kwargs)
        scan, result = self._family.bind(self._chunk, self._step, args, kwargs)
        return result(*runner.run_scan(scan))


def redirect_scans(model: nn.Module, runner: Callable[[], ScanRunner | None]) -> None:
    """Let the recurrences of this model's files ask `runner` where their states are; while it answers None nothing is different.

    Files stay that way: other models of the same class may be held by other engines.
    """
    for file in files_of(model):
        for family in FAMILIES:
            chunk, step = (getattr(file, name, None) for name in (family.chunk_name, family.step_name))
            if chunk is not None and step is not None and not isinstance(chunk, _Redirected):
                setattr(file, family.chunk_name, _Redirected(family, chunk, step, runner))
