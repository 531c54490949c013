"""Speed of PQN, compared with rejax 0.1.3 at equal network, environments and minibatches.

    python profiling/against_rejax.py [--members 1 32 256] [--json FILE]

rejax needs gymnax 0.0.9, which is incompatible with jaxrl. It runs in a second process with its own
virtual environment (`--peer DIR`, created if missing; needs a package index). The two alternate.
Reported are environment steps per CPU second (all threads) without compilation, CartPole-v1, 64 x
64 network, 32 environments x 64 steps, 16 minibatches x 4 epochs. Each is run as its users would:
rejax under one vmap, jaxrl in its own layout of tiles and devices.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from jaxrl.types import HyperParams

WINDOW = 32 * 64
PINS = ["rejax==0.1.3", "gymnax==0.0.9", "six", "jax==0.10.2"]


def rejax(members: int, steps: int, repeats: int) -> list[float]:
    """CPU seconds of each repeat of rejax; runs in its virtual environment."""
    import jax
    from rejax import PQN  # type: ignore[import-not-found]

    algo = PQN.create(
        env="CartPole-v1",
        total_timesteps=steps,
        eval_freq=steps,
        num_envs=32,
        num_steps=64,
        num_minibatches=16,
        num_epochs=4,
        skip_initial_evaluation=True,
    ).replace(eval_callback=lambda *_: ())
    train = jax.jit(jax.vmap(algo.train) if members > 1 else algo.train)
    keys = (
        jax.random.split(jax.random.PRNGKey(0), members) if members > 1 else jax.random.PRNGKey(0)
    )
    return _time(lambda: jax.block_until_ready(train(keys)), repeats)


def jaxrl(members: int, steps: int, repeats: int) -> list[float]:
    import jax
    import jax.numpy as jnp

    from jaxrl import envs, population
    from jaxrl.agents import pqn
    from jaxrl.experiments import jax_setup
    from jaxrl.experiments.plan import hyper_table
    from jaxrl.program import Program, Stage
    from jaxrl.rollout import rollout

    jax_setup.start()
    env, cfg = envs.make("CartPole-v1"), pqn.Config(total_steps=steps, hidden=(64, 64))
    agent = pqn.make(cfg, env.spec)
    source = rollout(env, agent, cfg.num_envs, cfg.num_steps)
    stage = Stage(name="agent", learner=agent, source=source, updates=cfg.updates)
    plan = population.layout(members)
    hp = plan.split(plan.pad(hyper_table(HyperParams(pqn.Hypers(), env.params), members), members))
    ids = plan.split(plan.pad(jnp.arange(members), members))
    train = jax.jit(population.train(Program((stage,)), plan))
    return _time(lambda: jax.block_until_ready(train(jax.random.key(0), ids, hp, {})), repeats)


def _time(run, repeats: int) -> list[float]:
    run()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return seconds


def measure(python: Path | str, name: str, members: int, steps: int, repeats: int) -> float:
    """Environment steps per CPU second, measured by a new process of this script."""
    words = [str(python), __file__, "--only", name, "--members", str(members)]
    words += ["--steps", str(steps), "--repeats", str(repeats)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    seconds = json.loads(done.stdout.splitlines()[-1])
    return steps * members / statistics.median(seconds)


def make_peer(folder: Path) -> Path:
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"installing {', '.join(PINS)} into {folder}")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PINS], check=True)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of PQN beside rejax's")
    parser.add_argument("--members", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--steps", type=int, default=0, help="of one member; 0: 4e6 in all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer", type=Path, default=Path(".venv-rejax"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=["rejax", "jaxrl"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        run = rejax if args.only == "rejax" else jaxrl
        print(json.dumps(run(args.members[0], args.steps, args.repeats)))
        return
    peer, rows = make_peer(args.peer), []
    print("members       rejax       jaxrl   ratio   (environment steps per CPU second)")
    for members in args.members:
        windows = max(4_000_000 // (WINDOW * members), 4)
        steps = args.steps or windows * WINDOW
        theirs = measure(peer, "rejax", members, steps, args.repeats)
        ours = measure(sys.executable, "jaxrl", members, steps, args.repeats)
        rows.append({"members": members, "rejax": theirs, "jaxrl": ours, "ratio": ours / theirs})
        print(f"{members:>7} {theirs:>11,.0f} {ours:>11,.0f} {ours / theirs:>7.2f}", flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
