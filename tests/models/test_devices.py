"""A device is what torch has here, or an error that says why not; free memory is what every limit leaves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eft_engine import Engine, EngineConfig, MemberConfig
from eft_engine.errors import InvalidOptionError, LoadOutOfMemoryError
from eft_engine.models import devices, memory_check
from eft_engine.models.devices import available_memory, check_device_map, devices_of_map, resolve_device
from eft_engine.models.memory_check import check_memory
from eft_engine.models.planned_network import PlannedNetwork
from eft_engine.models.planning import plan_trio
from tests.toy import make_model, make_tokenizer

MIB = 2**20


def have_gpus(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A torch that was built for CUDA, on a machine with so many GPUs."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    make_model("llama").save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return str(path)


@pytest.mark.parametrize(
    ("device", "number", "words"),
    [
        ("gpu", 1, "device='gpu' names no device of torch"),
        ("cuda:x", 1, "names no device of torch"),
        ("cuda", 0, r"torch .* finds no GPU on this machine"),
        ("cuda:3", 1, "torch finds one, cuda:0"),
        ("cuda:3", 3, "torch finds 3 of them, the last is 'cuda:2'"),
        ("meta", 1, "it holds no numbers"),
        ("maia", 1, r"this torch \(.*\) computes on no maia"),
    ],
)
def test_device_that_is_not_here_is_refused_with_the_reason(
    device: str, number: int, words: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    have_gpus(monkeypatch, number)
    with pytest.raises(InvalidOptionError, match=words) as caught:
        Engine.load(folder, config=EngineConfig(device=device))
    assert (caught.value.option, caught.value.value) == ("device", device)
    with pytest.raises(InvalidOptionError, match=words.replace("device=", "device_map=")) as caught:
        Engine.load(MemberConfig(source=folder, device_map={"model": "cpu", "lm_head": device}))
    assert (caught.value.option, caught.value.value) == ("device_map", device)


def test_cuda_in_a_torch_without_it_is_told(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    for member in (MemberConfig(source=folder, device="cuda"), MemberConfig(source=folder, device_map={"": 0})):
        with pytest.raises(InvalidOptionError, match=r"base: device.* this torch \(.*\) was built without CUDA"):
            Engine.load(member)


def test_devices_that_are_here_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    have_gpus(monkeypatch, 2)
    assert [resolve_device(name, member="base") for name in ("auto", "cuda:1", "cpu")] == ["cuda", "cuda:1", "cpu"]
    check_device_map({"a": 1, "b": "cuda", "c": "disk", "d": "cpu"}, member="base")
    check_device_map("balanced", member="base")
    assert devices_of_map("auto") == ("cuda:0", "cuda:1", "cpu")
    assert devices_of_map("cuda") == ("cuda:0",)
    assert devices_of_map({"a": 1, "b": "cuda", "c": "cpu", "d": "cpu"}) == ("cuda:1", "cuda:0", "cpu")
    assert devices_of_map({"a": 1, "b": "disk"}) is None
    have_gpus(monkeypatch, 0)
    assert resolve_device("auto", member="base") == "cpu"
    assert devices_of_map("auto") == ("cpu",)


def groups(root: Path, monkeypatch: pytest.MonkeyPatch, lines: str, files: Mapping[str, str]) -> None:
    """A system of control groups under `root`, and the lines that tell this process its own."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, encoding="utf-8")
    (root / "own").write_text(lines, encoding="utf-8")
    monkeypatch.setattr(devices, "CGROUPS", root)
    monkeypatch.setattr(devices, "OWN_GROUPS", root / "own")
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=900 * MIB))


STATISTICS = f"anon {50 * MIB}\ninactive_file {20 * MIB}\nactive_file {10 * MIB}\n"


def test_limit_of_a_service_or_of_a_group_around_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = {"memory.max": f"{500 * MIB}", "memory.current": f"{100 * MIB}", "memory.stat": STATISTICS}
    outer = {"memory.max": f"{300 * MIB}", "memory.current": f"{200 * MIB}", "memory.stat": STATISTICS}
    files = {f"a/b/{name}": content for name, content in inner.items()}
    groups(tmp_path, monkeypatch, "0::/a/b\n", files)
    assert available_memory("cpu") == (500 - 100 + 30) * MIB  # what was read of files can be given up
    groups(tmp_path, monkeypatch, "0::/a/b\n", {f"a/{name}": content for name, content in outer.items()})
    assert available_memory("cpu") == (300 - 200 + 30) * MIB
    groups(tmp_path, monkeypatch, "0::/a/b\n", {"a/memory.max": "max", "a/b/memory.max": "max"})
    assert available_memory("cpu") == 900 * MIB


def test_limit_of_a_container_is_found_where_the_path_is_the_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"memory.max": f"{400 * MIB}\n", "memory.current": f"{100 * MIB}\n", "memory.stat": STATISTICS}
    groups(tmp_path, monkeypatch, "0::/docker/0123\n", own)
    assert available_memory("cpu") == 330 * MIB


def test_limit_of_the_first_version_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {
        "memory.limit_in_bytes": f"{400 * MIB}",
        "memory.usage_in_bytes": f"{100 * MIB}",
        "memory.stat": "".join(f"total_{line}\n" for line in STATISTICS.splitlines()),
    }
    files = {f"memory/job/{name}": content for name, content in own.items()}
    groups(tmp_path, monkeypatch, "5:cpu,memory:/job\n1:cpuset:/\n0::/\n", files)
    assert available_memory("cpu") == 330 * MIB


def test_system_without_control_groups_has_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups(tmp_path, monkeypatch, "", {})
    (tmp_path / "own").unlink()
    assert available_memory("cpu") == 900 * MIB


def planned(folder: str, **options: Any) -> PlannedNetwork:
    return plan_trio(MemberConfig(source=folder, **options), {}, EngineConfig(device="cpu")).networks["base"]


def free(monkeypatch: pytest.MonkeyPatch, **num_bytes: int) -> None:
    monkeypatch.setattr(memory_check, "available_memory", lambda device: num_bytes[device.replace(":", "_")])


def test_spread_weights_count_against_all_their_devices(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    have_gpus(monkeypatch, 2)
    spread = planned(folder, device_map="auto")
    size = spread.parameter_bytes
    free(monkeypatch, cuda_0=size // 2, cuda_1=size // 4, cpu=size - size // 2 - size // 4)
    check_memory([spread])
    free(monkeypatch, cuda_0=size // 2, cuda_1=size // 4, cpu=size // 8)
    with pytest.raises(LoadOutOfMemoryError, match="on cuda:0, cuda:1, cpu together") as caught:
        check_memory([spread])
    assert (caught.value.needed_bytes, caught.value.device) == (size, "cuda:0, cuda:1, cpu")
    check_memory([planned(folder, device_map={"": "cuda:0", "lm_head": "disk"})])
    free(monkeypatch, cpu=size)
    check_memory([planned(folder, device_map={})])  # no map


def test_spread_weights_share_with_those_that_have_their_place(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    have_gpus(monkeypatch, 1)
    spread, placed = planned(folder, device_map="auto"), planned(folder, device="cuda")
    size = spread.parameter_bytes
    free(monkeypatch, cuda_0=size, cpu=size)
    check_memory([spread, placed])
    free(monkeypatch, cuda_0=size, cpu=size - 1)
    with pytest.raises(LoadOutOfMemoryError) as caught:
        check_memory([spread, placed])
    assert caught.value.needed_bytes == 2 * size
    free(monkeypatch, cuda_0=size - 1, cpu=10 * size)
    with pytest.raises(LoadOutOfMemoryError, match=r"on cuda:0 and .*quantization_config, a device_map, or smaller"):
        check_memory([spread, placed])


def test_adapters_are_counted_with_their_network(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = planned(folder)
    free(monkeypatch, cpu=network.parameter_bytes + 100)
    check_memory([network], {network.name: 100, "another": 5})
    with pytest.raises(LoadOutOfMemoryError):
        check_memory([network], {network.name: 101})


def test_advice_fits_what_takes_the_memory(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, cpu=0)
    for options, words in (
        ({"dtype": "float32"}, "use a smaller dtype"),
        ({"dtype": "bfloat16"}, "use a quantization_config"),
        ({"dtype": "bfloat16", "device_map": "cpu"}, "use a quantization_config, or smaller models"),
    ):
        with pytest.raises(LoadOutOfMemoryError, match=words):
            check_memory([planned(folder, **options)])
