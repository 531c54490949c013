"""Total speed over population size: tiles against one vmap, one device against all.

    python profiling/scaling.py [--members 1 8 64 512 4096] [--steps 4_000_000] [--json FILE]

Environment steps per second of all members together without compilation, PQN (64 x 64) on CartPole.
On a CPU each core is a device. The larger width takes all members of a device in one tile.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import envs, population
from jaxrl.agents import pqn
from jaxrl.experiments import jax_setup
from jaxrl.experiments.plan import hyper_table
from jaxrl.program import Program, Stage
from jaxrl.rollout import rollout
from jaxrl.runs import files, provenance
from jaxrl.types import HyperParams


def measure(members: int, devices: list[Any], width: int | None, steps: int) -> dict[str, Any]:
    """Steps per second of all members together in a run of about `steps` steps; best of two."""
    env, window = envs.make("CartPole-v1"), pqn.Config.num_envs * pqn.Config.num_steps
    cfg = pqn.Config(hidden=(64, 64), total_steps=max(steps // (members * window), 1) * window)
    agent = pqn.make(cfg, env.spec)
    source = rollout(env, agent, cfg.num_envs, cfg.num_steps)
    stage = Stage(name="agent", learner=agent, source=source, updates=cfg.updates)
    plan = population.layout(members, devices, width)
    hp = plan.split(plan.pad(hyper_table(HyperParams(pqn.Hypers(), env.params), members), members))
    args = (jax.random.key(0), plan.split(plan.pad(jnp.arange(members), members)), hp, {})
    run = jax.jit(population.train(Program((stage,)), plan)).lower(*args).compile()
    walls = []
    for _ in range(2):
        clock = time.perf_counter()
        jax.block_until_ready(run(*args))
        walls.append(time.perf_counter() - clock)
    memory = run.memory_analysis()
    return {
        "members": members,
        "devices": plan.devices,
        "width": plan.width,
        "steps_per_s": cfg.total_steps * members / min(walls),
        "temporary_bytes": getattr(memory, "temp_size_in_bytes", 0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed against the size of the population")
    parser.add_argument("--members", type=int, nargs="+", default=[1, 8, 64, 512, 4096])
    parser.add_argument("--steps", type=int, default=4_000_000, help="steps in one measurement")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    jax_setup.start()
    everything, rows = jax.devices(), []
    print("members devices  width      steps/s  temporary MiB")
    for members in args.members:
        for devices in ([everything[0]], everything)[: min(members, len(everything), 2)]:
            share = -(-members // len(devices))
            for width in sorted({population.layout(members, devices).width, share}):
                found = measure(members, devices, width, args.steps)
                rows.append(found)
                print(
                    f"{members:>7} {found['devices']:>7} {found['width']:>6} "
                    f"{found['steps_per_s']:>12,.0f} {found['temporary_bytes'] / 2**20:>14.1f}",
                    flush=True,
                )
    if args.json:
        about = {"device": jax.devices()[0].device_kind, "versions": provenance.versions()}
        files.write_json(args.json, about | {"rows": rows})


if __name__ == "__main__":
    main()
