"""One process that loads a trio, answers questions, and says when it was ready and what memory it took.

    python -m benchmarks.peers.ready hand '{"base": ..., "reference": ..., "adapter": ..., "prompts": ..., "threads": 2}'

`hand` imports nothing but llama-cpp-python and numpy; `llama.cpp` and `torch` are the engine on that runtime. The first token is
that of the first prompt, which is read for it. `prompts` is a JSON file of `[question, token ids]`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

Answer = Callable[[str, Sequence[int], int], object]
"""Question, its token ids, number of tokens."""


def by_hand(base: str, reference: str, adapter: str, threads: int) -> Answer:
    """The hand-written loop; `adapter` is a GGUF file."""
    from benchmarks.peers.llama_cpp_trio import LlamaCppTrio

    trio = LlamaCppTrio(Path(base), Path(reference), Path(adapter), threads=threads)
    return lambda _, ids, count: list(islice(trio.composed(ids, weight=1.0), count))


def by_engine(runtime: str, base: str, reference: str, adapter: str, threads: int) -> Answer:
    """The engine; `adapter` is a folder."""
    import torch

    from eft_engine import Engine, EngineConfig, SamplingParams, TunedPair
    from eft_engine.config import LlamaCppOptions

    torch.set_num_threads(threads)
    config = EngineConfig.model_validate({"runtime": runtime, "llama_cpp": LlamaCppOptions(n_threads=threads)})
    engine = Engine.load(base, pairs={"form": TunedPair(adapter, reference)}, config=config)

    def answer(question: str, _: Sequence[int], count: int) -> None:
        sampling = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
        engine.generate([{"role": "user", "content": question}], sampling=sampling)

    return answer


def megabytes(field: str) -> float:
    """A line of this process's status, VmHWM or RssAnon."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) / 1024


def main(kind: str, options: dict[str, Any]) -> None:
    """Load, answer, and print a JSON line; times are seconds since the epoch."""
    prompts, max_tokens = json.loads(Path(options.pop("prompts")).read_text()), options.pop("max_tokens")
    answer = by_hand(**options) if kind == "hand" else by_engine(kind, **options)
    loaded = time.time()
    question, ids = prompts[0]
    answer(question, ids, 1)
    first_token, private = time.time(), megabytes("RssAnon")
    for question, ids in prompts:
        answer(question, ids, max_tokens)
        private = max(private, megabytes("RssAnon"))
    peak = megabytes("VmHWM")
    sys.stdout.write(
        json.dumps({"loaded": loaded, "first_token": first_token, "peak_mb": peak, "private_mb": private}) + "\n"
    )


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
