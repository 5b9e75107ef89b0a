"""The LlamaIndex suite on `EFTLLM` and on LlamaIndex' own class for local models, as a table for docs/llama_index.md.

python -m benchmarks.llama_index_suite

Both speak with the same networks, which know the suite's scenarios by heart: `HuggingFaceLLM` with the tuned model alone,
`EFTLLM` with the whole trio. Nothing is excused: what a class cannot do counts as failed. Modes of structured output that need
another package are left out for both.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from llama_index.core.llms import LLM
from llama_index.core.types import PydanticProgramMode
from llama_index.llms.huggingface import HuggingFaceLLM

from benchmarks.report import finish
from eft_integrations.llama_index import EFTLLM
from eft_integrations.testing.llama_index_suite import LlamaIndexLLMSuite
from tests.integrations.llama_index.trained import trained_engine, trained_trio

SUBJECTS = {
    "asking": "chat and completion, sync, async, streamed",
    "reporting": "token counts, events, log-probabilities",
    "tools": "tools",
    "structured": "structured output",
    "engines": "query and chat engines",
    "agents": "agents, judge, reranker",
}


class Common(LlamaIndexLLMSuite):
    """What both are asked."""

    @property
    def program_modes(self) -> Sequence[PydanticProgramMode]:
        """Those that need no further package."""
        return (PydanticProgramMode.DEFAULT, PydanticProgramMode.FUNCTION, PydanticProgramMode.LLM)


class TestEFTLLM(Common):
    """Ours."""

    def make_llm(self, **fields: Any) -> LLM:
        """Greedy, three members, drafting on."""
        return EFTLLM(engine=trained_engine(), **{"temperature": 0.0, "max_tokens": 64, **fields})


class TestHuggingFaceLLM(Common):
    """Theirs, set up as its documentation shows: a chat model whose template renders the prompt."""

    def make_llm(self, **fields: Any) -> LLM:
        """Greedy, over the tuned model."""
        trio = trained_trio()

        def messages_to_prompt(messages: Any) -> str:
            turns = [{"role": message.role.value, "content": message.content or ""} for message in messages]
            return str(trio.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

        return HuggingFaceLLM(
            model=trio.tuned,
            tokenizer=trio.tokenizer,
            context_window=4096,
            max_new_tokens=64,
            generate_kwargs={"do_sample": False, "pad_token_id": trio.tokenizer.eos_token_id},
            is_chat_model=True,
            messages_to_prompt=messages_to_prompt,
            completion_to_prompt=lambda text: messages_to_prompt([_Turn(text)]),
            **fields,
        )


class _Turn:
    """A user's turn as `messages_to_prompt` reads it."""

    def __init__(self, content: str) -> None:
        self.content = content
        self.role = type("Role", (), {"value": "user"})


class Collector:
    """Outcomes by class and subject, and the first line of every failure."""

    def __init__(self) -> None:
        self.outcomes: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
        self.reasons: dict[str, Counter[str]] = defaultdict(Counter)
        self._subjects: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Where each test was written is its subject."""
        for item in items:
            self._subjects[item.nodeid] = item.function.__module__.rpartition(".")[2]  # type: ignore[attr-defined]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count each test once."""
        if report.when == "call" or (report.when == "setup" and not report.passed):
            name = report.nodeid.split("::")[1].removeprefix("Test")
            self.outcomes[name][self._subjects[report.nodeid]][report.outcome] += 1
            if report.failed and (crash := getattr(report.longrepr, "reprcrash", None)) is not None:
                self.reasons[name][crash.message.splitlines()[0][:110]] += 1


def main(
    only: Annotated[str, typer.Option(help="Run one of the two classes; the other's column is 0.")] = "",
) -> None:
    """Run, and write the table and the reasons as Markdown."""
    collector = Collector()
    options = [__file__, "--no-header", "--tb=no", "--timeout=300", "-W", "ignore", "-k", only]
    with contextlib.redirect_stdout(sys.stderr):
        pytest.main([*options, f"--rootdir={Path(__file__).parents[1]}"], plugins=[collector])
    names = ["EFTLLM", "HuggingFaceLLM"]
    lines = [f"| subject | tests | {' | '.join(names)} |", "|---|---|---|---|"]
    totals = {name: Counter[str]() for name in names}
    for module, subject in SUBJECTS.items():
        cells = [collector.outcomes[name][module] for name in names]
        for name, counts in zip(names, cells, strict=True):
            totals[name] += counts
        lines.append(
            f"| {subject} | {max(map(_asked, cells))} | {' | '.join(str(counts['passed']) for counts in cells)} |"
        )
    lines.append(
        f"| all | {max(map(_asked, totals.values()))} | {' | '.join(str(totals[name]['passed']) for name in names)} |"
    )
    sys.stdout.write("\n".join(lines) + "\n\n")
    for name in names:
        for reason, count in collector.reasons[name].most_common():
            sys.stdout.write(f"{name}: {count} x {reason}\n")
    finish("llama_index_suite", json.loads(json.dumps(totals)))


def _asked(counts: Counter[str]) -> int:
    return counts["passed"] + counts["failed"]


if __name__ == "__main__":
    typer.run(main)
