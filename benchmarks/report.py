"""Conditions of a run and its closing JSON line."""

from __future__ import annotations

import json
import os
import platform
import sys
from typing import Any

import torch
import transformers


def conditions() -> dict[str, Any]:
    """What a reader needs to judge a number: versions, processor, threads."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def finish(name: str, result: dict[str, Any]) -> None:
    """The last line of every benchmark."""
    sys.stdout.write(json.dumps({"benchmark": name, **result, "conditions": conditions()}) + "\n")
