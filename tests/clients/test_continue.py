"""Continue's own adapter (npm, `@continuedev/openai-adapters`) with the recipe's configuration."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import yaml

from tests.clients.recipes import block

ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / ".venv-recipes/node_modules"


def test_recipe(base_url: str, tmp_path: Path) -> None:
    (model,) = yaml.safe_load(block("Continue", base_url))["models"]
    script = shutil.copy(Path(__file__).with_name("continue.mjs"), tmp_path)
    (tmp_path / "node_modules").symlink_to(PACKAGES)
    done = subprocess.run(["node", script, json.dumps(model)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert "eft" in told["models"]
    assert told["text"] == told["whole"] == 'hi {"helpful": 0.5, "harmless": 0.3}'
    assert told["usage"]["total_tokens"] > 0
    assert json.loads(told["call"]) == {"place": "Paris"}
    assert told["completion"]
    assert told["refusal"] == [404, "model_not_found"]
