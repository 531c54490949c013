"""Compilation of a run's programs in parallel threads, beside one after the other.

    python profiling/parallel_compile.py [--runs pqn iql] [--rounds 3] [--json FILE]

The programs of `initialise`, `advance` and `evaluate` are traced and lowered once, which holds
Python's lock. XLA then compiles them in one thread or in three, in turn, without a cache of
compiled programs. Reported are wall and CPU seconds of the compilation alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from compile_table import PROGRAMS, STARTS, random_data

from jaxrl import drive
from jaxrl.compiling import compiler_options
from jaxrl.experiments import jax_setup, train
from jaxrl.population import lift
from jaxrl.runs import files, provenance


def programs(name: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    """(lowered, options of the compiler) of each program of a run of `compile_table.STARTS`."""
    agent, options, own = STARTS[name]
    if agent in ("iql", "td3bc"):
        options = options | {"data": random_data(options["env"])}
    found: dict[str, tuple[Any, dict[str, Any]]] = {}
    build = drive._Run.build

    def built(run: Any, index: int, what: str, fn: Any, args: Any) -> Any:
        donate = (0,) if what == "advance" else ()
        lifted = lift(run.plan)(fn, run.program.stages[index])
        traced = jax.jit(lifted, donate_argnums=donate).trace(*args)
        # Without options, JAX would keep the first executable of a lowered program.
        default = {"xla_backend_optimization_level": 3}
        found[what] = traced.lower(), compiler_options(traced, run.plan.platform) or default
        return build(run, index, what, fn, args)

    drive._Run.build = built
    try:
        with tempfile.TemporaryDirectory() as folder:
            few = {"evals": 1, "eval_episodes": 32, "out": Path(folder) / "run"}
            train.run(agent, **options, **few, agent=own)
    finally:
        drive._Run.build = build
    return found


def one_by_one(found: dict[str, tuple[Any, dict[str, Any]]]) -> None:
    for lowered, options in found.values():
        lowered.compile(options)


def in_threads(found: dict[str, tuple[Any, dict[str, Any]]]) -> None:
    with ThreadPoolExecutor(len(found)) as pool:
        list(pool.map(lambda each: each[0].compile(each[1]), found.values()))


def seconds(run: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(name: str, rounds: int) -> dict[str, Any]:
    found = programs(name)
    assert set(found) == set(PROGRAMS)
    ways = {"one by one": one_by_one, "in threads": in_threads}
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            taken[way].append(seconds(lambda run=run: run(found)))
    each = {what: [seconds(lambda w=what: one_by_one({w: found[w]}))] for what in found}
    return {"run": name, "seconds": taken, "alone": each}


def main() -> None:
    parser = argparse.ArgumentParser(description="Compilation in parallel threads")
    parser.add_argument("--runs", nargs="+", choices=STARTS, default=["pqn", "iql"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    jax_setup.start()
    jax.config.update("jax_enable_compilation_cache", False)
    print("| run | programs | wall s | CPU s |", "|---" * 4 + "|", sep="\n")
    rows = []
    for name in args.runs:
        rows.append(measure(name, args.rounds))
        for way, taken in rows[-1]["seconds"].items():
            columns = zip(*taken, strict=True)
            told = (f"{statistics.median(x):.1f} ({min(x):.1f}, {max(x):.1f})" for x in columns)
            print(f"| {name} | {way} | {' | '.join(told)} |", flush=True)
        for what, [(wall, cpu)] in rows[-1]["alone"].items():
            print(f"| {name} | {what} alone | {wall:.1f} | {cpu:.1f} |", flush=True)
        if args.json:
            about = {"versions": provenance.versions(), "cores": len(os.sched_getaffinity(0))}
            files.write_json(args.json, about | {"rows": rows})


if __name__ == "__main__":
    main()
