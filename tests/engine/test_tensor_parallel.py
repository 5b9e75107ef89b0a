"""A base that is split over two processes: the text of one process, and an error instead of a process that waits for ever."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eft_engine import Engine, MemberConfig, SamplingParams, TunedPair
from eft_engine.errors import InvalidOptionError, UnsupportedAdapterError, UnsupportedModelError
from eft_engine.models import planning
from tests.engine.tensor_parallel_ranks import ROUNDS, arguments, workload
from tests.toy import make_model, make_tokenizer, save_adapter

pytestmark = pytest.mark.only_torch  # tensor-parallel networks are torch's

PATIENCE_S = 240.0
"""A hanging process fails the test instead of the whole run."""

RANKS = "tests.engine.tensor_parallel_ranks"
ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "tensor_parallel.md").read_text(encoding="utf-8")


def save(folder: Path, architecture: str, *, seed: int, hidden_size: int = 32) -> None:
    model = make_model(architecture, seed=seed, hidden_size=hidden_size, context_len=512)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved trio of each architecture; `uneven` has heads that two ranks cannot share."""
    root = tmp_path_factory.mktemp("models")
    for architecture in ROUNDS:
        save(root / f"{architecture}-base", architecture, seed=1, hidden_size=64)
        save(root / f"{architecture}-tuned", architecture, seed=2)
        save(root / f"{architecture}-reference", architecture, seed=3)
    for role in ("base", "tuned", "reference"):
        (root / f"uneven-{role}").symlink_to(root / f"llama-{role}")
    (root / "uneven-base").unlink()
    save(root / "uneven-base", "llama", seed=1)
    config = json.loads((root / "uneven-base" / "config.json").read_text(encoding="utf-8"))
    (root / "uneven-base" / "config.json").write_text(
        json.dumps({**config, "num_key_value_heads": 1}), encoding="utf-8"
    )
    return root


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


def run_two_processes(scenario: str, folder: Path) -> list[int]:
    """The scenario's exit codes by rank. Nobody ends one rank when the other fails, as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", RANKS, scenario, str(folder)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **group))
        for rank in range(2)
    ]
    try:
        return [process.wait(PATIENCE_S) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def same_text(folder: Path) -> dict[str, Any]:
    """What the ranks found that torchrun started."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", RANKS]
    subprocess.run([*command, "same_text", str(folder)], cwd=ROOT, env=environment(), check=True, timeout=PATIENCE_S)
    return {f"rank{rank}": json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(2)}


@pytest.mark.parametrize("architecture", ROUNDS)
def test_two_processes_write_the_text_of_one(architecture: str, folder: Path, same_text: dict[str, Any]) -> None:
    """Greedy, mixed weights, drafts, joins while another request runs, copied beginnings, follow-up turns."""
    with Engine.load(**arguments(folder, architecture, tensor_parallel=False, max_num_seqs=4)) as engine:
        expected = workload(engine, rounds=ROUNDS[architecture])
        num_heads = engine._trio.networks[0].model.config.num_key_value_heads
    assert same_text["rank0"][architecture] == expected
    assert same_text["rank0"][f"{architecture} heads"] == num_heads // 2


@pytest.mark.thorough
def test_the_program_of_the_documentation_runs_with_its_command(folder: Path) -> None:
    program, command = re.findall(r"```(?:python|bash)\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    names = {"org/large-base": "base", "org/small-tuned": "tuned", "org/small-base": "reference"}
    for name, role in names.items():
        program = program.replace(f'"{name}"', repr(str(folder / f"llama-{role}")))
    (folder / "program.py").write_text(program.replace('"bfloat16"', '"float32"'), encoding="utf-8")
    torchrun, *options = command.split()
    assert torchrun == "torchrun"
    run = [sys.executable, "-m", "torch.distributed.run", *options]
    done = subprocess.run(run, cwd=folder, env=environment(), check=True, timeout=PATIENCE_S, stdout=subprocess.PIPE)
    with Engine.load(**arguments(folder, "llama", tensor_parallel=False)) as engine:
        expected = engine.generate("Once upon a time", sampling=SamplingParams(temperature=0, max_tokens=64)).text
    assert done.stdout.decode() == f"{expected}\n"


def test_heads_that_cannot_be_shared_are_refused_on_every_rank(same_text: dict[str, Any]) -> None:
    for rank in ("rank0", "rank1"):
        kind, message = same_text[rank]["uneven"]
        assert kind == "UnsupportedModelError"
        assert "4 heads and 1 key/value heads cannot be dealt out to 2 ranks evenly" in message


def test_a_load_that_fails_on_one_rank_fails_on_all(same_text: dict[str, Any]) -> None:
    assert same_text["rank0"]["no memory"][0] == "LoadOutOfMemoryError"
    kind, message = same_text["rank1"]["no memory"]
    assert kind == "TensorParallelError"
    assert "rank 0 failed while the network was loaded: base: loading" in message


@pytest.mark.thorough
def test_a_lost_rank_fails_requests_instead_of_hanging(folder: Path) -> None:
    assert run_two_processes("lost_follower", folder) == [0, 3]
    found = json.loads((folder / "lost_follower.json").read_text(encoding="utf-8"))
    assert found == {
        "before": 10,
        "first": ["EngineStepError", "TensorParallelError"],
        "second": ["EngineStepError", "TensorParallelError"],
    }


@pytest.mark.thorough
def test_a_pass_that_fails_on_rank_0_ends_the_others(folder: Path) -> None:
    assert run_two_processes("failing_leader", folder) == [0, 4]
    kind, cause, message = json.loads((folder / "failing_leader.json").read_text(encoding="utf-8"))["error"]
    assert (kind, cause) == ("EngineStepError", "TensorParallelError")
    assert "made to fail" in message
    assert json.loads((folder / "follower.json").read_text(encoding="utf-8"))[0] == "TensorParallelError"


def test_one_process_alone_is_told_how_to_start(folder: Path) -> None:
    own = arguments(folder, "llama")
    assert not Engine.follow(**own)
    with pytest.raises(InvalidOptionError, match=r"torchrun --nproc-per-node <processes>"):
        Engine.load(**own)


def test_device_map_and_tensor_parallel_exclude_each_other() -> None:
    with pytest.raises(InvalidOptionError, match="excludes device_map"):
        MemberConfig(source="model", device_map="auto", tensor_parallel=True)


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun sets it; the plan is made before any process is talked to."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")


def test_a_network_without_a_plan_is_refused(folder: Path, two_ranks: None) -> None:
    save(folder / "gpt2-base", "gpt2", seed=1)
    with pytest.raises(UnsupportedModelError, match="no tensor-parallel plan for its architecture"):
        Engine.load(MemberConfig(source=str(folder / "gpt2-base"), tensor_parallel=True))


def test_an_adapter_on_a_split_network_is_refused(folder: Path, tmp_path: Path, two_ranks: None) -> None:
    adapter = save_adapter(make_model("llama", seed=3), tmp_path / "adapter", seed=4)
    reference = MemberConfig(source=str(folder / "llama-reference"), tensor_parallel=True)
    with pytest.raises(UnsupportedAdapterError, match="cannot sit on a tensor-parallel network"):
        Engine.load(str(folder / "llama-base"), pairs={"chat": TunedPair(str(adapter), reference)})


def test_a_split_network_and_a_whole_one_are_not_shared(folder: Path, two_ranks: None) -> None:
    source = str(folder / "llama-base")
    pair = TunedPair(source, source)
    plan = planning.plan_trio(
        MemberConfig(source=source, tensor_parallel=True), {"chat": pair}, arguments(folder, "llama")["config"]
    )
    assert [network.name for network in plan.sharded] == ["base"]
    assert plan.members["chat.tuned"].network == plan.members["chat.reference"].network == "chat.tuned"


def test_other_ranks_follow_instead_of_loading(folder: Path, monkeypatch: pytest.MonkeyPatch, two_ranks: None) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(InvalidOptionError, match=r"this process is rank 1, .*Engine\.follow"):
        Engine.load(**arguments(folder, "llama"))
    with pytest.raises(InvalidOptionError, match="no member is tensor-parallel"):
        Engine.follow(**arguments(folder, "llama", tensor_parallel=False))
