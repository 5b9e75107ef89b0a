"""Import paths of before: they work, and say where the name is now."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping


def moved(module: str, names: Mapping[str, str]) -> Callable[[str], object]:
    """A `__getattr__` for a module whose names lie elsewhere now.

    Args:
        module: its own name.
        names: by name, the module that has it.
    """

    def find(name: str) -> object:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{module}.{name} is {names[name]}.{name} now", DeprecationWarning, stacklevel=2)
        found: object = getattr(importlib.import_module(names[name]), name)
        return found

    return find
