"""Speed of IQL, compared with the matrix products of its updates alone.

    python profiling/iql_speed.py [--members 1 8 32] [--width W] [--updates 800] [--json FILE]

Observations have 11 elements, actions 3; batches of 256, networks of 2 x 256: the matrix products
of one update are 0.56 GFLOP. Reported are CPU seconds (all threads) per 1,000 updates of one member
without compilation and initialisation, medians of alternating repeats. All members together make
800 updates per launch of about five seconds, as in a run:

    iql      complete updates: sampling, losses, gradients, Adam, target networks
    floor    the same matrix products only, in a loop over members; one element of each result is
             added to the next operand, so that XLA cannot remove any
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import population
from jaxrl.agents import iql
from jaxrl.experiments import jax_setup
from jaxrl.experiments.plan import hyper_table
from jaxrl.program import Stage, advance_fn, initialise_fn
from jaxrl.runs import files, provenance
from jaxrl.sources import uniform
from jaxrl.types import Array, Box, EnvSpec, HyperParams, PyTree, Transition

OBS, ACT, ROWS = 11, 3, 100_000
SPEC = EnvSpec("hopper", (OBS,), Box((-1.0,) * ACT, (1.0,) * ACT, (ACT,)), 1000)


def dataset() -> Transition:
    """Random rows [D] of the size of D4RL's hopper."""
    rng = np.random.default_rng(0)
    number = lambda *shape: jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32)
    obs, action, reward, after = (
        number(ROWS, OBS),
        number(ROWS, ACT),
        number(ROWS),
        number(ROWS, OBS),
    )
    never = jnp.zeros(ROWS, bool)
    return Transition(obs, action, reward, after, never, never, never)


def products(cfg: iql.Config) -> list[tuple[int, int, int]]:
    """(m, k, n) of all matrix products of one update; network inputs need no gradient."""
    batch, widths = cfg.batch_size, cfg.hidden

    def layers(inputs: int, out: int, rows: int) -> list[tuple[int, int, int]]:
        sizes = (inputs, *widths, out)
        return [(rows, a, b) for a, b in zip(sizes, sizes[1:], strict=False)]

    def gradient(forward: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        weights = [(k, m, n) for m, k, n in forward]
        return forward + weights + [(m, n, k) for m, k, n in forward[1:]]

    value, critic = layers(OBS, 1, batch), layers(OBS + ACT, 1, batch)
    both = layers(OBS, 1, 2 * batch)  # the new V at states and successors
    actor = layers(OBS, ACT, batch)
    return 2 * critic + gradient(value) + both + gradient(actor) + 2 * gradient(critic)


def floor(cfg: iql.Config, members: int) -> Callable[[PyTree], PyTree]:
    """A program that computes the products of an update `cfg.updates` times for each member."""
    shapes = products(cfg)
    sizes = sorted({(m, k) for m, k, _ in shapes} | {(k, n) for _, k, n in shapes})
    index = {size: i for i, size in enumerate(sizes)}

    def update(_: Array, operands: PyTree) -> PyTree:
        operands = list(operands)
        for m, k, n in shapes:
            left, right = index[m, k], index[k, n]
            out = operands[left] @ operands[right]
            operands[left] = operands[left].at[0, 0].add(1e-6 * out[0, 0])
        return tuple(operands)

    def run(operands: PyTree) -> PyTree:
        return jax.lax.fori_loop(0, cfg.updates * members, update, operands)

    return lambda seed: run(tuple(jnp.full(size, 0.01) + seed for size in sizes))


def whole(
    cfg: iql.Config, members: int, plan: population.Layout
) -> tuple[Callable[..., PyTree], tuple[Any, ...]]:
    """A program of `cfg.updates` updates of a population, and its arguments: initial states."""
    agent = iql.make(cfg, SPEC)
    stage = Stage(name="agent", learner=agent, source=uniform(cfg.batch_size), updates=cfg.updates)
    spread = lambda tree: plan.split(plan.pad(tree, members))
    hp = spread(hyper_table(HyperParams(iql.Hypers()), members))
    keys = spread(population.member_keys(jax.random.key(0), jnp.arange(members)))
    shared = {"inputs": {"data": plan.share(dataset())}}
    start = {"key": keys, "hp": hp, "inputs": {}}
    state = jax.jit(population.lift(plan)(initialise_fn(stage), stage))((), start, shared)[1]
    counters = {"step": jnp.int32(0), "n": jnp.int32(cfg.updates), "fresh": jnp.array(True)}
    return population.lift(plan)(advance_fn(stage), stage), (
        state,
        {"inputs": {}},
        shared | counters,
    )


def cpu_seconds(run: Callable[..., PyTree], args: tuple[Any, ...]) -> float:
    start = time.process_time()
    jax.block_until_ready(run(*args))
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of IQL beside bare matrix products")
    parser.add_argument("--members", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--updates", type=int, default=800, help="of all members together, about")
    parser.add_argument("--width", type=int, help="members per tile; by default the rule's")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    jax_setup.start()
    work = 2 * sum(m * k * n for m, k, n in products(iql.Config()))
    print(f"{work / 1e9:.3f} GFLOP an update; CPU seconds per 1,000 updates of a member")
    print("members  tile      iql    floor  share  GFLOP/s of the floor")
    rows = []
    for members in args.members:
        cfg = iql.Config(updates=max(args.updates // members, 8))
        device = jax.devices()[0]
        width = args.width or population.tile_width(members, 1, device.platform, acting=False)
        plan = population.layout(members, [device], width)
        train, given = whole(cfg, members, plan)
        runs = {
            "iql": (jax.jit(train).lower(*given).compile(), given),
            "floor": (jax.jit(floor(cfg, members)).lower(0.0).compile(), (0.0,)),
        }
        for run in runs.values():
            cpu_seconds(*run)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.repeats):
            for name, run in runs.items():  # alternating, since the load of the machine changes
                seconds[name].append(cpu_seconds(*run))
        done = cfg.updates * members / 1000
        each = {name: statistics.median(values) / done for name, values in seconds.items()}
        share = statistics.median(
            b / a for a, b in zip(seconds["iql"], seconds["floor"], strict=True)
        )
        rows.append({"members": members, "width": plan.width, "share": share} | each)
        print(
            f"{members:>7} {plan.width:>5} {each['iql']:>8.2f} {each['floor']:>8.2f} {share:>6.2f} "
            f"{work / 1e6 / each['floor']:>9.1f}",
            flush=True,
        )
    if args.json:
        files.write_json(args.json, {"versions": provenance.versions(), "rows": rows})


if __name__ == "__main__":
    main()
