"""Speed of EDAC with 2, 10 and 50 critics, compared with the matrix products of its updates alone.

    python profiling/edac_speed.py [--critics 2 10 50] [--updates 30] [--json FILE]

Observations have 11 elements, actions 3; batches of 256, networks of 3 x 256. Two critics are
trained without the diversity term, as in SAC. Reported are CPU seconds (all threads) per 1,000
updates of one member without compilation and initialisation, medians of alternating repeats:

    edac     complete updates: sampling, losses, gradients, Adam, target networks
    floor    the matrix products of an update only, those of N critics as one batch; one element of
             each result is added to an operand, so that XLA cannot remove any
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.agents import edac
from jaxrl.experiments import jax_setup
from jaxrl.program import Stage, advance_fn, initialise_fn
from jaxrl.runs import files, provenance
from jaxrl.sources import uniform
from jaxrl.types import Array, Box, EnvSpec, HyperParams, PyTree, Transition

OBS, ACT, ROWS = 11, 3, 100_000
SPEC = EnvSpec("hopper", (OBS,), Box((-1.0,) * ACT, (1.0,) * ACT, (ACT,)), 1000)


class Product(NamedTuple):
    """A batch of e matrix products [e, m, k] x [e, k, n]."""

    e: int
    m: int
    k: int
    n: int


def dataset() -> Transition:
    """Random rows [D]."""
    rng = np.random.default_rng(0)
    number = lambda *shape: jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32)
    never = jnp.zeros(ROWS, bool)
    return Transition(
        number(ROWS, OBS), number(ROWS, ACT), number(ROWS), number(ROWS, OBS), never, never, never
    )


def products(cfg: edac.Config) -> list[Product]:
    """All matrix products of one update.

    A forward pass, gradients with respect to the inputs of layers, and gradients with respect to
    weights. The diversity term differentiates the critics' gradients with respect to the action, a
    backward pass down to the input: each product of this pass gives two more.
    """
    batch = cfg.batch_size

    def forward(count: int, inputs: int, out: int) -> list[Product]:
        sizes = (inputs, *cfg.hidden, out)
        return [Product(count, batch, a, b) for a, b in zip(sizes, sizes[1:], strict=False)]

    back = lambda layers: [Product(e, m, n, k) for e, m, k, n in layers]
    weights = lambda layers: [Product(e, k, m, n) for e, m, k, n in layers]
    actor, critic = forward(1, OBS, 2 * ACT), forward(cfg.critics, OBS + ACT, 1)
    # The actor at s with its gradient, through all critics, and at s'; the target critics there.
    total = actor + weights(actor) + back(actor[1:]) + critic + back(critic) + actor + critic
    total += critic + weights(critic) + back(critic[1:])
    if cfg.diversity:
        total += back(critic) + weights(critic) + critic
    return total


def floor(cfg: edac.Config) -> Callable[[PyTree], PyTree]:
    """A program that computes the products of an update `cfg.updates` times."""
    shapes = products(cfg)
    sizes = sorted({(e, m, k) for e, m, k, _ in shapes} | {(e, k, n) for e, _, k, n in shapes})
    index = {size: i for i, size in enumerate(sizes)}

    def update(_: Array, operands: PyTree) -> PyTree:
        operands = list(operands)
        for e, m, k, n in shapes:
            left, right = index[e, m, k], index[e, k, n]
            out = operands[left] @ operands[right]
            operands[left] = operands[left].at[:, 0, 0].add(1e-6 * out[:, 0, 0])
        return tuple(operands)

    def run(seed: Array) -> PyTree:
        operands = tuple(jnp.full(size, 0.01) + seed for size in sizes)
        return jax.lax.fori_loop(0, cfg.updates, update, operands)

    return run


def whole(cfg: edac.Config) -> tuple[Callable[..., PyTree], tuple[Any, ...]]:
    """A program of `cfg.updates` updates of one member, and its arguments: the initial state."""
    agent = edac.make(cfg, SPEC)
    stage = Stage(name="agent", learner=agent, source=uniform(cfg.batch_size), updates=cfg.updates)
    hp = HyperParams(jax.tree.map(jnp.float32, edac.Hypers()))
    start = {"key": jax.random.key(0), "hp": hp, "inputs": {}}
    shared: dict[str, PyTree] = {"inputs": {"data": dataset()}}
    state = jax.jit(initialise_fn(stage))((), start, shared)[1]
    counters = {"step": jnp.int32(0), "n": jnp.int32(cfg.updates), "fresh": jnp.array(True)}
    return advance_fn(stage), (state, {"inputs": {}}, shared | counters)


def cpu_seconds(run: Callable[..., PyTree], args: tuple[Any, ...]) -> float:
    start = time.process_time()
    jax.block_until_ready(run(*args))
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of EDAC beside bare matrix products")
    parser.add_argument("--critics", type=int, nargs="+", default=[2, 10, 50])
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    jax_setup.start()
    print("critics  GFLOP an update      edac    floor  share  GFLOP/s of the floor")
    rows = []
    for critics in args.critics:
        cfg = edac.Config(updates=args.updates, critics=critics, diversity=critics > 2)
        work = 2 * sum(e * m * k * n for e, m, k, n in products(cfg))
        train, given = whole(cfg)
        runs = {
            "edac": (jax.jit(train).lower(*given).compile(), given),
            "floor": (jax.jit(floor(cfg)).lower(0.0).compile(), (0.0,)),
        }
        for run in runs.values():
            cpu_seconds(*run)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.repeats):
            for name, run in runs.items():  # alternating, since the load of the machine changes
                seconds[name].append(cpu_seconds(*run))
        each = {name: statistics.median(x) * 1000 / cfg.updates for name, x in seconds.items()}
        share = statistics.median(
            b / a for a, b in zip(seconds["edac"], seconds["floor"], strict=True)
        )
        rows.append({"critics": critics, "gflop": work / 1e9, "share": share} | each)
        print(
            f"{critics:>7} {work / 1e9:>16.2f} {each['edac']:>9.1f} {each['floor']:>8.1f} "
            f"{share:>6.2f} {work / 1e6 / each['floor']:>9.1f}",
            flush=True,
        )
    if args.json:
        files.write_json(args.json, {"versions": provenance.versions(), "rows": rows})


if __name__ == "__main__":
    main()
