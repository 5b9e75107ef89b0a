"""Which files of this machine a trio is made of, and in what state: two trainings of one folder are two models."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from eft_integrations.backends.trio_source import TrioSource


def identity_of(source: TrioSource) -> str:
    """The same in every process for sources that make the same engine, as far as names, times and sizes of files tell. What lies on
    the hub goes by its name, and what a preset holds by the preset's.
    """
    return json.dumps([source.key, {place: _state(Path(place).expanduser()) for place in sorted(_places(source))}])


def _places(source: TrioSource) -> set[str]:
    members = [
        member for pair in source.pairs.values() for member in (pair.tuned, pair.reference) if member is not None
    ]
    if source.base is not None:
        members.append(source.base)
    named: Iterable[str | None] = (
        own for member in members for own in (member.source, member.adapter, member.tokenizer)
    )
    return {place for place in named if place and Path(place).expanduser().exists()}


def _state(path: Path) -> list[object]:
    """Where a folder or file is, and its files with sizes and times of change. What cannot be read says so when it is loaded."""
    try:
        files = sorted(own for own in path.iterdir() if own.is_file()) if path.is_dir() else [path]
        states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError as error:
        states = [(type(error).__name__, 0, 0)]
    return [str(path.resolve()), states]
