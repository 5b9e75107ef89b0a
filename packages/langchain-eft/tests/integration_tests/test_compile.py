"""`pytest -m compile` imports the integration tests and runs nothing of them."""

import pytest


@pytest.mark.compile
def test_placeholder() -> None:
    """Reached where every file of this folder can be imported."""
