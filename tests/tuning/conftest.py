"""A tiny model in a folder and chats that it can learn; nothing of any hub."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import pytest
import torch

from tests.toy import make_model, make_tokenizer

if importlib.util.find_spec("trl") is None:
    collect_ignore_glob = ["test_*.py"]

torch.set_num_threads(1)

Tune = Callable[..., int]


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Llama of two layers with random weights, its tokenizer and chat template."""
    folder = tmp_path_factory.mktemp("reference")
    make_model("llama").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty questions of differing lengths that are all answered alike."""
    words = ("moss", "a lamp", "the old river", "tea", "a very small green boat")
    rows = [
        {"question": f"What is {word} {'I' * number}?", "answer": "ok."} for word in words for number in range(1, 5)
    ]
    return write_rows(tmp_path_factory.mktemp("chats") / "chats.jsonl", rows)


@pytest.fixture(scope="session")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"prompt": f"Say {number}{number * 7}", "chosen": "yes", "rejected": "no no"} for number in range(3, 19)]
    return write_rows(tmp_path_factory.mktemp("preferences") / "preferences.jsonl", rows)


@pytest.fixture
def tune(reference: str, chats: Path, tmp_path: Path) -> Tune:
    """`eft tune` behind its options, with two rows at once and without the questions at the end."""
    from eft_tuning.running import Asked, run

    def call(out: str = "out", *, rows: Path = chats, measure: bool = False, **given: Any) -> int:
        fields = {name: given.pop(name) for name in list(given) if name in Asked.__dataclass_fields__}
        settings = {"batch_size": 4, "rows_at_once": 2, "epochs": 2.0, **given}
        asked = Asked(
            chats=rows,
            out=tmp_path / out,
            settings=settings,
            threads=1,
            measure=measure,
            **{"reference": reference, "held_out_share": 0.2, **fields},
        )
        return run(asked)

    return call
