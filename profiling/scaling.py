"""How the cost of an update grows with members, environments, steps, width and dataset rows.

    python profiling/scaling.py [--axes members width] [--quick] [--out DIR] [--table JSON]

Costs are seconds of one launch per update, of all members together, without compilation: CPU
seconds of all threads, or seconds of wall time on accelerators. All sizes of an axis are launched
in turn, five times, because the speed of a machine changes; a cost is the median of the rounds.
Each axis is fitted by cost = a x^b, once over all sizes and once over the larger half, where fixed
costs matter less; the interval of b is the lowest and highest of the rounds' own fits. DIR gets
scaling.json and scaling.png; axes of an earlier run that are not measured again stay. Expected
exponents are at most 1, of width 2 (matrix products of width x width) and of dataset rows 0.
`--table` only prints the exponents of a file, as Markdown.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
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
      work: updates of a launch, times the size; larger sizes make fewer updates; 0 is 500 updates.
      expected: exponent above which the cost grows faster than expected.
      task: size -> task and members.
    """

    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    work: int
    expected: float
    task: Callable[[int], tuple[Task, int]]


def pqn(members: int = 1, **sizes: Any) -> tuple[Task, int]:
    return Task("pqn", SIZES | sizes, "CartPole-v1"), members


AXES = {
    "members": Axis((1, 4, 16, 64, 256, 1024, 4096), (1, 4, 8), 256, 1.0, lambda n: pqn(members=n)),
    "environments": Axis(
        (16, 64, 256, 1024, 4096), (16, 32, 64), 4096, 1.0, lambda n: pqn(num_envs=n)
    ),
    # The number of minibatches grows, their rows do not.
    "environments, 256 rows": Axis(
        (16, 64, 256, 1024, 4096),
        (16, 32, 64),
        4096,
        1.0,
        lambda n: pqn(num_envs=n, minibatches=n // 4),
    ),
    "environments, 256 rows, one epoch": Axis(
        (16, 64, 256, 1024, 4096),
        (16, 32, 64),
        4096,
        1.0,
        lambda n: pqn(num_envs=n, minibatches=n // 4, epochs=1),
    ),
    "steps": Axis((16, 64, 256, 1024), (16, 32, 64), 4096, 1.0, lambda n: pqn(num_steps=n)),
    "width": Axis(
        (16, 32, 64, 128, 256, 512, 1024), (16, 32, 64), 2048, 2.0, lambda n: pqn(hidden=[n, n])
    ),
    "dataset rows": Axis(
        (1_000, 10_000, 100_000, 1_000_000),
        (1_000, 4_000, 16_000),
        0,
        0.0,
        lambda n: (Task("iql", {"updates": 10**6, "hidden": [64, 64]}, **OFFLINE, rows=n), 1),
    ),
}


def costs(launches: Sequence[Launch], updates: Sequence[int], rounds: int) -> np.ndarray:
    """Seconds per update [rounds, sizes]; the launches take turns."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    seconds = np.empty((rounds + 1, len(launches)))
    for index in np.ndindex(*seconds.shape):
        begin = clock()
        launches[index[1]].run()
        seconds[index] = clock() - begin
    return seconds[1:] / np.array(updates)  # the first launch of a program is slower


def exponent(sizes: np.ndarray, costs: np.ndarray) -> float:
    """b of the least-squares fit of log cost = log a + b log size."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def fit(sizes: np.ndarray, costs: np.ndarray) -> dict[str, Any]:
    """The exponent of the medians of `costs` [rounds, sizes], and the range of the rounds'."""
    each = [exponent(sizes, row) for row in costs]
    return {"exponent": exponent(sizes, np.median(costs, 0)), "range": [min(each), max(each)]}


def measure(name: str, quick: bool) -> dict[str, Any]:
    """Sizes, costs and exponents of an axis."""
    axis = AXES[name]
    sizes = np.array(axis.quick if quick else axis.sizes)
    updates = [max(axis.work // size, 1) if axis.work else 500 for size in sizes.tolist()]
    updates = [2] * len(sizes) if quick else updates
    launches = []
    for size, count in zip(sizes.tolist(), updates, strict=True):
        task, members = axis.task(size)
        launches.append(prepare(task, members, count))
    seconds = costs(launches, updates, 1 if quick else 5)
    for size, cost in zip(sizes.tolist(), np.median(seconds, 0), strict=True):
        print(f"{name:<34} {size:>9,} {1e3 * cost:>12.3f} ms per update", flush=True)
    half = len(sizes) // 2
    row = {
        "sizes": sizes.tolist(),
        "seconds_per_update": seconds.T.tolist(),  # [sizes, rounds]
        "expected": axis.expected,
        "all": fit(sizes, seconds),
        "larger_half": fit(sizes[half:], seconds[:, half:]),
    }
    print(line(name, row), flush=True)
    return row


def line(name: str, row: dict[str, Any]) -> str:
    """An axis as a row of a Markdown table."""
    told = (f"{x['exponent']:.2f} ({x['range'][0]:.2f}, {x['range'][1]:.2f})" for x in fits(row))
    span = f"{row['sizes'][0]:,} to {row['sizes'][-1]:,}"
    return f"| {name} | {span} | {' | '.join(told)} | {row['expected']:g} |"


def fits(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [row["all"], row["larger_half"]]


def draw(found: dict[str, dict[str, Any]], file: Path) -> None:
    """One panel per axis, with a line of the expected exponent through the last point.

    Further measurements of an axis have a comma in their names and are left out.
    """
    found = {name: row for name, row in found.items() if "," not in name}
    from matplotlib.figure import Figure

    figure = Figure((2.2 * len(found), 2.6), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for panel, (name, row) in zip(panels, found.items(), strict=True):
        sizes, rounds = np.array(row["sizes"]), 1e3 * np.array(row["seconds_per_update"])
        middle = np.median(rounds, 1)
        expected = middle[-1] * (sizes / sizes[-1]) ** row["expected"]
        panel.loglog(sizes, expected, "--", color="0.6")
        panel.loglog(sizes, rounds, ".", color="C0", alpha=0.4)
        panel.loglog(sizes, middle, "-", color="C0")
        every, upper = (each["exponent"] for each in fits(row))
        panel.set_title(f"exponent {every:.2f},\nlarger half {upper:.2f}", size=9)
        panel.set_xlabel(name)
        if middle.max() < 3 * middle.min():  # otherwise the axis shows noise
            panel.set_ylim(middle.min() / 10, middle.max() * 10)
        panel.minorticks_off()
    panels[0].set_ylabel("ms per update")
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of updates against sizes")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--quick", action="store_true", help="small sizes, one repeat")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, metavar="JSON", help="only print a file's exponents")
    args = parser.parse_args()
    if args.table:
        print("| axis | sizes | exponent | of the larger half | expected at most |")
        print("|---" * 5 + "|")
        for name, row in json.loads(args.table.read_text())["axes"].items():
            print(line(name, row))
        return
    jax_setup.start()
    found, about = {}, {"device": jax.devices()[0].device_kind, "versions": provenance.versions()}
    if args.out and (file := args.out / "scaling.json").exists():
        found = json.loads(file.read_text())["axes"]
    for name in args.axes:
        found[name] = measure(name, args.quick)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            found = {name: found[name] for name in AXES if name in found}
            files.write_json(args.out / "scaling.json", about | {"axes": found})
            draw(found, args.out / "scaling.png")


if __name__ == "__main__":
    main()
