"""Speed and compile time of jaxrl beside its peers, interleaved on one machine.

    python profiling/duel.py [--rows pqn iql] [--source unifloral=DIR] [--cores 1] [--quick]
        [--json FILE]

A row is a task with equal networks, batches and environments for all sides (`duel_rows.py`). Every
side is a process with one compiled program, in a virtual environment of its own (`--envs DIR`,
created if missing; needs a package index). The sides launch in turn, A B A B. Reported are
environment steps, or gradient steps of offline agents, per CPU second (all threads) without
compilation, as medians over the turns; the ratio is the median of ours to a peer's, turn by turn.
Compile times are CPU seconds of tracing and XLA. Of the offline rows with one member, the matrix
products and other operations of the optimised programs are counted as well. With `--cores 1` all
processes are pinned to one core: XLA's thread pool costs small programs more than their operations.

Peers whose code is not on PyPI are given by `--source NAME=DIR`: purejaxql, purejaxrl, unifloral.
Peers without a source are left out. `--before DIR` adds an earlier version of this project, from a
checkout with its own `profiling/duel_ours.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from duel_rows import ROWS, Side, sides

from jaxrl.runs import files, provenance

FOLDER = Path(__file__).parent
PINS = {
    "rejax": ["rejax==0.1.3", "gymnax==0.0.9", "six", "jax==0.10.2"],
    "purejax": [  # the newest JAX that they allow
        "jax==0.4.38",
        "gymnax==0.0.6",
        "flax==0.10.2",
        "optax==0.2.4",
        "distrax==0.1.5",
        "flashbax",
        "six",
    ],
    "offline": ["jax==0.10.2", "flax==0.12.8", "optax==0.2.8", "distrax", "tyro"],
}


class Worker:
    """A side of a duel, as a running process."""

    def __init__(self, side: Side, python: str) -> None:
        self.side, self.launches = side, []
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        folder, path = FOLDER, {}
        if side.checkout:
            folder, path = Path(side.checkout) / "profiling", {"PYTHONPATH": side.checkout}
        self.process = subprocess.Popen(
            [python, str(folder / side.worker), json.dumps(side.sizes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=os.environ | path | {"JAX_ENABLE_COMPILATION_CACHE": "0", "JAX_PLATFORMS": "cpu"},
        )
        self.about = self._answer()

    def launch(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.launches.append(self._answer())

    def close(self) -> None:
        self.process.communicate()
        self.errors.close()

    @property
    def rates(self) -> list[float]:
        """Units per CPU second of each launch."""
        return [self.about["units"] / each["cpu_s"] for each in self.launches]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise SystemExit(f"{self.side.name} failed:\n{self.errors.read()[-2000:]}")
        return json.loads(line)


def duel(
    row: str, sources: dict[str, Path], before: Path | None, envs: Path, turns: int
) -> list[dict[str, Any]]:
    """One record per side of a row, jaxrl's first."""
    workers = []
    try:
        for side in sides(row, sources, before):
            workers.append(Worker(side, interpreter(side.env, envs)))
        for _ in range(turns):
            for worker in workers:
                worker.launch()
    finally:
        for worker in workers:
            worker.close()
    return [record(row, worker, workers[0]) for worker in workers]


def record(row: str, worker: Worker, first: Worker) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(first.rates, worker.rates, strict=True)]
    walls = [worker.about["units"] / launch["wall_s"] for launch in worker.launches]
    return {
        "row": row,
        "side": worker.side.name,
        "rate": statistics.median(worker.rates),
        "wall_rate": statistics.median(walls),
        "compile_s": worker.about["compile_s"],
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "executed": worker.about.get("executed", {}),  # an earlier version may not count
    }


def table(records: list[dict[str, Any]]) -> str:
    """Records as a Markdown table: a line per peer of a row."""
    lines = [
        "| row | peer | jaxrl, per CPU s | peer, per CPU s | jaxrl / peer | compile, CPU s |",
        "|---" * 6 + "|",
    ]
    first: dict[str, Any] = {}
    for each in records:
        if each["row"] != first.get("row"):
            first = each
            continue
        rates = f"{first['rate']:,.0f} | {each['rate']:,.0f} | {each['ratio']:.2f}"
        compile_s = f"{first['compile_s']:.1f}, {each['compile_s']:.1f}"
        lines.append(f"| `{each['row']}` | {each['side']} | {rates} | {compile_s} |")
    return "\n".join(lines)


def executed_table(records: list[dict[str, Any]]) -> str:
    """What the programs of both sides execute per unit, as a Markdown table."""
    lines = [
        "| row | side | products | GFLOP in products | other operations | MB of their results |",
        "|---" * 6 + "|",
    ]
    for each in records:
        if found := each.get("executed"):
            products = f"{found['products']:.0f} | {found['gflop']:.3f}"
            others = f"{found['others']:.0f} | {found['others_mb']:.1f}"
            lines.append(f"| `{each['row']}` | {each['side']} | {products} | {others} |")
    return "\n".join(lines)


def interpreter(env: str | None, envs: Path) -> str:
    """The Python of a virtual environment, which is created if missing; None is this one's."""
    if env is None:
        return sys.executable
    python = envs / env / "bin" / "python"
    if not python.exists():
        print(f"installing {', '.join(PINS[env])} into {envs / env}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", envs / env], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PINS[env]], check=True)
    return str(python)


def source(word: str) -> tuple[str, Path]:
    name, _, folder = word.partition("=")
    return name, Path(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of jaxrl beside its peers")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--source", type=source, nargs="+", default=[], metavar="NAME=DIR")
    parser.add_argument("--before", type=Path, metavar="DIR", help="checkout of an earlier version")
    parser.add_argument("--envs", type=Path, default=Path(".duel"))
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--cores", type=int, help="pin all sides to this number of cores")
    parser.add_argument("--quick", action="store_true", help="three turns")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, metavar="JSON", help="only print the table of a file")
    args = parser.parse_args()
    if args.table:
        records = json.loads(args.table.read_text())["rows"]
        print(table(records), executed_table(records), sep="\n\n")
        return
    if args.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])  # workers inherit it
    print("row          side         per CPU s   per wall s  compile CPU s  jaxrl / side")
    records = []
    turns = 3 if args.quick else args.turns
    for row in args.rows:
        for each in duel(row, dict(args.source), args.before, args.envs, turns):
            records.append(each)
            print(
                f"{row:<12} {each['side']:<10} {each['rate']:>11,.1f} {each['wall_rate']:>12,.1f} "
                f"{each['compile_s']:>14.1f} {each['ratio']:>13.2f}",
                flush=True,
            )
        if args.json:
            cores = len(os.sched_getaffinity(0))
            about = {"versions": provenance.versions(), "cores": cores}
            files.write_json(args.json, about | {"rows": records})
    print(table(records), executed_table(records), sep="\n\n")


if __name__ == "__main__":
    main()
