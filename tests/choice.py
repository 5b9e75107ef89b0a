"""Cases that `make test` always tries, and those that only `make test-thorough` tries."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def thorough_but(cases: Iterable[Any], *, often: Collection[str] | int) -> list[Any]:
    """Parameters, all of them `thorough` but those that are called `often`.

    Args:
        cases: strings, or parameters with an id and marks of their own.
        often: names of the cases that `make test` tries, or a number: it tries one of so many.
    """
    params = [case if hasattr(case, "marks") else pytest.param(case) for case in cases]
    names = [param.id or str(param.values[0]) for param in params]
    often = names[::often] if isinstance(often, int) else often
    assert set(often) <= set(names), f"there is no case {sorted(set(often) - set(names))}"
    return [
        pytest.param(
            *param.values, id=param.id, marks=[*param.marks, *([] if name in often else [pytest.mark.thorough])]
        )
        for name, param in zip(names, params, strict=True)
    ]
