"""How the cost of an update grows with members, environments, steps, width and dataset rows.

    python profiling/scaling.py [--axes members width] [--quick] [--out DIR]

Costs are seconds of one launch per update, of all members together, without compilation: CPU
seconds of all threads, or seconds of wall time on accelerators; medians of repeats. Each axis is
fitted by cost = a x^b, once over all sizes and once over the larger half, where fixed costs matter
less. DIR gets scaling.json and scaling.png. Expected exponents are at most 1, of width 2 (matrix
products of width x width) and of dataset rows 0.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from duel_rows import OFFLINE
from stages import Launch, Task, prepare

from jaxrl.experiments import jax_setup
from jaxrl.runs import files, provenance

SIZES = {"total_steps": 10**9, "hidden": [64, 64]}


class Axis(NamedTuple):
    """One size that grows.

    Attributes:
      work: updates of a launch, times the size; larger sizes make fewer updates.
      bound: exponent above which the cost grows faster than expected.
      task: size -> task and members.
    """

    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    work: int
    bound: float
    task: Callable[[int], tuple[Task, int]]


def pqn(members: int = 1, **sizes: Any) -> tuple[Task, int]:
    return Task("pqn", SIZES | sizes, "CartPole-v1"), members


AXES = {
    "members": Axis((1, 4, 16, 64, 256, 1024, 4096), (1, 4, 8), 256, 1.0, lambda n: pqn(members=n)),
    "environments": Axis(
        (16, 64, 256, 1024, 4096), (16, 32, 64), 4096, 1.0, lambda n: pqn(num_envs=n)
    ),
    "steps": Axis((16, 64, 256, 1024), (16, 32, 64), 4096, 1.0, lambda n: pqn(num_steps=n)),
    "width": Axis(
        (16, 32, 64, 128, 256, 512, 1024), (16, 32, 64), 2048, 2.0, lambda n: pqn(hidden=[n, n])
    ),
    "dataset rows": Axis(
        (1_000, 10_000, 100_000, 1_000_000),
        (1_000, 4_000, 16_000),
        0,
        0.1,
        lambda n: (Task("iql", {"updates": 10**6, "hidden": [64, 64]}, **OFFLINE, rows=n), 1),
    ),
}


def cost(launch: Launch, updates: int, repeats: int) -> float:
    """Median seconds per update."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    launch.run()
    seconds = []
    for _ in range(repeats):
        begin = clock()
        launch.run()
        seconds.append(clock() - begin)
    return statistics.median(seconds) / updates


def exponent(sizes: np.ndarray, costs: np.ndarray) -> float:
    """b of the least-squares fit of log cost = log a + b log size."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def measure(name: str, quick: bool) -> dict[str, Any]:
    """Sizes, costs and exponents of an axis."""
    axis = AXES[name]
    sizes, costs = np.array(axis.quick if quick else axis.sizes), []
    for size in sizes.tolist():
        updates = 2 if quick else max(axis.work // size, 2) if axis.work else 500
        task, members = axis.task(size)
        costs.append(cost(prepare(task, members, updates), updates, 1 if quick else 5))
        print(f"{name:<13} {size:>9,} {1e3 * costs[-1]:>12.3f} ms per update", flush=True)
    half = len(sizes) // 2
    found = {
        "exponent": exponent(sizes, np.array(costs)),
        "upper_exponent": exponent(sizes[half:], np.array(costs[half:])),
    }
    told = ", ".join(f"{key.replace('_', ' ')} {value:.2f}" for key, value in found.items())
    print(f"{name}: {told}; expected at most {axis.bound}", flush=True)
    return {"sizes": sizes.tolist(), "seconds_per_update": costs, "bound": axis.bound} | found


def draw(found: dict[str, dict[str, Any]], file: Path) -> None:
    """One panel per axis, with a line of the expected exponent through the last point."""
    from matplotlib.figure import Figure

    figure = Figure((2.6 * len(found), 2.6), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for panel, (name, row) in zip(panels, found.items(), strict=True):
        sizes, costs = np.array(row["sizes"]), 1e3 * np.array(row["seconds_per_update"])
        expected = costs[-1] * (sizes / sizes[-1]) ** row["bound"]
        panel.loglog(sizes, costs, "o-", color="C0")
        panel.loglog(sizes, expected, "--", color="0.6")
        panel.set_title(f"exponent {row['exponent']:.2f} ({row['upper_exponent']:.2f})", size=9)
        panel.set_xlabel(name)
    panels[0].set_ylabel("ms per update")
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of updates against sizes")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--quick", action="store_true", help="small sizes, one repeat")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    jax_setup.start()
    found, about = {}, {"device": jax.devices()[0].device_kind, "versions": provenance.versions()}
    for name in args.axes:
        found[name] = measure(name, args.quick)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            files.write_json(args.out / "scaling.json", about | {"axes": found})
            draw(found, args.out / "scaling.png")


if __name__ == "__main__":
    main()
