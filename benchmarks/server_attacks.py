"""What attacks on the server cost another client: its waiting time without and with each of them, and the memory of the process.

    python -m benchmarks.server_attacks            [--preset smollm2-json] [--only TEXT] [--after TEXT] [--most-s 600]

The attacks are those of `tests/server` (bodies and connections), against a real `eft serve` process whose limits of time are two
seconds. The victim asks the same greedy request again and again on a connection of its own, with a key of its own; the attacker has
another. The bounds are 1 s more of waiting than the slowest of ten answers alone, and 200 MB. Prints a Markdown table and, as last
line, JSON.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from benchmarks.report import finish
from tests.server.bodies import ATTACKS, Attack
from tests.server.conftest import QUICK
from tests.server.process import KEYS, ServerProcess, save_trio, write_keys
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
    """Asks again and again until it is told to end."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._ended = threading.Event()
        self.seconds: list[float] = []
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        with self._server.client("victim", timeout=120) as client:
            while not self._ended.is_set() or not self.seconds:
                try:
                    self.seconds.append(asked_s(self._server, client))
                except httpx.HTTPError:
                    self.seconds.append(math.inf)
                time.sleep(0.02)

    def end(self) -> list[float]:
        """Seconds of its answers."""
        self._ended.set()
        self._thread.join()
        return self.seconds


def asked_s(server: ServerProcess, client: httpx.Client) -> float:
    """Seconds of one answer."""
    start = time.perf_counter()
    server.ask(client)
    return time.perf_counter() - start


def measured(server: ServerProcess, name: str, attack: Callable[[], object]) -> Row:
    """Run one attack beside a victim."""
    server.wait_until_idle()
    with server.client("victim") as client:
        alone = [asked_s(server, client) for _ in range(ALONE)]
    before = most = server.rss()
    victim = Victim(server)
    working = threading.Thread(target=attack)
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
    with server.client("victim") as client:
        for _ in range(20):
            server.ask(client)
    names = list(attacks)
    first = next(index for index, name in enumerate(names) if after in name) + 1 if after else 0
    chosen = [name for name in names[first:] if only in name]
    return [measured(server, name, attacks[name]) for name in chosen if time.monotonic() < end]


if __name__ == "__main__":
    main()
