"""Updates of an agent, compared with the matrix products of these updates alone.

    python profiling/floors.py [--tasks pqn iql edac] [--json FILE] [--table JSON]

The products are read from the traced update, with the lengths of its loops. The floor is a program
that computes these products and nothing else; one element of each result is added to an operand, so
that XLA cannot remove any. Reported are CPU seconds (all threads) per update of one member, without
compilation, medians of alternating repeats, with the lowest and highest share of a repeat. Rows of
FILE that are not measured again stay.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from duel_rows import MINATAR, OFFLINE, ROWS
from stages import Task, prepare, random_rows, stage_of

from jaxrl.experiments import jax_setup
from jaxrl.program import initialise_fn
from jaxrl.runs import files, provenance
from jaxrl.types import Array, HyperParams, PyTree

OFF = {"updates": 10**6}


def same_as(row: str) -> Task:
    """The task of jaxrl's side of a duel."""
    sizes = ROWS[row][0].sizes
    return Task(sizes["agent"], sizes["config"], sizes["env"])


TASKS = {
    "pqn": (Task("pqn", {"total_steps": 10**9, "hidden": [64, 64]}, "CartPole-v1"), 40),
    "pqn256": (Task("pqn", {"total_steps": 10**9, "hidden": [256, 256]}, "CartPole-v1"), 10),
    "breakout": (Task("pqn", MINATAR, "Breakout-MinAtar"), 4),
    "iql": (Task("iql", OFF | {"hidden": [256, 256]}, **OFFLINE), 200),
    "bc": (Task("bc", OFF | {"hidden": [256, 256]}, **OFFLINE), 1000),
    # The policy is updated in every step, so that the expensive branch is always taken.
    "td3bc": (Task("td3bc", OFF | {"hidden": [256, 256], "policy_every": 1}, **OFFLINE), 200),
    "sac": (same_as("sac"), 200),
    "ppo": (same_as("ppo"), 40),
    "edac": (Task("edac", OFF, **OFFLINE), 30),
    "edac50": (Task("edac", OFF | {"critics": 50}, **OFFLINE), 10),
}


class Product(NamedTuple):
    """A `dot_general`: shapes of the operands, and its dimension numbers."""

    left: tuple[int, ...]
    right: tuple[int, ...]
    axes: Any

    @property
    def flops(self) -> int:
        (contracted, _), (batch, _) = self.axes
        shared = math.prod(self.left[axis] for axis in (*contracted, *batch))
        return 2 * math.prod(self.left) * math.prod(self.right) // shared


def products(jaxpr: Any, times: int = 1) -> Counter[Product]:
    """How often each product is computed.

    Loops of unknown length count once. Of the branches of a conditional, the most expensive counts.
    A transposed product has its operands in the other order, as XLA computes it.
    """
    found: Counter[Product] = Counter()
    moved = {eqn.invars[0] for eqn in jaxpr.eqns if eqn.primitive.name == "transpose"}
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            left, right = (tuple(x.aval.shape) for x in equation.invars)
            axes = equation.params["dimension_numbers"]
            if equation.outvars[0] in moved:
                left, right = right, left
                axes = tuple((b, a) for a, b in axes)
            found[Product(left, right, axes)] += times
        if equation.primitive.name == "cond":
            branches = [products(branch.jaxpr, times) for branch in equation.params["branches"]]
            found += max(branches, key=gflop)
            continue
        length = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for each in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(each, "jaxpr", each)
                if hasattr(inner, "eqns"):
                    found += products(inner, times * length)
    return found


def gflop(found: Counter[Product]) -> float:
    return sum(product.flops * count for product, count in found.items()) / 1e9


def products_of(task: Task) -> Counter[Product]:
    """The products of one update."""
    stage, env, hypers = stage_of(task)
    hp = HyperParams(jax.tree.map(jnp.float32, hypers), env.params)
    key, step = jax.random.key(0), jnp.int32(0)
    inputs = {"data": random_rows(task.obs, task.act)} if task.offline else {}
    start = {"key": key, "hp": hp, "inputs": {}}
    state = jax.eval_shape(initialise_fn(stage), (), start, {"inputs": inputs})[1]
    traced = jax.make_jaxpr(stage.update)(state.learner, state.source, hp, inputs, key, step)
    return products(traced.jaxpr)


def floor(found: Counter[Product], updates: int) -> Callable[[Array], PyTree]:
    """A program that computes the products `updates` times."""

    def repeated(product: Product, count: int, left: Array) -> Array:
        right = jnp.full(product.right, 0.01)

        def once(_: Array, left: Array) -> Array:
            out = jax.lax.dot_general(left, right, product.axes)
            corner = (0,) * left.ndim
            return left.at[corner].add(1e-6 * out[(0,) * out.ndim])

        return jax.lax.fori_loop(0, count, once, left)

    def update(_: Array, lefts: tuple[Array, ...]) -> tuple[Array, ...]:
        pairs = zip(found.items(), lefts, strict=True)
        return tuple(repeated(product, count, left) for (product, count), left in pairs)

    def run(seed: Array) -> PyTree:
        lefts = tuple(jnp.full(product.left, 0.01) + seed for product in found)
        return jax.lax.fori_loop(0, updates, update, lefts)

    return run


def seconds(run: Callable[[], Any]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def measure(task: Task, updates: int, repeats: int) -> dict[str, Any]:
    """CPU seconds of an update and of its products."""
    found = products_of(task)
    bare = jax.jit(floor(found, updates)).lower(jnp.float32(0)).compile()
    runs = {
        "update": prepare(task, 1, updates, devices=jax.devices()[:1]).run,
        "floor": lambda: jax.block_until_ready(bare(jnp.float32(0))),
    }
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for name in [*runs] * (1 + repeats):  # alternating, since the load of the machine changes
        taken[name].append(seconds(runs[name]))
    each = {name: statistics.median(values[1:]) / updates for name, values in taken.items()}
    ratios = [b / a for a, b in zip(taken["update"][1:], taken["floor"][1:], strict=True)]
    share = {"share": statistics.median(ratios), "share_range": [min(ratios), max(ratios)]}
    return {"gflop": gflop(found)} | share | each


def table(rows: list[dict[str, Any]]) -> str:
    """Shares as a Markdown table."""
    lines = ["| task | GFLOP | update, ms | products, ms | share |", "|---" * 5 + "|"]
    for row in rows:
        low, high = row["share_range"]
        numbers = f"{row['gflop']:.2f} | {1e3 * row['update']:.2f} | {1e3 * row['floor']:.2f}"
        lines.append(
            f"| `{row['task']}` | {numbers} | {row['share']:.2f} ({low:.2f}, {high:.2f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Updates beside their bare matrix products")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two updates, one repeat")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, metavar="JSON", help="only print the table of a file")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.table.read_text())["rows"]))
        return
    jax_setup.start()
    print("task        GFLOP  update ms   floor ms  share")
    rows = {}
    if args.json and args.json.exists():
        rows = {row["task"]: row for row in json.loads(args.json.read_text())["rows"]}
    for name in args.tasks:
        task, updates = TASKS[name]
        row = measure(task, 2 if args.quick else updates, 1 if args.quick else args.repeats)
        rows[name] = {"task": name} | row
        print(
            f"{name:<10} {row['gflop']:>6.2f} {1e3 * row['update']:>10.2f} "
            f"{1e3 * row['floor']:>10.2f} {row['share']:>6.2f}",
            flush=True,
        )
        if args.json:
            files.write_json(
                args.json, {"versions": provenance.versions(), "rows": [*rows.values()]}
            )


if __name__ == "__main__":
    main()
