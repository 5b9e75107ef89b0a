"""Files of callers in one folder: JSON Lines that batches read, and what they write. Their number and bytes are bounded."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eft_engine import errors
from eft_integrations.json_types import JsonObject
from eft_integrations.server.answers import new_id
from eft_integrations.server.errors import INVALID, SERVER, ApiError, Kind, shortened
from eft_integrations.server.evaluation.batch_settings import BatchSettings

INDEX = "index.json"
PREFIX = "file-"
"""Of the names of all other files."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredFile:
    """What is known of a file. `owner` is the name of its caller."""

    id: str
    owner: str
    filename: str
    purpose: str
    num_bytes: int
    created_at: int
    expires_at: int

    @property
    def form(self) -> JsonObject:
        """As OpenAI writes it."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.num_bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


class FileStore:
    """The files. Belongs to one event loop; `index` holds what else is to be found again after a restart."""

    def __init__(self, folder: Path, settings: BatchSettings) -> None:
        self._folder = folder
        self._settings = settings
        self._files: dict[str, StoredFile] = {}
        self._others: list[Mapping[str, Any]] = []
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def load(self) -> list[Mapping[str, Any]]:
        """Find what an earlier server has left; gives what `save` was given besides.

        Raises:
            ConfigurationError: the index cannot be read.
        """
        path = self._folder / INDEX
        if not path.is_file():
            return []
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            known = [StoredFile(**own) for own in index["files"]]
            others: list[Mapping[str, Any]] = index["others"]
        except (ValueError, KeyError, TypeError) as error:
            raise errors.ConfigurationError(
                f"{path} is no index of files and batches ({error}); move {self._folder} away, or name another batches.folder"
            ) from None
        for own in known:
            if self.path(own).is_file():
                self._files[own.id] = dataclasses.replace(own, num_bytes=self.path(own).stat().st_size)
        self._others = others
        for left in self._folder.glob(f"{PREFIX}*"):
            if left.name not in self._files:  # a server was killed while it wrote it
                left.unlink()
        return others

    def save(self, others: Iterable[Mapping[str, Any]]) -> None:
        """Write down what there is, whole or not at all."""
        self._others = [*others]
        self._write_index()

    def _write_index(self) -> None:
        index = {"files": [dataclasses.asdict(own) for own in self._files.values()], "others": self._others}
        path = self._folder / f"{INDEX}.new"
        path.write_text(json.dumps(index), encoding="utf-8")
        os.replace(path, self._folder / INDEX)

    def path(self, file: StoredFile) -> Path:
        """Where its bytes are."""
        return self._folder / file.id

    def add(self, owner: str, data: bytes, *, filename: str, purpose: str) -> StoredFile:
        """Keep a file.

        Raises:
            ApiError: there are too many, or too many bytes (413), or the disk takes no more (507).
        """
        self.expire()
        if len(self._files) >= self._settings.max_files:
            raise _full(f"the server holds {len(self._files)} files, which is all that it may; delete some")
        self.check_room(len(data))
        now = int(time.time())
        file = StoredFile(
            new_id(PREFIX), owner, filename[:200], purpose, len(data), now, now + int(self._settings.kept_s)
        )
        self._files[file.id] = file
        try:
            self.path(file).write_bytes(data)
            self._write_index()
        except OSError as error:
            self.delete(file)
            raise _unwritten(error) from error
        return file

    def append(self, file: StoredFile, data: bytes) -> StoredFile:
        """A file with more at its end; errors as for `add`."""
        self.check_room(len(data))
        try:
            with self.path(file).open("ab") as stream:
                stream.write(data)
        except OSError as error:
            with contextlib.suppress(OSError):  # no half lines
                os.truncate(self.path(file), file.num_bytes)
            raise _unwritten(error) from error
        grown = dataclasses.replace(file, num_bytes=file.num_bytes + len(data))
        self._files[file.id] = grown
        return grown

    def check_room(self, num_bytes: int) -> None:
        """Errors as for `add`."""
        held = sum(own.num_bytes for own in self._files.values())
        if held + num_bytes > self._settings.max_bytes:
            raise _full(
                f"the files hold {held} bytes, {num_bytes} more came, and they may have {self._settings.max_bytes}"
            )

    def get(self, owner: str, file_id: str) -> StoredFile:
        """A caller's own file.

        Raises:
            ApiError: there is none (404).
        """
        self.expire()
        found = self._files.get(file_id)
        if found is None or found.owner != owner:
            raise ApiError(f"there is no file {shortened(file_id)!r}", Kind(404, INVALID, "file_not_found", "file_id"))
        return found

    def of(self, owner: str) -> list[StoredFile]:
        """A caller's files, the newest first."""
        self.expire()
        return [own for own in reversed(self._files.values()) if own.owner == owner]

    def delete(self, file: StoredFile) -> None:
        """Forget a file."""
        self._files.pop(file.id, None)
        self.path(file).unlink(missing_ok=True)

    def expire(self) -> None:
        """Forget files whose time is over."""
        now = time.time()
        for file in [own for own in self._files.values() if own.expires_at <= now]:
            self.delete(file)


def _full(message: str) -> ApiError:
    return ApiError(message, Kind(413, INVALID, "files_full"))


def _unwritten(error: OSError) -> ApiError:
    logger.error("a file of a batch cannot be written: %s", error)
    return ApiError("the server cannot write files now; its log says why", Kind(507, SERVER, "files_unwritable"))
