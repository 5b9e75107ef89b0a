"""What attacks on the server cost another client: its waiting time without and with each of them, and the memory of the process.

    python -m benchmarks.server_attacks            [--preset smollm2-json] [--only TEXT] [--after TEXT] [--most-s 600]

The attacks are those of `tests/server` (bodies and connections), against a real `eft serve` process whose limits of time are two
seconds. The victim, a process of its own, asks the same greedy request again and again on one connection and with its own key; the
attacker has another. The bounds are 1 s more of waiting than the slowest of ten answers alone, and 200 MB. Prints a Markdown table
and, as last line, JSON.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import httpx

from benchmarks.report import finish
from tests.server.bodies import ATTACKS, Attack
from tests.server.conftest import QUICK
from tests.server.process import KEYS, VICTIM, ServerProcess, save_trio, write_keys
from tests.server.wires import WIRES, Target

MOST_LATER_S, MOST_GROWTH = 1.0, 200 * 2**20
ALONE = 10
"""Answers of the victim before an attack begins."""


@dataclass(frozen=True)
class Row:
    """One attack: seconds of the victim's slowest answer alone and meanwhile, and bytes."""

    name: str
    attack_s: float
    alone_s: float
    with_s: float
    num_answers: int
    growth: int

    @property
    def later_s(self) -> float:
        """How much longer it waited."""
        return self.with_s - self.alone_s

    @property
    def is_bounded(self) -> bool:
        """Whether both bounds hold."""
        return self.later_s < MOST_LATER_S and self.growth < MOST_GROWTH


class Victim:
    """A client in a process of its own, so that it waits for the server and not for the attacker's threads: asks again and again
    between `begin` and `end`.
    """

    def __init__(self, server: ServerProcess) -> None:
        processes = multiprocessing.get_context("spawn")
        self._connection, theirs = processes.Pipe()
        self._process = processes.Process(
            target=keep_asking, args=(theirs, server.url, server.headers("victim")), daemon=True
        )
        self._process.start()

    def begin(self) -> None:
        """Ask until the end."""
        self._connection.send("begin")

    def end(self, *, least: int = 1) -> list[float]:
        """Seconds of the answers since it began, at least so many; infinite: it failed."""
        self._connection.send(least)
        return list(self._connection.recv())


def keep_asking(told: Connection, url: str, headers: dict[str, str]) -> None:
    """What the victim's process does."""
    with httpx.Client(base_url=url, headers=headers, timeout=120, trust_env=False) as client:
        while True:
            assert told.recv() == "begin"
            seconds: list[float] = []
            least: int | None = None
            while least is None or len(seconds) < least:
                start = time.perf_counter()
                try:
                    client.post("/v1/completions", json=VICTIM).raise_for_status()
                    seconds.append(time.perf_counter() - start)
                except httpx.HTTPError:
                    seconds.append(math.inf)
                if told.poll(0.02):
                    least = told.recv()
            told.send(seconds)


def measured(server: ServerProcess, victim: Victim, name: str, attack: Callable[[], object]) -> Row:
    """Run one attack beside a victim."""
    server.wait_until_idle()
    victim.begin()
    alone = victim.end(least=ALONE)
    before = most = server.rss()
    working = threading.Thread(target=attack)
    victim.begin()
    start = time.perf_counter()
    working.start()
    while working.is_alive():
        most = max(most, server.rss())
        time.sleep(0.01)
    attack_s = time.perf_counter() - start
    seconds = victim.end()
    return Row(name, attack_s, max(alone), max(seconds), len(seconds), most - before)


def sent(server: ServerProcess, make: Callable[[], Attack]) -> Callable[[], object]:
    """A body as an attack."""

    def send() -> None:
        attack = make()
        with server.client("mallory", timeout=120) as client:
            client.post(attack.path, content=attack.body, headers=dict(attack.headers))

    return send


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| attack | takes | alone | meanwhile | later | ratio | memory | bounded |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.name} | {row.attack_s:.1f} s | {row.alone_s * 1000:.0f} ms | {row.with_s * 1000:.0f} ms "
            f"| {max(0.0, row.later_s) * 1000:.0f} ms | {row.with_s / row.alone_s:.1f} | {max(0, row.growth) / 2**20:.0f} MB "
            f"| {'yes' if row.is_bounded else 'NO'} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the attacks, as many as fit into the time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", help="a preset in place of the toy trio")
    parser.add_argument("--only", default="", help="attacks whose name contains this")
    parser.add_argument("--after", default="", help="only those behind the first whose name contains this")
    parser.add_argument("--most-s", type=float, default=600.0, help="begin no attack later than this")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        served = ["--preset", options.preset, "--name", "toy"] if options.preset else save_trio(Path(folder))
        flags = [*served, "--port", "0", "--api-key-file", str(write_keys(Path(folder) / "keys.txt")), *QUICK]
        server = ServerProcess(flags, key=KEYS["mallory"])
        try:
            rows = run(server, options.only, options.after, options.most_s)
        finally:
            server.stop()
    sys.stdout.write(table(rows) + "\n")
    finish(
        "server_attacks",
        {
            "rows": [asdict(row) for row in rows],
            "median_later_s": statistics.median(row.later_s for row in rows),
            "all_bounded": all(row.is_bounded for row in rows),
        },
    )


def run(server: ServerProcess, only: str, after: str, most_s: float) -> list[Row]:
    """One attack after the other."""
    target = Target(server.address, KEYS["mallory"])
    attacks = {name: sent(server, make) for name, make in ATTACKS.items()}
    attacks |= {name: lambda wire=wire: wire(target) for name, wire in WIRES.items()}  # type: ignore[misc]
    end = time.monotonic() + most_s
    victim = Victim(server)
    victim.begin()
    victim.end(least=20)
    names = list(attacks)
    first = next(index for index, name in enumerate(names) if after in name) + 1 if after else 0
    chosen = [name for name in names[first:] if only in name]
    return [measured(server, victim, name, attacks[name]) for name in chosen if time.monotonic() < end]


if __name__ == "__main__":
    main()
