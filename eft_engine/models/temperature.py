"""Attention whose temperature grows with a token's position (Llama 4, layers without rotary positions).

Their modules count positions for a whole batch at once, from the length of its cache. While a network belongs to the engine,
queries are scaled row by row instead, where attention is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eft_engine.models.layout import BatchLayout
from eft_engine.transfer import upload

_SWITCH = "attn_temperature_tuning"
_ATTRIBUTE = "eft_temperature"


@dataclass(frozen=True)
class Temperature:
    """A query at position p is scaled by `1 + scale * log(1 + floor((p + 1) / floor_scale))`."""

    scale: float
    floor_scale: float

    def factors(self, layout: BatchLayout, device: torch.device) -> Tensor:
        """`[rows, 1, columns, 1]` in float32."""
        positions = upload(layout.positions, device)[:, None, :, None].float()
        return torch.log1p(torch.floor((positions + 1.0) / self.floor_scale)) * self.scale + 1.0


class Temperatures:
    """The modules of a model that scale their queries; `slot_attention` does it in their place until `give_back`."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [
            module
            for module in model.modules()
            if getattr(module, _SWITCH, False) and not getattr(module, "use_rope", True)
        ]

    def take(self) -> None:
        """Scale row by row."""
        for module in self._modules:
            setattr(
                module,
                _ATTRIBUTE,
                Temperature(*(float(getattr(module, name)) for name in ("attn_scale", "floor_scale"))),
            )
            setattr(module, _SWITCH, False)

    def give_back(self) -> None:
        """Let the modules scale."""
        for module in self._modules:
            if hasattr(module, _ATTRIBUTE):
                delattr(module, _ATTRIBUTE)
                setattr(module, _SWITCH, True)


def temperature_of(module: nn.Module) -> Temperature | None:
    """How the queries of an attention module are to be scaled."""
    held: Temperature | None = getattr(module, _ATTRIBUTE, None)
    return held
