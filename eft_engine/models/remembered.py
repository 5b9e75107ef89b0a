"""What was measured once on this machine and is remembered between processes: what follows from it is the same every time."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from eft_engine.models.native.build import cache_folder, processor

logger = logging.getLogger(__name__)


def recall(subject: str, *facts: object) -> Any:
    """What was remembered of `subject` and these facts on this machine; None: nothing, or nothing that can be read."""
    try:
        return json.loads(_file(subject, facts).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("what was measured of %s cannot be read and is measured again: %s", subject, error)
        return None


def remember(subject: str, *facts: object, value: Any) -> Any:
    """Keep a value for other processes, unless one was there first: what is kept is returned. Where nothing can be written a line
    is logged, and the value holds for this process.
    """
    file = _file(subject, facts)
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, encoding="utf-8", delete=False) as made:
            json.dump(value, made)
        try:
            os.link(made.name, file)  # the first one stays
        except FileExistsError:
            value = json.loads(file.read_text(encoding="utf-8"))
        finally:
            Path(made.name).unlink()
    except (OSError, ValueError) as error:
        logger.warning("what was measured of %s cannot be kept for other processes: %s", subject, error)
    return value


def _file(subject: str, facts: tuple[object, ...]) -> Path:
    key = hashlib.sha256("\n".join([processor(), *map(str, facts)]).encode()).hexdigest()[:32]
    return cache_folder() / subject / f"{key}.json"
