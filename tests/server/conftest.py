"""Servers for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.process import KEYS, ServerProcess, save_trio, write_keys

QUICK = [
    "--head-timeout-s",
    "2",
    "--receive-timeout-s",
    "2",
    "--send-timeout-s",
    "2",
    "--max-connections",
    "500",
    "--keep-alive-timeout-s",
    "3",
]
"""Limits under which no attack has to be waited for."""


@pytest.fixture(scope="session")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags that name the trio."""
    return save_trio(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three keys."""
    return write_keys(tmp_path_factory.mktemp("keys") / "keys.txt")


@pytest.fixture(scope="module")
def server(flags: list[str], key_file: Path) -> Iterator[ServerProcess]:
    """A process that asks for keys and waits for nobody long."""
    made = ServerProcess(
        [*flags, "--port", "0", "--api-key-file", str(key_file), *QUICK, "--drain-timeout-s", "5"], key=KEYS["mallory"]
    )
    try:
        yield made
    finally:
        made.stop()
