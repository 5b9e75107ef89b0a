"""What the ranks of tests/engine/test_tensor_parallel.py run: every rank the same file, by torchrun or by the test.

    python -m tests.engine.tensor_parallel_ranks <scenario> <folder of saved models>

Rank 0 writes what it found to <folder>/<scenario>.json.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from eft_engine import Engine, EngineConfig, MemberConfig, SamplingParams, TunedPair
from eft_engine.errors import EFTError
from eft_engine.models import loading
from eft_engine.models.process_group import current_rank

GREEDY = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
SHARED = "A long beginning that several prompts have in common, so that it is read once and copied. "
PROMPTS = ["a", f"{SHARED}First?", "a prompt of some length", f"{SHARED}Second?", "xyz", f"{SHARED}First? And then?"]
WEIGHTS = [0.0, 1.0, {"chat": 0.5}, -0.5, 2.0, 1.0]
ROUNDS = {"gemma3": 1, "llama": 2}


def arguments(folder: Path, architecture: str, *, tensor_parallel: bool = True, **config: Any) -> dict[str, Any]:
    """Of `Engine.load` and `Engine.follow` alike."""
    member = MemberConfig(source=str(folder / f"{architecture}-base"), tensor_parallel=tensor_parallel)
    pair = TunedPair(str(folder / f"{architecture}-tuned"), str(folder / f"{architecture}-reference"))
    return {
        "base": member,
        "pairs": {"chat": pair},
        "config": EngineConfig(show_progress=False, **config),
    }


def workload(engine: Engine, *, rounds: int) -> list[list[int]]:
    """Token ids of a batch with joins, shared beginnings and taken-back drafts, and of follow-up turns; then of the same over slots
    that were kept warm.
    """
    found: list[list[int]] = []
    for _ in range(rounds):
        late: list[list[int]] = []
        stream = engine.stream(PROMPTS[1], sampling=GREEDY, reward_weights=1.0)
        next(stream)  # the others join while this one runs
        joining = threading.Thread(
            target=lambda late=late: late.extend(  # type: ignore[misc]
                list(out.token_ids) for out in engine.generate(PROMPTS, sampling=GREEDY, reward_weights=WEIGHTS)
            )
        )
        joining.start()
        *_, last = stream
        joining.join()
        assert last.output is not None
        found += [list(last.output.token_ids), *late]
        found.append(list(engine.generate(f"{PROMPTS[1]}{last.output.text} More?", sampling=GREEDY).token_ids))
        scores = engine.score("a prompt", " and an answer")
        assert all(token.base <= 0.0 for token in scores.tokens)
    return found


def same_text(folder: Path) -> Any:
    """Engines one after the other in the same processes; networks that cannot be split or loaded change nothing about the next."""
    found: dict[str, Any] = {}
    for architecture, rounds in ROUNDS.items():
        own = arguments(folder, architecture, max_num_seqs=4, max_warm_prefixes=2)
        if not Engine.follow(**own):
            with Engine.load(**own) as engine:
                found[architecture] = workload(engine, rounds=rounds)
                cache = engine._trio.networks[0].kv_cache
                found[f"{architecture} heads"] = cache.layers[0].keys.shape[1]
        found["uneven"] = _error_of(arguments(folder, "uneven"))
        found["no memory"] = _without_memory(arguments(folder, architecture))
        (folder / f"rank{current_rank()}.json").write_text(json.dumps(found), encoding="utf-8")
    return found


def _error_of(own: dict[str, Any]) -> list[str] | None:
    try:
        Engine.follow(**own) or Engine.load(**own).close()
    except EFTError as error:
        return [type(error).__name__, str(error)]
    return None


def _without_memory(own: dict[str, Any]) -> list[str] | None:
    """Rank 0 finds no memory for its part; rank 1 does not wait for it."""
    if current_rank() > 0:
        return _error_of(own)
    load = loading.AutoModelForCausalLM.from_pretrained
    loading.AutoModelForCausalLM.from_pretrained = _no_memory
    try:
        return _error_of(own)
    finally:
        loading.AutoModelForCausalLM.from_pretrained = load


def _no_memory(*_: Any, **__: Any) -> None:
    raise MemoryError("made to fail")


def lost_follower(folder: Path) -> Any:
    """Rank 1 goes away between two requests, and the test sees to it that nobody ends rank 0."""
    own = arguments(folder, "llama")
    if current_rank() == 1:
        threading.Thread(target=_exit_once_there, args=[folder / "go"], daemon=True).start()
    if Engine.follow(**own):
        return None
    found: dict[str, Any] = {}
    with Engine.load(**own) as engine:
        found["before"] = len(engine.generate("abc", sampling=GREEDY).token_ids)
        (folder / "go").touch()
        while (folder / "go").exists():
            time.sleep(0.05)
        for attempt in ("first", "second"):
            try:
                engine.generate("abc", sampling=GREEDY)
            except EFTError as error:
                found[attempt] = [type(error).__name__, type(error.__cause__).__name__]
    return found


def _exit_once_there(path: Path) -> None:
    while not path.exists():
        time.sleep(0.05)
    path.unlink()
    os._exit(3)


def failing_leader(folder: Path) -> Any:
    """A pass fails on rank 0 when rank 1 has begun it. Rank 1 must end with an error, although rank 0 stays."""
    own = arguments(folder, "llama", tensor_parallel_timeout_s=10.0)
    try:
        if Engine.follow(**own):
            return None
    except EFTError as error:
        (folder / "follower.json").write_text(json.dumps([type(error).__name__, str(error)]), encoding="utf-8")
        sys.exit(4)
    with Engine.load(**own) as engine:
        network = engine._trio.networks[0]
        network.model.register_forward_pre_hook(_fail)
        found = {}
        try:
            engine.generate("abc", sampling=GREEDY)
        except EFTError as error:
            found["error"] = [type(error).__name__, type(error.__cause__).__name__, str(error)]
        while not (folder / "follower.json").exists():
            time.sleep(0.05)
    return found


def _fail(*_: Any) -> None:
    raise ArithmeticError("made to fail")


SCENARIOS: dict[str, Callable[[Path], Any]] = {
    scenario.__name__: scenario for scenario in (same_text, lost_follower, failing_leader)
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.getLogger("eft_engine").setLevel(logging.CRITICAL)
    name, where = sys.argv[1], Path(sys.argv[2])
    result = SCENARIOS[name](where)
    if current_rank() == 0:
        (where / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")
