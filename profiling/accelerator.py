"""The measurements that decide jaxrl's rules on an accelerator, in one call of ten minutes.

    python profiling/accelerator.py --out DIR [--seconds 560] [--small] [--rows NAME ...]

Rows run in order of value. Each is written to DIR/NAME.json when it ends, and a row that does not
fit into the remaining seconds is left out. At the end the script prints what the figures say about
the rules of `jaxrl.population`. `--small` is a test of the script, on any backend, in tiny sizes.

Rates are environment steps, or gradient steps of offline agents, per second of wall time: the
median of three launches after a first one. Compile times are seconds of wall time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from duel_rows import MINATAR, OFFLINE
from stages import Launch, Task, prepare

from jaxrl import envs
from jaxrl.agents import pqn
from jaxrl.precision import Precision
from jaxrl.program import train
from jaxrl.runs import files, provenance
from jaxrl.types import PyTree

CARTPOLE = Task("pqn", {"total_steps": 10**9, "hidden": [64, 64]}, "CartPole-v1")
BREAKOUT = Task("pqn", MINATAR, "Breakout-MinAtar")
HOPPER = Task(
    "ppo",
    {
        "total_steps": 10**9,
        "num_envs": 2048,
        "num_steps": 20,
        "minibatches": 32,
        "epochs": 4,
        "actor": [256, 256],
        "critic": [256, 256],
        "normalise_obs": True,
    },
    "brax:hopper",
)
IQL = Task("iql", {"updates": 10**6, "hidden": [256, 256]}, **OFFLINE)
OFQL = Task("ofql", {"updates": 10**6}, **OFFLINE)
SAC = Task(
    "sac",
    {"total_steps": 10**8, "num_envs": 1, "capacity": 100_000, "warmup": 1_000},
    "Pendulum-v1",
)

PRECISIONS = (
    Precision("highest"),
    Precision("default"),
    Precision("bfloat16"),
    Precision("default", "bfloat16"),
)

Rows = Iterator[dict[str, Any]]


def members_of(task: Task, counts: list[int], updates: int) -> Rows:
    """Rates against the number of members, in the layout of the rule."""
    for members in counts:
        yield {"members": members} | measured(prepare(task, members, updates))


def widths_of(task: Task, members: int, widths: list[int], updates: int) -> Rows:
    """Rates against the width of a tile."""
    for width in widths:
        yield {"members": members, "width": width} | measured(
            prepare(task, members, updates, width)
        )


def precisions_of(task: Task, members: int, updates: int) -> Rows:
    """Speed, and distance of the parameters from those of float32, for each precision."""
    exact = None
    for precision in PRECISIONS:
        launch = prepare(task, members, updates, precision=precision)
        state = launch.run()
        flat = np.concatenate([np.ravel(x) for x in floats(state)])
        exact = flat if exact is None else exact
        apart = float(np.sqrt(np.mean((flat - exact) ** 2) / np.mean(exact**2)))
        yield precision._asdict() | {"relative_distance": apart} | measured(launch)


def repeats_of(task: Task, members: int, updates: int) -> Rows:
    """Whether two launches, and two compilations, give equal bits."""
    first, second = prepare(task, members, updates), prepare(task, members, updates)
    states = [bits(launch.run()) for launch in (first, first, second)]
    yield {"same_program": states[0] == states[1], "compiled_again": states[0] == states[2]}


def exports() -> Rows:
    """A whole run, exported and called on this backend."""
    program = pqn.program(pqn.Config(total_steps=8192), envs.make("CartPole-v1"), evals=2)
    run, key = jax.jit(lambda key: train(program)(key).returns), jax.random.key(0)
    blob = jax.export.export(run)(key).serialize()
    again = jax.export.deserialize(blob).call(key)
    yield {"bytes": len(blob), "equal": bool(jnp.array_equal(again, run(key), equal_nan=True))}


def rows(small: bool) -> dict[str, Callable[[], Rows]]:
    """The measurements in order of value."""
    many = [1, 4] if small else [1, 32, 256, 1024, 4096]
    some = [1, 2] if small else [1, 8, 64, 256]
    widths = [1, 2] if small else [16, 64, 256, 1024]
    total, n, few = (4, 1, 2) if small else (1024, 10, 200)
    found: dict[str, Callable[[], Rows]] = {
        "pqn_cartpole_members": lambda: members_of(CARTPOLE, many, n),
        "pqn_cartpole_widths": lambda: widths_of(CARTPOLE, total, widths, n),
        "iql_members": lambda: members_of(IQL, some, few),
        "iql_widths": lambda: widths_of(IQL, some[-1], [1, *some[1:]], few),
        "pqn_breakout_members": lambda: members_of(BREAKOUT, many[: 2 if small else 4], n),
        "precision_iql": lambda: precisions_of(IQL, some[1], few),
        "precision_pqn": lambda: precisions_of(CARTPOLE, some[1], n),
        "bits_pqn": lambda: repeats_of(CARTPOLE, some[1], n),
        "bits_iql": lambda: repeats_of(IQL, some[1], few),
        "ofql_members": lambda: members_of(OFQL, some[:3], few),
        "sac_members": lambda: members_of(SAC, some[:3], few),
        "export": exports,
    }
    if not small:
        found["ppo_hopper"] = lambda: members_of(HOPPER, [1, 4], 4)
    return found


def measured(launch: Launch) -> dict[str, Any]:
    """The rate of a launch, its compile time and its memory."""
    launch.run()
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        launch.run()
        seconds.append(time.perf_counter() - begin)
    return {
        "rate": launch.units / statistics.median(seconds),
        "compile_cpu_s": launch.compile_s,
        "temporary_bytes": getattr(launch.memory, "temp_size_in_bytes", None),
        "peak_bytes": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
    }


def floats(state: PyTree) -> list[np.ndarray]:
    """The floating-point leaves of a state, on the host."""
    leaves = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    return [np.asarray(x, np.float64) for x in leaves]


def bits(state: PyTree) -> bytes:
    return b"".join(x.tobytes() for x in floats(state))


def advice(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What the figures say about the rules."""
    lines = []
    for name, rows in found.items():
        if name.endswith("_widths") and rows:
            best = max(rows, key=lambda row: row["rate"])
            lines.append(f"{name}: the fastest tile has {best['width']} members")
        for row in rows[1:] if name.startswith("precision_") else ():
            what = f"{row['matmul']} products, {row['compute']} networks"
            gain, apart = row["rate"] / rows[0]["rate"], row["relative_distance"]
            lines.append(f"{name}: {what}: {gain:.2f}x, parameters {apart:.1e} apart")
        if name.startswith("bits_") and rows:
            again = "equal" if all(rows[0].values()) else f"different: {rows[0]}"
            lines.append(f"{name}: bits of repeated runs are {again}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Measurements on an accelerator")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=560.0)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rows", nargs="+", choices=rows(False))
    args = parser.parse_args()
    device, begin = jax.devices()[0], time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    about = {"device": device.device_kind, "versions": provenance.versions()}
    found: dict[str, list[dict[str, Any]]] = {}
    for name, row in rows(args.small).items():
        if args.rows and name not in args.rows:
            continue
        found[name] = []
        try:
            for record in row():
                found[name].append(record)
                files.write_json(args.out / f"{name}.json", about | {"rows": found[name]})
                spent = time.perf_counter() - begin
                print(f"{spent:5.0f} s  {name}  {record}", flush=True)
                if spent > args.seconds:
                    break
        except Exception as error:  # the other rows are still worth having
            print(f"{name} failed: {type(error).__name__}: {error}", flush=True)
        if time.perf_counter() - begin > args.seconds:
            print("out of time")
            break
    print("\n".join(advice(found)))


if __name__ == "__main__":
    main()
