"""Cost of a search, compared with one process per trial.

    python profiling/search_speed.py [--trials 256] [--out profiling/results/search_speed_cpu.json]

One command searches the learning rate and the trace decay of PQN (64 x 64) on CartPole, with four
seeds per trial and 5e4 steps each. For comparison, three of its trials are trained by `jaxrl
train`, one process each, and their mean time stands for all trials. Each is timed with an empty and
with a warm compilation cache.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from jaxrl.runs import files, provenance

SHARED = [
    *("pqn", "--env", "CartPole-v1", "--preset", "none", "--seeds", "4", "--evals", "2"),
    *("--eval-episodes", "8", "--agent.hidden", "64", "64", "--agent.total-steps", "50000"),
]
RANGES = ["--range", "agent.lr=log:1e-5:1e-2", "agent.lam=lin:0.5:1"]
RATES = ("1e-4", "1e-3", "1e-2")  # learning rates of the trials trained as processes


class Cost(NamedTuple):
    wall: float
    cpu: float


def jaxrl(words: list[str], cache: Path) -> Cost:
    """Wall and CPU seconds of one command, child processes included."""
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    line = [sys.executable, "-m", "jaxrl.experiments.cli", *words]
    subprocess.run(line, env=env, check=True, stdout=subprocess.DEVNULL)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - clock
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, cpu)


def in_one_command(folder: Path, trials: int) -> list[dict[str, Any]]:
    rows = []
    for state in ("cold", "warm"):
        out = folder / state
        words = ["search", *SHARED, *RANGES, "--trials", str(trials), "--out", str(out)]
        cost = jaxrl(words, folder / "cache")
        found = json.loads((out / "summary.json").read_text())
        print(
            f"{trials} trials in one command, cache {state}: {cost.wall:.0f} s wall, "
            f"{cost.cpu:.0f} CPU s, {found['compiles']} compiles; best {found['best']['value']}",
            flush=True,
        )
        its = {"compiles": found["compiles"], "env_steps": found["env_steps"]}
        rows.append({"how": "one command", "cache": state, **cost._asdict(), **its})
    return rows


def as_processes(folder: Path, trials: int) -> list[dict[str, Any]]:
    rows = []
    own = lambda rate: ["train", *SHARED, "--agent.lr", rate, "--out"]
    for state in ("cold", "warm"):
        costs = [
            jaxrl([*own(rate), str(folder / f"{state}{rate}")], folder / f"cache{rate}")
            for rate in RATES
        ]
        one = Cost(*(sum(x) / len(costs) for x in zip(*costs, strict=True)))
        each = ", ".join(f"{x.cpu:.1f}" for x in costs)
        print(
            f"as processes, cache {state}: {one.wall:.1f} s wall, {one.cpu:.1f} CPU s each "
            f"({each}); {trials} of them: {one.wall * trials:.0f} s wall one after the other, "
            f"{one.cpu * trials:.0f} CPU s",
            flush=True,
        )
        measured = [x._asdict() for x in costs]
        total = {"wall": one.wall * trials, "cpu": one.cpu * trials}
        rows.append({"how": "processes, extrapolated", "cache": state, **total, "each": measured})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=256)
    parser.add_argument("--out", type=Path, help="a JSON file of the numbers")
    given = parser.parse_args()
    trials = given.trials
    with tempfile.TemporaryDirectory() as name:
        rows = in_one_command(Path(name), trials) + as_processes(Path(name), trials)
    one, each = ({row["cache"]: row["cpu"] for row in some} for some in (rows[:2], rows[2:]))
    for state in one:
        print(f"cache {state}: {each[state] / one[state]:.1f} times the CPU seconds as processes")
    if given.out:
        here = {
            "cores": os.cpu_count(),
            "versions": provenance.versions(),
            "git": provenance.git_hash(),
        }
        files.write_json(given.out, {"trials": trials, "seeds": 4, **here, "rows": rows})


if __name__ == "__main__":
    main()
