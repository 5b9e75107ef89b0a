"""Tiny trios that are built in the test: real architectures, random weights, nothing downloaded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import logging

from tests.toy import ToyTrio, make_trio

logging.set_verbosity_error()


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    """Every test starts from the same random state and leaves the number of threads alone."""
    torch.manual_seed(0)
    yield


@pytest.fixture(scope="session")
def toy_trio() -> ToyTrio:
    """A Llama trio: base of other size than the pair, byte-level tokenizer with a chat template. Treat as read-only."""
    return make_trio("llama")
