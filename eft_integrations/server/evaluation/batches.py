"""Batches: the requests of a file, answered behind those of people who wait, with the rights of whoever sent them.

A line goes through the same application as every other request; so keys, policies, bounds and logs hold for it too. Few of them are
on the way at once, and none is sent while answers wait for places.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from eft_integrations.json_types import Json, JsonObject
from eft_integrations.server.answers import new_id
from eft_integrations.server.errors import INVALID, RATE, ApiError, Kind, shortened
from eft_integrations.server.evaluation.batch_lines import BadLinesError, Line, read_lines
from eft_integrations.server.evaluation.batch_settings import BatchSettings
from eft_integrations.server.evaluation.files import FileStore, StoredFile

logger = logging.getLogger(__name__)

OVER = ("failed", "completed", "expired", "cancelled")
WAIT_S = 0.05
RETRY_S = 1.0
"""Until a line is sent again that found no room."""
MAX_TRIES = 100
"""So often a line is sent that finds no room."""


@dataclass
class Batch:
    """What is known of a batch; `times` are OpenAI's `..._at`."""

    id: str
    owner: str
    endpoint: str
    input_file_id: str
    status: str
    times: dict[str, int]
    metadata: dict[str, str] = field(default_factory=dict)
    total: int = 0
    completed: int = 0
    failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: list[JsonObject] = field(default_factory=list)

    def become(self, status: str) -> None:
        """Change its status, and remember when."""
        self.status = status
        self.times[f"{status}_at"] = int(time.time())

    @property
    def form(self) -> JsonObject:
        """As OpenAI writes it."""
        errors: Json = {"object": "list", "data": [*self.errors]} if self.errors else None
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": errors,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            **self.times,
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "metadata": {**self.metadata},
        }


@dataclass(frozen=True)
class Reply:
    """What became of a line's request."""

    status: int
    request_id: str
    body: Json


AskLine = Callable[[str, bytes, str], Awaitable[Reply]]
"""Sends a body to a path for the caller of this name.

Raises, when it is awaited:
    ApiError: the caller is known no more.
"""


class Batches:
    """All batches of a server. Belongs to one event loop.

    Args:
        num_at_once: requests of all of them that may be on the way.
        is_busy: whether answers wait for places.
    """

    def __init__(
        self, files: FileStore, settings: BatchSettings, *, num_at_once: int, is_busy: Callable[[], bool]
    ) -> None:
        self.files = files
        self.ask: AskLine | None = None
        self._settings = settings
        self._turn = asyncio.Semaphore(max(1, num_at_once))
        self._is_busy = is_busy
        self._batches: dict[str, Batch] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncGenerator[None]:
        """Find what an earlier server has left; what is unfinished when the block ends has failed. What was answered stays."""
        for known in self.files.load():
            batch = Batch(**known)
            self._batches[batch.id] = batch
            if batch.status not in OVER:  # that server was killed
                self._fail(
                    batch, "server_stopped", "the server stopped before the batch was finished; send the rest again"
                )
        try:
            yield
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            self._save()

    def create(self, owner: str, file: StoredFile, endpoint: str, metadata: Mapping[str, str]) -> Batch:
        """Begin a batch.

        Raises:
            ApiError: too many are unfinished (429).
        """
        self._forget(room_for=1)
        unfinished = [own for own in self._batches.values() if own.status not in OVER]
        if len(unfinished) >= self._settings.max_unfinished:
            raise ApiError(
                f"{len(unfinished)} batches are unfinished; wait for one", Kind(429, RATE, "too_many_batches")
            )
        now = int(time.time())
        times = {"created_at": now, "expires_at": now + int(self._settings.window_s)}
        batch = Batch(new_id("batch_"), owner, endpoint, file.id, "validating", times, {**metadata})
        self._batches[batch.id] = batch
        self._tasks[batch.id] = asyncio.create_task(self._run(batch, file))
        self._save()
        return batch

    def get(self, owner: str, batch_id: str) -> Batch:
        """A caller's own batch.

        Raises:
            ApiError: there is none (404).
        """
        found = self._batches.get(batch_id)
        if found is None or found.owner != owner:
            raise ApiError(
                f"there is no batch {shortened(batch_id)!r}", Kind(404, INVALID, "batch_not_found", "batch_id")
            )
        return found

    def of(self, owner: str) -> list[Batch]:
        """A caller's batches, the newest first."""
        self._forget()
        return [own for own in reversed(self._batches.values()) if own.owner == owner]

    def cancel(self, batch: Batch) -> None:
        """Send no more of its requests, and cut those on the way. One that is over stays as it is."""
        if batch.status not in (*OVER, "cancelling"):
            batch.become("cancelling")
            self._tasks[batch.id].cancel()

    def _forget(self, *, room_for: int = 0) -> None:
        """Of those that are over: old ones, and the oldest where there is no room for so many more."""
        limit = time.time() - self._settings.kept_s
        too_many = len(self._batches) + room_for - self._settings.max_batches
        for place, batch in enumerate([own for own in self._batches.values() if own.status in OVER]):
            if place < too_many or batch.times["created_at"] < limit:
                del self._batches[batch.id]

    def _save(self) -> None:
        try:
            self.files.save(dataclasses.asdict(own) for own in self._batches.values())
        except OSError:  # what is known here is still right; it would not be there after a restart
            logger.exception("the index of files and batches cannot be written")

    def _fail(self, batch: Batch, code: str, message: str) -> None:
        batch.errors.append({"code": code, "line": None, "message": message, "param": None})
        batch.become("failed")

    async def _run(self, batch: Batch, file: StoredFile) -> None:
        answered: set[str] = set()
        lines: list[Line] = []
        try:
            lines = await asyncio.to_thread(
                read_lines, self.files.path(file), batch.endpoint, max_lines=self._settings.max_lines
            )
            batch.total = len(lines)
            batch.become("in_progress")
            self._save()
            async with asyncio.timeout(self._settings.window_s), asyncio.TaskGroup() as group:
                for line in lines:
                    await self._turn.acquire()
                    self._begin(group, batch, line, answered)
            batch.become("finalizing")
            batch.become("completed")
        except BadLinesError as error:
            batch.errors += error.findings
            batch.become("failed")
        except TimeoutError:
            self._leave(batch, lines, answered, "expired", "the batch took longer than it may")
        except asyncio.CancelledError:
            if batch.status == "cancelling":
                self._leave(batch, lines, answered, "cancelled", "the batch was cancelled before this was answered")
            else:
                self._fail(
                    batch, "server_stopped", "the server stopped before the batch was finished; send the rest again"
                )
        except ExceptionGroup as group_error:
            first = group_error.exceptions[0]
            if not isinstance(first, ApiError):
                logger.error("batch %s failed", batch.id, exc_info=first)
            self._fail(
                batch,
                "batch_failed",
                str(first) if isinstance(first, ApiError) else "the server failed; its log says why",
            )
        except OSError:
            logger.exception("the file of batch %s cannot be read", batch.id)
            self._fail(batch, "file_lost", "the server cannot read the input file any more")
        self._tasks.pop(batch.id, None)
        self._save()

    def _leave(self, batch: Batch, lines: Sequence[Line], answered: Set[str], status: str, reason: str) -> None:
        """End it before all lines are answered: each of the others gets an error, as OpenAI does it."""
        left = [line for line in lines if line.custom_id not in answered]
        error: JsonObject = {"code": f"batch_{status}", "message": reason}
        written = [_written(line, None, error) for line in left]
        batch.failed += len(left)
        try:
            if written:
                batch.error_file_id = self._write(batch, batch.error_file_id, b"".join(written), "errors")
        except ApiError as full:
            batch.errors.append({"code": "files_full", "line": None, "message": str(full), "param": None})
        batch.become(status)

    def _begin(self, group: asyncio.TaskGroup, batch: Batch, line: Line, answered: set[str]) -> None:
        """Answer a line whose turn it is; the turn is given back also where the task is cancelled before it begins."""
        answering = self._answer(batch, line, answered)
        try:
            task = group.create_task(answering)
        except RuntimeError:  # another line has just ended the batch
            answering.close()
            self._turn.release()
            return
        task.add_done_callback(lambda _: self._turn.release())

    async def _answer(self, batch: Batch, line: Line, answered: set[str]) -> None:
        reply = await self._asked(batch, line)
        response: JsonObject = {"status_code": reply.status, "request_id": reply.request_id, "body": reply.body}
        data = _written(line, response, None)
        answered.add(line.custom_id)
        if reply.status < 400:
            batch.completed += 1
            batch.output_file_id = self._write(batch, batch.output_file_id, data, "output")
        else:
            batch.failed += 1
            batch.error_file_id = self._write(batch, batch.error_file_id, data, "errors")

    async def _asked(self, batch: Batch, line: Line) -> Reply:
        assert self.ask is not None, "the application has told how requests are sent"
        for _ in range(MAX_TRIES):
            while self._is_busy():
                await asyncio.sleep(WAIT_S)
            reply = await self.ask(batch.endpoint, line.body, batch.owner)
            if reply.status != 429:
                break
            await asyncio.sleep(RETRY_S)
        return reply

    def _write(self, batch: Batch, file_id: str | None, data: bytes, kind: str) -> str:
        if file_id is not None:
            return self.files.append(self.files.get(batch.owner, file_id), data).id
        name = f"{batch.id}_{kind}.jsonl"
        return self.files.add(batch.owner, data, filename=name, purpose="batch_output").id


def _written(line: Line, response: JsonObject | None, error: JsonObject | None) -> bytes:
    """A line of a batch's results."""
    form = {"id": new_id("batch_req_"), "custom_id": line.custom_id, "response": response, "error": error}
    return json.dumps(form, ensure_ascii=False).encode() + b"\n"
