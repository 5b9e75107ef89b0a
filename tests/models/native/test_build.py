"""The kernels' library: compiled once, kept safely, and done without where it cannot be."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eft_engine.models.native import build, library
from eft_engine.models.remembered import recall, remember
from tests.toy import make_trio


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder of its own, and nothing compiled yet."""
    monkeypatch.setenv("EFT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", ("-O0", "-fopenmp", "-shared", "-fPIC"))  # compiles in no time
    build.compiled.cache_clear()
    yield tmp_path
    build.compiled.cache_clear()


def test_is_compiled_once_and_found_again(fresh: Path) -> None:
    library = build.compiled()
    assert library is not None
    assert library.parent == fresh / "kernels"
    assert library.parent.stat().st_mode & 0o777 == 0o700
    made = library.stat().st_mtime_ns
    build.compiled.cache_clear()
    assert build.compiled() == library
    assert library.stat().st_mtime_ns == made
    assert list(library.parent.iterdir()) == [library]


@pytest.mark.parametrize("problem", ["no compiler", "a compiler that fails", "switched off", "others may write"])
def test_without_kernels_torch_computes(
    problem: str, fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO, logger="eft_engine")
    if problem == "no compiler":
        monkeypatch.setattr(build, "COMPILERS", ())
        monkeypatch.delenv("CC", raising=False)
    elif problem == "a compiler that fails":
        broken = tmp_path / "broken-cc"
        broken.write_text("#!/bin/sh\necho 'no such thing' >&2\nexit 1\n")
        broken.chmod(0o755)
        monkeypatch.setenv("CC", str(broken))
    elif problem == "switched off":
        monkeypatch.setenv("EFT_NATIVE", "0")
    else:
        (fresh / "kernels").mkdir()
        (fresh / "kernels").chmod(0o777)
    assert build.compiled() is None
    assert problem == "switched off" or "computed by torch" in caplog.text


def test_an_engine_without_kernels_answers(tmp_path: Path) -> None:
    program = (
        "from tests.toy import make_trio\n"
        "with make_trio('llama').engine() as engine:\n"
        "    assert not any(network.is_invariant for network in engine._trio.networks)\n"
        "    print(engine.generate('a prompt').token_ids)\n"
    )
    environment = os.environ | {"EFT_NATIVE": "0", "EFT_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).parents[3]
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environment, check=True, capture_output=True, text=True
    )
    assert found.stdout.startswith("(")
    assert make_trio("llama").tokenizer is not None


@pytest.mark.parametrize("faster", [True, False])
def test_kernels_compute_where_they_are_faster(faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eft_engine.models.native.network.kernels_are_faster", lambda dtype: faster)
    for config, expected in (
        ({}, faster),
        ({"cpu_kernels": True}, True),
        ({"deterministic": True}, True),
        ({"cpu_kernels": False}, False),
    ):
        with make_trio("llama").engine(**config) as engine:
            assert {network.is_invariant for network in engine._trio.networks} == {expected}, config


def test_what_was_measured_first_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFT_CACHE_DIR", str(tmp_path))
    assert recall("costs", "a network", 3) is None
    assert remember("costs", "a network", 3, value=[[1, 0.5]]) == [[1, 0.5]]
    assert remember("costs", "a network", 3, value=[[1, 0.7]]) == recall("costs", "a network", 3) == [[1, 0.5]]
    assert recall("costs", "another", 3) is None
    next((tmp_path / "costs").iterdir()).write_text("{")
    assert recall("costs", "a network", 3) is None


def test_what_cannot_be_kept_holds_for_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EFT_CACHE_DIR", str(tmp_path / "file"))
    assert remember("costs", "a network", value=[1]) == [1]
    assert "cannot be kept" in caplog.text


def test_a_library_that_cannot_be_loaded_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "kernels.so"
    broken.write_text("not a library")
    monkeypatch.setattr(library, "compiled", lambda: broken)
    assert library.kernels.__wrapped__() is None
    assert "EFT_CACHE_DIR" in caplog.text
