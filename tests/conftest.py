"""Tiny trios that are built in the test: real architectures, random weights, nothing downloaded."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from transformers import logging as transformers_logging

from tests import toy
from tests.toy import ToyTrio, make_trio

transformers_logging.set_verbosity_error()

# No test asserts a time, and the same examples are drawn in every run: what fails once can be run again.
settings.register_profile("eft", deadline=None, derandomize=True)
settings.load_profile("eft")

# Toy models are so small that handing work to a second thread costs more than the work, many times so on a busy machine.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The engine's own tests run in either runtime, and on any device."""
    parser.addoption(
        "--runtime", choices=("torch", "llama.cpp"), default="torch", help="what engines of toy trios run in"
    )
    parser.addoption("--device", default="cpu", help="where engines of toy trios run in torch: cpu, cuda, cuda:1, ...")


def pytest_configure(config: pytest.Config) -> None:
    """Before tests are collected: parameters depend on it."""
    toy.RUNTIME = config.getoption("--runtime")
    toy.DEVICE = config.getoption("--device")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that look into one runtime are not for the other one."""
    other = {"torch": "llama_cpp", "llama.cpp": "torch"}[toy.RUNTIME]
    left_out = [item for item in items if item.get_closest_marker(f"only_{other}")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    """Every test starts from the same random state, and with messages and threads as no test before it has left them."""
    torch.manual_seed(0)
    loggers = [logging.getLogger(name) for name in (None, "eft_engine", "eft_integrations", "eft_tuning")]
    before = [(logger.level, logger.disabled, logger.propagate) for logger in loggers]
    num_threads = torch.get_num_threads()
    yield
    for logger, (level, disabled, propagate) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.disabled, logger.propagate = disabled, propagate
    if torch.get_num_threads() != num_threads:
        torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def toy_trio() -> ToyTrio:
    """A Llama trio: base of other size than the pair, byte-level tokenizer with a chat template. Treat as read-only."""
    return make_trio("llama")
