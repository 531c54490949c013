"""Suites of environments on a CPU: rates of the environment and of training, returns beside random.

    python profiling/suites.py ROW [ROW ...] [--json profiling/results/suites_cpu.json]

Each row needs the extra of its suite. Rates are per CPU second, of all cores together, so that
other programs change them little. The environment alone is stepped 64 times at once with random
actions. Seeds are trained one after another in one compiled program, which is compiled once; the
returns are those after the steps of the row, of 64 episodes per seed, greedy and with exploration.
Rows are merged into the JSON file.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import envs
from jaxrl.evaluate import evaluator
from jaxrl.exploration import random_policy
from jaxrl.program import train
from jaxrl.rollout import rollout
from jaxrl.runs.provenance import versions
from jaxrl.types import Env, HyperParams, PyTree

EPISODES = 64
SIZES: dict[str, Any] = {"num_envs": 64, "num_steps": 32, "minibatches": 8, "epochs": 2}
PQN = SIZES | {"hidden": (128, 128)}
RNN = PQN | {"memory": 64}
PPO = SIZES | {"actor": (128, 128), "critic": (128, 128)}
CONTROL = SIZES | {"critic": (128, 128), "actor": (128, 128)}
LR = {"lr": 5e-4}
Q = LR | {"reward_scale": 1.0, "eps_end": 0.05}
CLASSIC = "craftax:Craftax-Classic-Symbolic-v1"
SPREAD = "jaxmarl:MPE_simple_spread_v3"


class Row(NamedTuple):
    """An agent in an environment of a suite, with its budget."""

    agent: str
    env: str
    steps: int
    sizes: dict[str, Any]
    hypers: dict[str, Any]
    seeds: int = 2
    options: dict[str, Any] = {}


ROWS: dict[str, Row] = {
    "craftax pqn": Row("pqn", CLASSIC, 1_000_000, PQN, Q),
    "craftax ppo": Row("ppo", CLASSIC, 1_000_000, PPO, LR),
    "craftax pqn no pool": Row("pqn", CLASSIC, 50_000, PQN, Q, 1, {"reset_pool": 0}),
    "craftax pqn pool": Row("pqn", CLASSIC, 50_000, PQN, Q, 1),
    "cartpole pqn": Row("pqn_continuous", "playground:CartpoleBalance", 500_000, CONTROL, LR),
    "cartpole ppo": Row("ppo", "playground:CartpoleBalance", 500_000, PPO, LR),
    "reacher pqn": Row("pqn_continuous", "playground:ReacherEasy", 500_000, CONTROL, LR),
    "reacher ppo": Row("ppo", "playground:ReacherEasy", 500_000, PPO, LR),
    "connect four": Row("pqn", "pgx:connect_four", 1_000_000, PQN, Q),
    "2048": Row("pqn", "jumanji:Game2048-v1", 1_000_000, PQN, Q | {"reward_scale": 0.01}),
    "minigrid": Row("ppo", "xminigrid:MiniGrid-Empty-8x8", 500_000, PPO, LR),
    "spread ppo": Row("ppo", SPREAD, 500_000, PPO, LR),
    "spread pqn": Row("pqn", SPREAD, 500_000, PQN, Q | {"reward_scale": 0.1}),
    "spread vdn": Row("pqn_vdn", SPREAD, 500_000, PQN, Q | {"reward_scale": 0.1}),
    "smax vdn": Row("pqn_vdn", "jaxmarl:SMAX-2s3z", 2_000_000, PQN, Q, 3),
    "smax vdn rnn": Row("pqn_vdn_rnn", "jaxmarl:SMAX-2s3z", 2_000_000, RNN, Q, 3),
    "smax ppo": Row("ppo", "jaxmarl:SMAX-2s3z", 2_000_000, PPO, LR, 3),
}


def timed(fn: Callable[..., PyTree], *args: PyTree) -> tuple[PyTree, float]:
    """The result of `fn`, and its CPU seconds."""
    clock = time.process_time()
    found = jax.block_until_ready(fn(*args))
    return found, time.process_time() - clock


def environment_rate(env: Env) -> float:
    """Steps per CPU second of 64 environments that act at random, resets included."""
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
    return source.env_steps * count / seconds


def measured(row: Row) -> dict[str, Any]:
    """The figures of a row of `ROWS`."""
    module = importlib.import_module(f"jaxrl.agents.{row.agent}")
    env = envs.make(row.env, **row.options)
    cfg, hp = module.Config(total_steps=row.steps, **row.sizes), module.Hypers(**row.hypers)
    run = train(module.program(cfg, env, evals=1, episodes=EPISODES))
    sampled = evaluator(env, module.make(cfg, env.spec), EPISODES, explore=True)
    population = lambda keys, hp: jax.lax.map(lambda key: run(key, hp), keys)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(row.seeds))
    compiled, compile_s = timed(lambda: jax.jit(population).lower(keys, hp).compile())
    result, seconds = timed(compiled, keys, hp)
    explore = lambda x: sampled(x[0], HyperParams(hp, env.params), {}, x[1]).returns
    explored = jax.jit(lambda x: jax.lax.map(explore, x))((result.state, keys))
    play = evaluator(env, random_policy(env.spec.action, env.spec.masked), EPISODES)
    chance = jax.jit(play)((), HyperParams((), env.params), {}, jax.random.key(1))
    steps = cfg.updates * cfg.num_envs * cfg.num_steps
    evals = result.evals["agent"]
    return row._asdict() | {
        "env_steps_per_cpu_s": environment_rate(env),
        "compile_cpu_s": compile_s,
        "steps": steps,
        "train_steps_per_cpu_s": row.seeds * steps / seconds,
        "returns": np.mean(evals.returns[:, -1], -1).tolist(),
        "returns_with_exploration": np.mean(explored, -1).tolist(),
        "random_return": float(np.mean(chance.returns)),
        "metrics": {k: float(np.mean(v[:, -1])) for k, v in evals.measured.items()},
        "random_metrics": {k: float(np.mean(v)) for k, v in chance.measured.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("rows", nargs="+", choices=ROWS)
    parser.add_argument("--json", type=Path, default=Path("profiling/results/suites_cpu.json"))
    args = parser.parse_args()
    for name in args.rows:
        found = measured(ROWS[name])
        print(name, json.dumps(found), flush=True)
        table = json.loads(args.json.read_text()) if args.json.exists() else {}
        table |= {"versions": versions(), name: found}
        args.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
