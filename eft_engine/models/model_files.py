"""The modelling files that a model's classes stand in."""

from __future__ import annotations

import sys
from types import ModuleType

from torch import nn


def files_of(model: nn.Module) -> list[ModuleType]:
    """The files of all modules of a model, each once, in the order of their names."""
    return [sys.modules[name] for name in sorted({type(module).__module__ for module in model.modules()})]
