"""Environments of suites on a CPU: rates of the environment and of training, returns beside random.

    python profiling/suites.py ROW [ROW ...] [--json profiling/results/suites_cpu.json]

Rates are per CPU second, of all cores together, so that a loaded machine changes them little. The
environments are stepped 64 at a time with random actions. A row's return is that of one seed after
a small budget, a check that the agent learns, not a result. Rows are merged into the JSON file.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import envs
from jaxrl.evaluate import evaluator
from jaxrl.exploration import random_policy
from jaxrl.program import train
from jaxrl.rollout import rollout
from jaxrl.types import Env, HyperParams, PyTree

SIZES: dict[str, Any] = {"num_envs": 64, "num_steps": 32, "minibatches": 8, "epochs": 2}
PQN = SIZES | {"hidden": (128, 128)}
PPO = SIZES | {"actor": (128, 128), "critic": (128, 128)}
RATES = {"lr": 5e-4}
GAME = RATES | {"reward_scale": 1.0, "eps_end": 0.05}
CLASSIC = "craftax:Craftax-Classic-Symbolic-v1"

# name: (agent, environment, its options, steps, config, hyperparameters)
ROWS: dict[str, tuple[str, str, dict[str, Any], int, dict[str, Any], dict[str, Any]]] = {
    "craftax pool": ("pqn", CLASSIC, {}, 65_536, PQN, RATES),
    "craftax no pool": ("pqn", CLASSIC, {"reset_pool": 0}, 16_384, PQN, RATES),
    "connect four": ("pqn", "pgx:connect_four", {}, 500_000, PQN, GAME),
    "2048": ("pqn", "jumanji:Game2048-v1", {}, 300_000, PQN, RATES | {"reward_scale": 0.01}),
    "minigrid": ("ppo", "xminigrid:MiniGrid-Empty-8x8", {}, 300_000, PPO, RATES),
    "cartpole": ("ppo", "playground:CartpoleBalance", {}, 131_072, PPO, RATES),
    "spread ppo": ("ppo", "jaxmarl:MPE_simple_spread_v3", {}, 500_000, PPO, RATES),
    "spread pqn": ("pqn", "jaxmarl:MPE_simple_spread_v3", {}, 500_000, PQN, RATES),
    "spread vdn": ("pqn_vdn", "jaxmarl:MPE_simple_spread_v3", {}, 500_000, PQN, RATES),
    "smax vdn": ("pqn_vdn", "jaxmarl:SMAX-2s3z", {}, 300_000, PQN, GAME),
}


def timed(fn: Callable[..., PyTree], *args: PyTree) -> tuple[PyTree, float]:
    """The result, and CPU seconds."""
    clock = time.process_time()
    found = jax.block_until_ready(fn(*args))
    return found, time.process_time() - clock


def environment_rates(env: Env) -> dict[str, float]:
    """Steps per CPU second of a rollout of 64 environments that act at random, resets included."""
    policy = random_policy(env.spec.action, env.spec.masked)
    source = rollout(env, policy, 64, 64)
    hp = HyperParams((), env.params)
    src = jax.jit(lambda key: source.init(key, (), hp, {}))(jax.random.key(0))
    step = lambda src, key: source.next(src, (), hp, {}, key, jnp.int32(0))[::2]
    compiled = jax.jit(step).lower(src, jax.random.key(0)).compile()
    (src, _), _ = timed(compiled, src, jax.random.key(0))
    seconds, count = 0.0, 0
    while seconds < 4 and count < 50:
        (src, _), spent = timed(compiled, src, jax.random.key(count))
        seconds, count = seconds + spent, count + 1
    return {"env_steps_per_cpu_s": source.env_steps * count / seconds}


def row(name: str) -> dict[str, Any]:
    """The measurements of a row of `ROWS`."""
    agent, env_name, options, steps, sizes, hypers = ROWS[name]
    module = importlib.import_module(f"jaxrl.agents.{agent}")
    env = envs.make(env_name, **options)
    found: dict[str, Any] = {"agent": agent, "env": env_name, "options": options}
    found |= environment_rates(env)
    cfg, hp = module.Config(total_steps=steps, **sizes), module.Hypers(**hypers)
    run = train(module.program(cfg, env, evals=1, episodes=64))
    clock = time.perf_counter()
    compiled = jax.jit(run).lower(jax.random.key(0), hp).compile()
    found["compile_s"] = time.perf_counter() - clock
    result, seconds = timed(compiled, jax.random.key(0), hp)
    made = cfg.updates * cfg.num_envs * cfg.num_steps
    found |= {"steps": made, "train_steps_per_cpu_s": made / seconds}
    found["return"] = float(np.mean(result.returns))
    evals = result.evals["agent"]
    found |= {k: float(np.mean(v)) for k, v in evals.measured.items() if "won" in k}
    play = evaluator(env, random_policy(env.spec.action, env.spec.masked), 64)
    chance = jax.jit(play)((), HyperParams((), env.params), {}, jax.random.key(1))
    found["random_return"] = float(np.mean(chance.returns))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("rows", nargs="+", choices=ROWS)
    parser.add_argument("--json", type=Path, default=Path("profiling/results/suites_cpu.json"))
    args = parser.parse_args()
    for name in args.rows:
        found = row(name)
        print(name, json.dumps(found), flush=True)
        table = json.loads(args.json.read_text()) if args.json.exists() else {}
        args.json.write_text(json.dumps(table | {name: found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
