"""Clients for JavaScript: each file of `node` is run by Node's own test runner, with the packages of `make test-clients`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "node"
PACKAGES = Path(os.environ.get("EFT_NODE_PACKAGES", Path(__file__).parents[2] / ".clients-node/node_modules"))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", sorted(path.name for path in HERE.glob("*.test.js")))
def test_client(base_url: str, tmp_path: Path, name: str) -> None:
    for own in ("package.json", name):
        shutil.copy(HERE / own, tmp_path)
    (tmp_path / "node_modules").symlink_to(PACKAGES)
    done = subprocess.run(
        ["node", "--test", "--test-reporter=tap", name],
        cwd=tmp_path,
        env={**os.environ, "EFT_BASE_URL": base_url},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout
