"""How long `eft demo` takes from its start as a process until its first answer is on the screen.

    python -m benchmarks.first_answer               # 3 starts
    python -m benchmarks.first_answer --rounds 10

The demo runs on a terminal of its own; when the first row of its table has been drawn, it is ended. Seconds of wall clock and of
CPU. Files that were not in memory are read from disk in the first start only.
"""

from __future__ import annotations

import fcntl
import os
import pty
import resource
import signal
import statistics
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.report import finish
from eft_engine.zoo.atlas import load_fact_questions

ROWS, COLUMNS = 50, 240
"""Of the terminal: wide enough that a question is not broken after its first words."""


def start(*, marker: str, timeout_s: float) -> tuple[float, float]:
    """Run the demo until `marker` is on its screen; gives seconds of wall clock and of CPU.

    Raises:
        RuntimeError: it ended, or took longer than `timeout_s`, before that.
    """
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    used, started = cpu_seconds_of_children(), time.perf_counter()
    demo = subprocess.Popen(
        [str(Path(sys.executable).with_name("eft")), "demo", "--no-smollm2"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)},
    )
    os.close(terminal)
    shown = ""
    try:
        while marker not in shown:
            if demo.poll() is not None or time.perf_counter() - started > timeout_s:
                raise RuntimeError(f"no answer was shown; the screen: {shown[-2000:]!r}")
            shown += os.read(screen, 65536).decode(errors="replace")
        seconds = time.perf_counter() - started
    finally:
        demo.send_signal(signal.SIGKILL)
        demo.wait()
        os.close(screen)
    return seconds, cpu_seconds_of_children() - used


def cpu_seconds_of_children() -> float:
    """Of the processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often the demo is started.")] = 3,
    timeout_s: Annotated[float, typer.Option(help="Longest wait for the first answer.")] = 120.0,
) -> None:
    """Measure, and print a table and the closing JSON line."""
    marker = " ".join(load_fact_questions()[0].question.split()[:2])
    times = [start(marker=marker, timeout_s=timeout_s) for _ in range(rounds)]
    table = Table(title="from the start of `eft demo` to its first answer on the screen")
    for heading in ("start", "seconds", "CPU seconds"):
        table.add_column(heading, justify="right")
    for number, (wall, cpu) in enumerate(times, start=1):
        table.add_row(str(number), f"{wall:.1f}", f"{cpu:.1f}")
    Console().print(table)
    walls, cpus = zip(*times, strict=True)
    finish(
        "first_answer",
        {
            "seconds": [round(wall, 2) for wall in walls],
            "cpu_seconds": [round(cpu, 2) for cpu in cpus],
            "median_s": round(statistics.median(walls), 2),
            "median_cpu_s": round(statistics.median(cpus), 2),
        },
    )


if __name__ == "__main__":
    typer.run(main)
