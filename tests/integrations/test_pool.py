"""The pool: one backend for one specification, until somebody closes it."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from eft_engine import Engine, TunedPair, errors
from eft_integrations.backends import EngineBackend, RemoteBackend, backend_of, remote_backend, shared_backend
from eft_integrations.backends.pool import Pool
from eft_integrations.chat.request import ChatRequest
from eft_integrations.langchain import EFTChatModel
from tests.toy import ToyTrio

TEXT = ChatRequest(prompt="abc", sampling={"temperature": 0.0, "max_tokens": 4})


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory, toy_trio: ToyTrio) -> dict[str, str]:
    """A trio in folders."""
    folders = {name: tmp_path_factory.mktemp("pool") / name for name in ("base", "tuned", "reference")}
    for name, folder in folders.items():
        getattr(toy_trio, name).save_pretrained(folder)
        toy_trio.tokenizer.save_pretrained(folder)
    return {name: str(folder) for name, folder in folders.items()}


def leave(engine: Engine) -> None:
    with engine:
        pass


@pytest.mark.parametrize(
    "close",
    [lambda backend: backend.engine.close(), lambda backend: backend.close(), lambda backend: leave(backend.engine)],
    ids=["engine", "backend", "with block"],
)
def test_backend_that_anybody_closed_is_not_handed_out_again(
    close: Callable[[EngineBackend], None], names: dict[str, str]
) -> None:
    first = shared_backend(**names)
    assert shared_backend(**names) is first
    answer = first.chat(TEXT).content
    assert shared_backend(**names) is first
    close(first)
    assert first.is_closed
    with pytest.raises(errors.EngineClosedError):
        first.chat(TEXT)
    fresh = shared_backend(**names)
    assert fresh is not first
    assert EFTChatModel(**names)._backend is fresh
    assert fresh.chat(TEXT).content == answer
    fresh.close()


def test_backend_that_was_closed_before_it_was_loaded_loads_nothing() -> None:
    backend = shared_backend(base="nowhere", tuned="t", reference="r")
    backend.close()
    with pytest.raises(errors.EngineClosedError, match="nowhere was closed"):
        backend.chat(TEXT)
    assert shared_backend(base="nowhere", tuned="t", reference="r") is not backend


def test_same_specification_written_in_another_way_is_the_same_backend() -> None:
    first = shared_backend(base="a", tuned="t", reference="r")
    assert shared_backend(base="a", pairs={"tuned": ("t", "r")}) is first
    assert shared_backend(base="a", pairs={"tuned": TunedPair("t", "r")}, engine_config={}) is first
    assert shared_backend(base="a", pairs={"tuned": TunedPair("t", "r", 0.5)}) is not first
    assert shared_backend(base="a", tuned="t", reference="r", engine_config={"max_num_seqs": 2}) is not first


def test_engine_knows_that_it_is_closed(toy_trio: ToyTrio) -> None:
    engine = toy_trio.engine()
    backend = backend_of(engine)
    assert not engine.is_closed
    assert not backend.is_closed
    assert backend_of(engine) is backend
    engine.close()
    assert engine.is_closed
    assert backend.is_closed


def test_engine_is_not_kept_alive_by_the_pool(toy_trio: ToyTrio) -> None:
    engine = toy_trio.engine()
    assert backend_of(engine).is_loaded
    identity = backend_of(engine).identity
    gc.collect()
    assert backend_of(engine).identity == identity
    assert backend_of(engine).chat(TEXT).content
    engine.close()
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None


def test_remote_backend_that_was_closed_is_not_handed_out_again() -> None:
    def backend() -> RemoteBackend:
        return remote_backend("http://127.0.0.1:9/v1", served_name="pool", api_key="k")

    first = backend()
    assert backend() is first
    assert remote_backend("http://127.0.0.1:9/v1", served_name="pool") is not first
    first.close()
    assert backend() is not first
    with pytest.raises(errors.EngineClosedError, match="was closed"):
        first.chat(TEXT)
    assert backend() is backend()


def test_pool_lets_go_of_what_is_closed() -> None:
    class Thing:
        is_closed = False

    pool: Pool[str, Thing] = Pool()
    first = pool.get("a", Thing)
    first.is_closed = True
    pool.get("b", Thing)
    assert first not in pool._backends.values()


def test_backends_are_imported_without_torch_and_servers_without_httpx() -> None:
    code = (
        "import sys\nfrom eft_integrations.backends import EngineBackend, ScriptedBackend, backend_of, shared_backend\n"
        "print(sorted({'torch', 'transformers', 'httpx', 'langchain_core'} & set(sys.modules)))\n"
        "from eft_integrations.backends import remote_backend\n"
        "print(sorted({'torch', 'transformers', 'httpx', 'langchain_core'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert ran.stdout == "[]\n['httpx']\n"
