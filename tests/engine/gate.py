"""A gate before the passes of a network."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from eft_engine.models.network import Block, Network


class Gate:
    """Holds the forward passes of a network until it is opened; `reached` is set by the first that comes."""

    def __init__(self, patch: pytest.MonkeyPatch, network: Network) -> None:
        self.reached, self._open = threading.Event(), threading.Event()
        original: Callable[[list[Block]], Any] = network.forward

        def forward(blocks: list[Block]) -> Any:
            self.reached.set()
            assert self._open.wait(60)
            return original(blocks)

        patch.setattr(network, "forward", forward)

    def open(self) -> None:
        """Let everything through from now on."""
        self._open.set()
