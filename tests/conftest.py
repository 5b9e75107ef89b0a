"""Tiny trios that are built in the test: real architectures, random weights, nothing downloaded."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from transformers import logging

from tests.toy import ToyTrio, make_trio

logging.set_verbosity_error()

# No test asserts a time, and the same examples are drawn in every run: what fails once can be run again.
settings.register_profile("eft", deadline=None, derandomize=True)
settings.load_profile("eft")

# Toy models are so small that handing work to a second thread costs more than the work, many times so on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def toy_trio() -> ToyTrio:
    """A Llama trio: base of other size than the pair, byte-level tokenizer with a chat template. Treat as read-only."""
    return make_trio("llama")
