"""Files and batches, through OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch
from pydantic import SecretStr

from eft_engine import errors
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.request import ChatDelta, ChatRequest
from eft_integrations.server.app import app_of
from eft_integrations.server.callers.callers import KeySettings
from eft_integrations.server.compositions import Composition
from eft_integrations.server.errors import ApiError
from eft_integrations.server.evaluation import batches as batches_module
from eft_integrations.server.evaluation.batch_lines import BadLinesError, read_lines
from eft_integrations.server.evaluation.batch_settings import BatchSettings
from eft_integrations.server.evaluation.batches import OVER, Batches, Reply
from eft_integrations.server.evaluation.files import INDEX, FileStore
from eft_integrations.server.service import Service
from eft_integrations.server.settings import ServerSettings
from tests.integrations.server.logged import logging_to
from tests.integrations.server.serving import in_process, running

PATH: Any = "/v1/chat/completions"
KEYS = [KeySettings(name=name, key=SecretStr(f"key-of-{name}")) for name in ("anna", "bert")]


def lines_of(*bodies: dict[str, Any], url: str = PATH) -> bytes:
    """A file of requests, numbered from 0."""
    made = [{"custom_id": str(index), "method": "POST", "url": url, "body": body} for index, body in enumerate(bodies)]
    return "\n".join(json.dumps(line) for line in made).encode()


def asks(text: str, **fields: Any) -> dict[str, Any]:
    """A body."""
    return {"model": "m", "messages": [{"role": "user", "content": text}], **fields}


class Slow(ScriptedBackend):
    """Takes a while before each answer."""

    async def astream(self, request: ChatRequest) -> AsyncIterator[ChatDelta]:
        await asyncio.sleep(0.5)
        async for delta in super().astream(request):
            yield delta


class Silent(ScriptedBackend):
    """Never answers."""

    async def astream(self, request: ChatRequest) -> AsyncIterator[ChatDelta]:
        await asyncio.Event().wait()
        yield ChatDelta()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the server keeps files."""
    return tmp_path / "batches"


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    """A server with two keys that keeps files."""
    settings = ServerSettings(keys=KEYS, batches=BatchSettings(folder=folder, max_bytes=20_000))
    with running({"m": ScriptedBackend(["ok"] * 50)}, settings) as own:
        yield own


def client_of(url: str, name: str) -> openai.OpenAI:
    """A client with somebody's key."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key=f"key-of-{name}", max_retries=0)


def ended(client: openai.OpenAI, batch_id: str) -> Batch:
    """A batch that is over."""
    for _ in range(600):
        batch = client.batches.retrieve(batch_id)
        if batch.status in ("completed", "failed", "cancelled", "expired"):
            return batch
        time.sleep(0.02)
    raise AssertionError("the batch did not end")


def lines_in(client: openai.OpenAI, file_id: str | None) -> list[Any]:
    """What a file of results holds."""
    assert file_id is not None
    return [json.loads(line) for line in client.files.content(file_id).text.split("\n") if line]


def begun(client: openai.OpenAI, *bodies: dict[str, Any], path: Any = PATH) -> str:
    """The id of a batch that was just sent."""
    file = client.files.create(file=("in.jsonl", lines_of(*bodies, url=path)), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=path, completion_window="24h").id


def test_a_batch_is_answered_and_bad_requests_stand_alone(url: str) -> None:
    client = client_of(url, "anna")
    data = lines_of(asks("a"), asks("b", n=0), asks("c ä\u2028"))
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    assert (file.bytes, client.files.content(file.id).content) == (len(data), data)
    batch = client.batches.create(
        input_file_id=file.id, endpoint=PATH, completion_window="24h", metadata={"run": "one"}
    )
    done = ended(client, batch.id)
    assert (done.status, done.metadata) == ("completed", {"run": "one"})
    assert done.request_counts is not None
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (3, 2, 1)
    assert done.output_file_id is not None
    assert done.error_file_id is not None
    answers = [json.loads(line) for line in client.files.content(done.output_file_id).text.split("\n") if line]
    assert {own["custom_id"] for own in answers} == {"0", "2"}
    assert answers[0]["response"]["body"]["choices"][0]["message"]["content"] == "ok"
    refused = json.loads(client.files.content(done.error_file_id).text)
    assert (refused["custom_id"], refused["response"]["status_code"]) == ("1", 400)
    assert [own.id for own in client.batches.list()] == [batch.id]
    assert {own.id for own in client.files.list()} == {file.id, done.output_file_id, done.error_file_id}


def test_files_and_batches_are_their_callers_own(url: str) -> None:
    anna, bert = client_of(url, "anna"), client_of(url, "bert")
    file = anna.files.create(file=("in.jsonl", lines_of(asks("a"))), purpose="batch")
    batch = anna.batches.create(input_file_id=file.id, endpoint=PATH, completion_window="24h")
    for ask in (
        lambda: bert.files.retrieve(file.id),
        lambda: bert.files.content(file.id),
        lambda: bert.files.delete(file.id),
        lambda: bert.batches.retrieve(batch.id),
        lambda: bert.batches.cancel(batch.id),
        lambda: bert.batches.create(input_file_id=file.id, endpoint=PATH, completion_window="24h"),
    ):
        with pytest.raises(openai.NotFoundError):
            ask()
    assert (list(bert.files.list()), list(bert.batches.list())) == ([], [])
    ended(anna, batch.id)
    assert anna.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        anna.files.retrieve(file.id)


def test_a_file_that_is_no_batch_fails_with_its_lines(url: str) -> None:
    client = client_of(url, "anna")
    file = client.files.create(file=("in.jsonl", lines_of(asks("a"), url="/v1/score") + b"\nnot JSON"), purpose="batch")
    batch = ended(client, client.batches.create(input_file_id=file.id, endpoint=PATH, completion_window="24h").id)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(own.line, own.code, own.param) for own in batch.errors.data] == [
        (1, "invalid_url", "url"),
        (2, "invalid_json_line", None),
    ]


def test_what_is_no_file_or_too_much_is_refused(url: str) -> None:
    head = {"Authorization": "Bearer key-of-anna"}
    form = {"file": ("a", b"{}")}
    with httpx.Client(base_url=url, headers=head) as client:
        assert client.post("/v1/files", content=b"{}").status_code == 400
        assert client.post("/v1/files", files=form).status_code == 400
        assert client.post("/v1/files", files=form, data={"purpose": "vision"}).status_code == 400
        large = client.post("/v1/files", files={"file": ("a", b"x" * 30_000)}, data={"purpose": "batch"})
        assert (large.status_code, large.json()["error"]["code"]) == (413, "files_full")
        wrong = client.post("/v1/batches", json={"input_file_id": "file-none", "endpoint": "/v1/embeddings"})
        assert wrong.status_code == 400


def test_a_cancelled_batch_sends_no_more_and_a_stopped_server_says_so(folder: Path) -> None:
    settings = ServerSettings(batches=BatchSettings(folder=folder, max_running=1))
    slow = Slow(["word"] * 9)
    with running({"m": slow}, settings) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        file = client.files.create(file=("in.jsonl", lines_of(*[asks("a")] * 4)), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint=PATH, completion_window="24h")
        assert client.batches.cancel(batch.id).status == "cancelling"
        cancelled = ended(client, batch.id)
        assert cancelled.status == "cancelled"
        counts = cancelled.request_counts
        assert counts is not None
        assert (counts.total, counts.completed + counts.failed) == (4, 4)
        assert {own["error"]["code"] for own in lines_in(client, cancelled.error_file_id)} == {"batch_cancelled"}
        left = client.batches.create(input_file_id=file.id, endpoint=PATH, completion_window="24h")
        assert len(slow.requests) <= 2
    with running({"m": slow}, settings) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        again = client.batches.retrieve(left.id)
        assert again.status == "failed"
        assert "server stopped" in str(again.errors)
        assert client.batches.retrieve(batch.id).status == "cancelled"
        assert client.files.retrieve(file.id).filename == "in.jsonl"


async def test_a_line_that_is_cut_with_its_batch_is_not_told_as_cut_by_the_server(folder: Path) -> None:
    settings = ServerSettings(batches=BatchSettings(folder=folder))
    with logging_to() as lines:
        async with in_process({"m": Silent([])}, settings) as client:
            upload = {"file": ("in.jsonl", lines_of(asks("a")))}
            file = (await client.post("/v1/files", files=upload, data={"purpose": "batch"})).json()
            asked = {"input_file_id": file["id"], "endpoint": PATH}
            batch = (await client.post("/v1/batches", json=asked)).json()
            while "eft_http_requests_in_flight 2.0" not in (await client.get("/metrics")).text:
                await asyncio.sleep(0.01)  # until the line is on its way, beside who asks
            await client.post(f"/v1/batches/{batch['id']}/cancel")
            while not (cut := [own for own in lines.of(".access") if own["path"] == PATH]):
                await asyncio.sleep(0.01)
    assert [(own["status"], own["code"]) for own in cut] == [(499, "client_left")]
    assert "the server stopped" not in lines.getvalue()


async def test_without_a_folder_there_are_no_files() -> None:
    async with in_process({"m": ScriptedBackend([])}) as client:
        assert (await client.get("/v1/files")).status_code == 404
        assert (await client.get("/v1/batches")).status_code == 404


def test_files_are_bounded_and_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(tmp_path, BatchSettings(max_files=2, max_bytes=2000, kept_s=1000))
    first = store.add("a", b"1", filename="f", purpose="batch")
    second = store.add("a", b"2", filename="f", purpose="batch")
    with pytest.raises(ApiError, match="2 files"):
        store.add("b", b"3", filename="f", purpose="batch")
    with pytest.raises(ApiError, match="bytes"):
        store.append(second, b"3" * 2000)
    store.delete(first)
    assert store.of("a") == [second]
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 1001)
    assert store.of("a") == []
    assert [path.name for path in tmp_path.iterdir() if path.name != "index.json"] == []


def test_a_killed_server_leaves_no_files_that_nobody_knows(tmp_path: Path) -> None:
    store = FileStore(tmp_path, BatchSettings())
    known = store.add("a", b"12", filename="f", purpose="batch")
    (tmp_path / "file-half").write_bytes(b"3")
    store.path(known).write_bytes(b"123456")  # it has grown since the index was written
    again = FileStore(tmp_path, BatchSettings())
    again.load()
    assert [(own.id, own.num_bytes) for own in again.of("a")] == [(known.id, 6)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [known.id, "index.json"]
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(errors.ConfigurationError, match="index"):
        FileStore(tmp_path, BatchSettings()).load()


def test_a_disk_that_takes_no_more_is_told(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "f", BatchSettings())
    kept = store.add("a", b"12", filename="f", purpose="batch")
    shutil.rmtree(tmp_path / "f")
    for write in (lambda: store.append(kept, b"3"), lambda: store.add("a", b"1", filename="f", purpose="batch")):
        with pytest.raises(ApiError) as caught:
            write()
        assert (caught.value.kind.status, caught.value.kind.code) == (507, "files_unwritable")
    assert store.of("a") == [kept]


def test_lines_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "in"
    good = {"custom_id": "good", "method": "POST", "url": PATH, "body": {}}
    other = {**good, "custom_id": "other"}
    bad = [
        ({**other, "custom_id": 1}, "invalid_custom_id"),
        ({**other, "custom_id": "x" * 513}, "invalid_custom_id"),
        ({**other, "method": "GET"}, "invalid_method"),
        ({**other, "url": "/v1/files"}, "invalid_url"),
        ({**other, "url": "http://elsewhere" + PATH}, "invalid_url"),
        ({**other, "body": "a"}, "invalid_body"),
        ({**other, "body": None}, "invalid_body"),
        ({**other, "body": {"stream": True}}, "invalid_body"),
        ({**other, "model": "m"}, "unknown_parameter"),
        (good, "duplicate_custom_id"),
        ([], "invalid_json_line"),
    ]
    lines = [json.dumps(line).encode() for line, _ in bad]
    path.write_bytes(b"\n".join([json.dumps(good).encode(), b"", *lines, b"{", b"\xff", b"[" * 9999]))
    with pytest.raises(BadLinesError) as caught:
        read_lines(path, PATH, max_lines=99)
    codes = [*(code for _, code in bad), *["invalid_json_line"] * 3]
    assert [(own["line"], own["code"]) for own in caught.value.findings] == [*enumerate(codes, start=3)]
    path.write_bytes(lines_of(*[asks("a")] * 3))
    with pytest.raises(BadLinesError) as many:
        read_lines(path, PATH, max_lines=2)
    assert [own["code"] for own in many.value.findings] == ["too_many_lines"]
    path.write_bytes(b"\n")
    with pytest.raises(BadLinesError):
        read_lines(path, PATH, max_lines=9)


async def over(batches: Batches, owner: str, file_id: str) -> Any:
    """A batch over a file, when it is over, in OpenAI's form."""
    batch = batches.create(owner, batches.files.get(owner, file_id), PATH, {})
    for _ in range(1000):
        if batch.status in batches_module.OVER:
            return batch.form
        await asyncio.sleep(0.005)
    raise AssertionError("the batch did not end")


def batches_in(folder: Path, *, is_busy: Any = lambda: False, **settings: Any) -> tuple[Batches, str]:
    """Batches without a server, and a file of three requests of Anna's."""
    own = BatchSettings(folder=folder, **settings)
    batches = Batches(FileStore(folder, own), own, num_at_once=2, is_busy=is_busy)
    file = batches.files.add("anna", lines_of(*[asks("a")] * 3), filename="f", purpose="batch")
    return batches, file.id


def results_in(batches: Batches, file_id: str) -> list[Any]:
    """Lines of a file of results."""
    return [
        json.loads(line) for line in batches.files.path(batches.files.get("anna", file_id)).read_text().splitlines()
    ]


async def test_lines_without_room_are_sent_again_and_wait_for_people(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "RETRY_S", 0.0)
    monkeypatch.setattr(batches_module, "WAIT_S", 0.0)
    busy = [True, True, False]
    batches, file_id = batches_in(folder, is_busy=lambda: busy.pop(0) if busy else False)
    statuses = [429, 429, 200, 429, 200, 200]

    async def ask(path: str, body: bytes, owner: str) -> Reply:
        assert not busy, "a line was sent while people waited"
        return Reply(statuses.pop(0), "r", {})

    batches.ask = ask
    form = await over(batches, "anna", file_id)
    assert (form["status"], form["request_counts"]) == ("completed", {"total": 3, "completed": 3, "failed": 0})
    assert statuses == []
    monkeypatch.setattr(batches_module, "MAX_TRIES", 2)
    statuses[:] = [429] * 6
    form = await over(batches, "anna", file_id)
    assert form["request_counts"] == {"total": 3, "completed": 0, "failed": 3}
    assert {own["response"]["status_code"] for own in results_in(batches, form["error_file_id"])} == {429}


async def test_a_batch_that_takes_too_long_expires_with_its_lines(folder: Path) -> None:
    batches, file_id = batches_in(folder, window_s=0.2)
    asked: list[bytes] = []

    async def ask(path: str, body: bytes, owner: str) -> Reply:
        asked.append(body)
        await asyncio.sleep(0 if len(asked) == 1 else 60)
        return Reply(200, "r", {})

    batches.ask = ask
    form = await over(batches, "anna", file_id)
    assert (form["status"], form["request_counts"]) == ("expired", {"total": 3, "completed": 1, "failed": 2})
    assert form["expired_at"] >= form["created_at"]
    assert len(results_in(batches, form["output_file_id"])) == 1
    left = results_in(batches, form["error_file_id"])
    assert [(own["custom_id"], own["response"], own["error"]["code"]) for own in left] == [
        ("1", None, "batch_expired"),
        ("2", None, "batch_expired"),
    ]


async def test_results_that_fill_the_disk_end_the_batch(folder: Path) -> None:
    batches, file_id = batches_in(folder, max_bytes=1024)

    async def ask(path: str, body: bytes, owner: str) -> Reply:
        return Reply(200, "r", "x" * 400)

    batches.ask = ask
    form = await over(batches, "anna", file_id)
    assert (form["status"], form["errors"]["data"][0]["code"]) == ("failed", "batch_failed")
    assert "1024" in form["errors"]["data"][0]["message"]
    assert sum(own.stat().st_size for own in folder.glob("file-*")) <= 1024
    with pytest.raises(ApiError, match="bytes"):
        batches.files.add("bert", b"x" * 1024, filename="f", purpose="batch")


async def test_batches_are_bounded_and_forgotten(folder: Path) -> None:
    batches, file_id = batches_in(folder, max_batches=2, max_unfinished=1)

    async def ask(path: str, body: bytes, owner: str) -> Reply:
        await asyncio.sleep(0.01)
        return Reply(200, "r", {})

    batches.ask = ask
    ids = [(await over(batches, "anna", file_id))["id"] for _ in range(3)]
    assert [own.id for own in batches.of("anna")] == ids[:0:-1]
    batches.create("anna", batches.files.get("anna", file_id), PATH, {})
    with pytest.raises(ApiError) as caught:
        batches.create("anna", batches.files.get("anna", file_id), PATH, {})
    assert caught.value.kind.code == "too_many_batches"
    async with batches.working():
        pass


async def test_a_key_that_is_removed_ends_its_batches(folder: Path) -> None:
    service = Service.of(
        [Composition.of("m", Slow(["ok"] * 9))],
        ServerSettings(keys=KEYS, batches=BatchSettings(folder=folder, max_running=1)),
    )
    transport = httpx.ASGITransport(app_of(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        anna, bert = ({"Authorization": f"Bearer key-of-{name}"} for name in ("anna", "bert"))
        upload = {"file": ("in.jsonl", lines_of(*[asks("a")] * 3))}
        file = (await client.post("/v1/files", files=upload, data={"purpose": "batch"}, headers=anna)).json()
        asked = {"input_file_id": file["id"], "endpoint": PATH}
        batch = (await client.post("/v1/batches", json=asked, headers=anna)).json()
        service.ring.replace(KEYS[1:])
        for path in (f"/v1/batches/{batch['id']}", f"/v1/files/{file['id']}"):
            assert (await client.get(path, headers=anna)).status_code == 401
            assert (await client.get(path, headers=bert)).status_code == 404
        while json.loads((folder / INDEX).read_text())["others"][0]["status"] not in OVER:
            await asyncio.sleep(0.01)  # until the next line's turn comes
        service.ring.replace(KEYS)
        form = (await client.get(f"/v1/batches/{batch['id']}", headers=anna)).json()
    assert form["status"] == "failed"
    assert "known no more" in form["errors"]["data"][0]["message"]


def test_lines_have_the_rights_of_their_key_and_are_counted_for_it(folder: Path) -> None:
    keys = [
        KeySettings.model_validate(
            {"name": "anna", "key": "key-of-anna", "weight_policy": (0.0, 0.5), "max_requests": 2}
        ),
        KeySettings.model_validate({"name": "bert", "key": "key-of-bert", "compositions": ["m"]}),
    ]
    served = {name: ScriptedBackend(otherwise="ok", weights={"chat": 0.5}) for name in ("m", "n")}
    with running(served, ServerSettings(keys=keys, batches=BatchSettings(folder=folder))) as url:
        anna, bert = client_of(url, "anna"), client_of(url, "bert")
        weighted = [asks("a", eft_reward_weights=weight) for weight in (0.5, 0.9)]
        done = ended(anna, begun(anna, *weighted, asks("a", n=3), {**asks("a"), "model": "m@chat=0.9"}))
        refused = {own["custom_id"]: own["response"] for own in lines_in(anna, done.error_file_id)}
        codes = {own: (told["status_code"], told["body"]["error"]["code"]) for own, told in refused.items()}
        assert codes["2"] == (400, "too_many_answers")
        assert {own: status for own, (status, _) in codes.items()} == {"1": 403, "2": 400, "3": 403}
        assert [own["custom_id"] for own in lines_in(anna, done.output_file_id)] == ["0"]
        other = ended(bert, begun(bert, {**asks("a"), "model": "n"}))
        assert lines_in(bert, other.error_file_id)[0]["response"]["status_code"] == 404
        metrics = httpx.get(f"{url}/metrics", headers={"Authorization": "Bearer key-of-anna"}).text
    assert 'eft_caller_answers_total{caller="anna",model="m",outcome="finished"} 1.0' in metrics


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "m", "prompt": "a"}),
        ("/v1/responses", {"model": "m", "input": "a"}),
        ("/v1/messages", {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}]}),
        ("/v1/score", {"model": "m", "prompt": "a", "continuations": ["b"]}),
    ],
)
def test_every_endpoint_takes_batches(url: str, path: str, body: dict[str, Any]) -> None:
    client = client_of(url, "anna")
    done = ended(client, begun(client, body, {**body, "model": "none"}, path=path))
    refused = {own["custom_id"]: own["response"]["status_code"] for own in lines_in(client, done.error_file_id)}
    if path == "/v1/score":  # a scripted backend has no probabilities
        assert refused == {"0": 400, "1": 404}
    else:
        assert refused == {"1": 404}
        assert "ok" in json.dumps(lines_in(client, done.output_file_id))
