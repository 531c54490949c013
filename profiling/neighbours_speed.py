"""Speed of the exact nearest-neighbour search, in dataset rows per second.

    python profiling/neighbours_speed.py [--rows 100000 1000000] [--chunks 256 1024 4096]

256 queries in 8 dimensions, a batch of PRDC on DMSD. Reported is the median wall time of a compiled
search. The naive search computes all distances at once; both must find the same rows.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.experiments import jax_setup
from jaxrl.neighbours import nearest
from jaxrl.runs import files, provenance
from jaxrl.types import Array

BATCH, SIZE = 256, 8


def seconds(run: Callable[[Array, Array], Array], query: Array, points: Array, calls: int) -> float:
    """Median wall time of a call, after the one that compiles."""
    jax.block_until_ready(run(query, points))
    times = []
    for _ in range(calls):
        clock = time.perf_counter()
        jax.block_until_ready(run(query, points))
        times.append(time.perf_counter() - clock)
    return statistics.median(times)


def naive(query: Array, points: Array) -> Array:
    """Indices [B] by all squared distances [B, D] at once."""
    inner = jnp.matmul(query, points.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmin(jnp.sum(points**2, -1)[None] - 2 * inner, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description="exact nearest neighbours")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--chunks", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--calls", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    jax_setup.start()
    found = []
    print(f"{'rows':>10}{'chunk':>8}{'ms':>10}{'rows/s':>12}")
    for rows in args.rows:
        keys = jax.random.split(jax.random.key(0))
        query = jax.random.normal(keys[0], (BATCH, SIZE))
        points = jax.random.normal(keys[1], (rows, SIZE))
        wanted = np.asarray(jax.jit(naive)(query, points))
        cases = {"naive": jax.jit(naive)}
        for chunk in args.chunks:
            cases[str(chunk)] = jax.jit(lambda q, p, c=chunk: nearest(q, p, chunk=c)[0])
        for name, run in cases.items():
            same = int(np.sum(np.asarray(run(query, points)) == wanted))
            taken = seconds(run, query, points, args.calls)
            row = {"rows": rows, "chunk": name, "seconds": taken, "equal": same}
            found.append(row)
            told = f"{1e3 * taken:>10.1f}{rows / taken:>12.3g}"
            print(f"{rows:>10,}{name:>8}{told}   {same} of {BATCH} equal", flush=True)
    if args.json:
        files.write_json(args.json, {"versions": provenance.versions(), "rows": found})


if __name__ == "__main__":
    main()
