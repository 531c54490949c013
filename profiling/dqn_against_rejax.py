"""Speed of DQN, compared with rejax 0.1.3 at equal network, environments, batches and updates.

    python profiling/dqn_against_rejax.py [--members 1 8 32] [--capacity 50000] [--json FILE]

Uses the virtual environment of `against_rejax.py` (`--peer DIR`). Reported are environment steps
per CPU second (all threads) without compilation, warm-up included. Double DQN on CartPole-v1 with
the sizes of rejax's configuration: 10 environments, 5 gradient steps on 100 rows after each step of
all environments, a replay buffer of 50,000 transitions, 64 x 64 ReLU networks. Each is run as its
users would: rejax under one vmap, jaxrl in its own layout of tiles and devices.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from against_rejax import _time as timed
from against_rejax import make_peer

from jaxrl.recipes import replayed
from jaxrl.types import HyperParams

ENVS, GRADIENT_STEPS, BATCH, WARMUP, TAU = 10, 5, 100, 1_000, 0.02


def rejax(members: int, steps: int, capacity: int, repeats: int) -> list[float]:
    """CPU seconds of each repeat of rejax; runs in its virtual environment."""
    import jax
    from rejax import DQN  # type: ignore[import-not-found]

    algo = DQN.create(
        env="CartPole-v1",
        agent_kwargs={"activation": "relu"},
        total_timesteps=steps,
        eval_freq=steps,
        num_envs=ENVS,
        num_epochs=GRADIENT_STEPS,
        batch_size=BATCH,
        buffer_size=capacity,
        fill_buffer=WARMUP,
        polyak=1 - TAU,
        skip_initial_evaluation=True,
    ).replace(eval_callback=lambda *_: ())
    train = jax.jit(jax.vmap(algo.train) if members > 1 else algo.train)
    keys = (
        jax.random.split(jax.random.PRNGKey(0), members) if members > 1 else jax.random.PRNGKey(0)
    )
    return timed(lambda: jax.block_until_ready(train(keys)), repeats)


def jaxrl(members: int, steps: int, capacity: int, repeats: int) -> list[float]:
    import jax
    import jax.numpy as jnp

    from jaxrl import envs, population
    from jaxrl.agents import dqn
    from jaxrl.experiments import jax_setup
    from jaxrl.experiments.plan import hyper_table
    from jaxrl.program import Program, Stage

    jax_setup.start()
    env = envs.make("CartPole-v1")
    cfg = dqn.Config(
        total_steps=steps - WARMUP,
        num_envs=ENVS,
        num_steps=1,
        gradient_steps=GRADIENT_STEPS,
        batch_size=BATCH,
        capacity=capacity,
        warmup=WARMUP,
        target_every=1,
        hidden=(64, 64),
    )
    agent = dqn.make(cfg, env.spec)
    source = replayed(cfg, env, agent)
    stage = Stage(name="agent", learner=agent, source=source, updates=cfg.updates)
    plan = population.layout(members)
    hp = hyper_table(HyperParams(dqn.Hypers(tau=TAU), env.params), members)
    hp = plan.split(plan.pad(hp, members))
    ids = plan.split(plan.pad(jnp.arange(members), members))
    train = jax.jit(population.train(Program((stage,)), plan))
    return timed(lambda: jax.block_until_ready(train(jax.random.key(0), ids, hp, {})), repeats)


def measure(python: Path | str, name: str, members: int, steps: int, args: Any) -> float:
    """Environment steps per CPU second, measured by a new process of this script."""
    words = [str(python), __file__, "--only", name, "--members", str(members)]
    words += ["--steps", str(steps), "--repeats", str(args.repeats)]
    words += ["--capacity", str(args.capacity)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return steps * members / statistics.median(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of DQN beside rejax's")
    parser.add_argument("--members", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--steps", type=int, default=0, help="of one member; 0: 8e4 in all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--capacity", type=int, default=50_000, help="of the replay buffer")
    parser.add_argument("--peer", type=Path, default=Path(".venv-rejax"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=["rejax", "jaxrl"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        run = rejax if args.only == "rejax" else jaxrl
        print(json.dumps(run(args.members[0], args.steps, args.capacity, args.repeats)))
        return
    peer, rows = make_peer(args.peer), []
    print("members       rejax       jaxrl   ratio   (environment steps per CPU second)")
    for members in args.members:
        steps = args.steps or max(80_000 // (ENVS * members) * ENVS, 5_000)
        theirs = measure(peer, "rejax", members, steps, args)
        ours = measure(sys.executable, "jaxrl", members, 10 * steps, args)
        rows.append({"members": members, "rejax": theirs, "jaxrl": ours, "ratio": ours / theirs})
        print(f"{members:>7} {theirs:>11,.0f} {ours:>11,.0f} {ours / theirs:>7.2f}", flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
