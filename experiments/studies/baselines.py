"""Study: ReBRAC and PRDC beside TD3+BC and IQL; IQL's policy losses on the same critics.

    python -m jaxrl.experiments.studies.baselines --task dmsd --data FILE --agent prdc --out DIR
    python -m jaxrl.experiments.studies.baselines --task hole --agent prdc --out DIR

Tasks:

    dmsd   the first 200 episodes (20,000 rows) of a dataset of DMSD, rewards less 5
    maze   a dataset of maze:medium, rewards less 1; the score is the success rate
    hopper a dataset of brax:hopper
    hole   one step: states in [-1, 1], reward -(a - 0.5)²; where |s| < 0.3 the data have actions
           near -0.5 only, elsewhere near 0.5. The score is the mean return in the hole, -1 for the
           data's actions there and 0 for the best one
    cliff  the same states and data; reward a + 0.5 up to a = 0.7, where the data end, and -1
           beyond. The score is that of all states: 0.7 for the data's actions, 1.2 for the best one

Each agent tries three points, in the hole and at the cliff seven strengths, on the seeds 100 and
101 and is trained again at the best one with the seeds 0 to 5. `--agent iql-16` is IQL with
`best_of_n` and 16 candidates, `iql-awr` and `iql-ddpg_bc` have the other policy losses. These have
half as many updates, and for a seed the same critics. `prdc-close`, `rebrac-loose` and `iql-soft`
try three other points. DIR/TASK-AGENT.json has all returns and is not made again;
DIR/offline_TASK.json has those of all agents given, of which the first is the reference.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import envs
from jaxrl.agents import iql, prdc, rebrac, td3bc
from jaxrl.algorithm import Algorithm
from jaxrl.envs import datasets
from jaxrl.experiments import jax_setup
from jaxrl.experiments.studies import offline
from jaxrl.program import Result
from jaxrl.runs import files, provenance, stats
from jaxrl.types import Array, Box, Env, EnvSpec, PyTree, TimeStep, Transition

SEEDS, TRIED = 6, (100, 101)
SIZES: dict[str, Any] = {"batch_size": 64, "hidden": (64, 64)}
UPDATES = {"dmsd": 8_000, "maze": 8_000, "hopper": 8_000, "hole": 2_000, "cliff": 2_000}
EPISODES = {"dmsd": 200, "maze": 100, "hopper": 20, "hole": 200, "cliff": 200}
COMMON = {
    "dmsd": {"lr": 1e-3, "tau": 0.01, "reward_shift": -5.0},
    "maze": {"lr": 1e-3, "tau": 0.01, "reward_shift": -1.0},
    "hopper": {"lr": 1e-3, "tau": 0.01},
    "hole": {"lr": 1e-3},
    "cliff": {"lr": 1e-3},
}
# Values that each agent, or each policy loss of IQL, tries: (of `Config`, of `Hypers`).
Point = tuple[dict[str, Any], dict[str, float]]
POINTS: dict[str, tuple[Point, ...]] = {
    "td3bc": (({}, {"alpha": 1.0}), ({}, {"alpha": 2.5}), ({}, {"alpha": 10.0})),
    "iql": (
        ({}, {"expectile": 0.7, "beta": 3.0}),
        ({}, {"expectile": 0.9, "beta": 3.0}),
        ({}, {"expectile": 0.9, "beta": 10.0}),
    ),
    "rebrac": (
        ({}, {"actor_penalty": 0.1, "critic_penalty": 0.0}),
        ({}, {"actor_penalty": 0.1, "critic_penalty": 0.1}),
        ({}, {"actor_penalty": 0.02, "critic_penalty": 0.01}),
    ),
    "prdc": (
        ({}, {"alpha": 2.5, "beta": 2.0}),
        ({}, {"alpha": 7.5, "beta": 7.5}),
        ({}, {"alpha": 10.0, "beta": 0.5}),
    ),
    # Closer to the data: a smaller weight of Q, or a larger weight of states in the distance.
    "prdc-close": (
        ({}, {"alpha": 0.5, "beta": 2.0}),
        ({}, {"alpha": 1.0, "beta": 10.0}),
        ({}, {"alpha": 1.0, "beta": 100.0}),
    ),
    # Farther from the data; β₁ = 0.05 weighs Q and cloning as TD3+BC's α = 10 in two dimensions.
    "rebrac-loose": (
        ({}, {"actor_penalty": 0.05, "critic_penalty": 0.0}),
        ({}, {"actor_penalty": 0.01, "critic_penalty": 0.0}),
        ({}, {"actor_penalty": 0.003, "critic_penalty": 0.001}),
    ),
    # For larger rewards: advantages of several units make the weights exp(β A) of β = 3 extreme.
    "iql-soft": tuple(({}, {"expectile": 0.7, "beta": beta}) for beta in (0.03, 0.1, 0.3)),
    # On the same critics: one expectile, and points of the policy loss.
    "iql-awr": tuple(({}, {"expectile": 0.9, "beta": beta}) for beta in (1.0, 3.0, 10.0)),
    "iql-ddpg_bc": tuple(({}, {"expectile": 0.9, "beta": beta}) for beta in (0.3, 1.0, 3.0)),
    "iql-N": tuple(({"threshold": x}, {"expectile": 0.9}) for x in (0.0, 0.5)),
}
STRENGTHS = (0.03, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
GRIDS: dict[str, tuple[Point, ...]] = {
    "td3bc": tuple(({}, {"alpha": x}) for x in STRENGTHS),
    "prdc": tuple(({}, {"alpha": x, "beta": 0.5}) for x in STRENGTHS),
    "rebrac": tuple(({}, {"actor_penalty": 1 / x}) for x in STRENGTHS),
}
LOSSES = ("awr", "ddpg_bc")  # of IQL's policy, beside best-of-N
AGENTS = {
    "td3bc": td3bc.ALGORITHM,
    "iql": iql.ALGORITHM,
    "rebrac": rebrac.ALGORITHM,
    "prdc": prdc.ALGORITHM,
}
HOLE = EnvSpec("hole", (1,), Box((-1.0,), (1.0,), (1,)), 1)


def reward_of(task: str, action: Any) -> Any:
    """Rewards [...] of actions [...] of the tasks hole and cliff."""
    return -((action - 0.5) ** 2) if task == "hole" else jnp.where(action <= 0.7, action + 0.5, -1)


def one_step(task: str) -> Env:
    """The environment of the hole, which starts in the hole, or of the cliff."""
    width = 0.3 if task == "hole" else 1.0

    def reset(key: Array, params: PyTree) -> tuple[PyTree, Array]:
        obs = jax.random.uniform(key, (1,), minval=-width, maxval=width)
        return obs, obs

    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        reward = reward_of(task, action[0])
        return state, TimeStep(state, reward, jnp.bool_(True), jnp.bool_(False))

    return Env(HOLE, {}, reset, step)


def one_step_data(task: str, rows: int = 2_000) -> Transition:
    """Episodes of one step; actions scatter by 0.1, up to 0.7."""
    rng = np.random.default_rng(0)
    obs: Any = rng.uniform(-1, 1, (rows, 1)).astype(np.float32)
    centre = np.where(np.abs(obs) < 0.3, -0.5, 0.5)
    action: Any = np.clip(centre + 0.1 * rng.normal(size=(rows, 1)), -1, 0.7).astype(np.float32)
    yes: Any = np.ones(rows, bool)
    reward: Any = np.asarray(reward_of(task, action[:, 0]))
    return Transition(obs, action, reward, obs, yes, ~yes, yes)


def task_of(name: str, data: Path | None) -> tuple[Env, Transition]:
    """The environment and the rows of a task."""
    if name in ("hole", "cliff"):
        return one_step(name), one_step_data(name)
    if data is None:
        raise SystemExit(f"{name} needs --data FILE")
    rows = datasets.load(data)
    if name == "dmsd":
        return envs.make("dmsd"), offline.episodes_of(rows, 0, 200)
    env = envs.make({"maze": "maze:medium", "hopper": "brax:hopper"}[name])
    return env, rows.transitions._replace(extras={})


def algorithm_of(name: str, updates: int) -> tuple[Algorithm, Any, tuple[Point, ...]]:
    """The record and configuration of an agent, and the points to try."""
    base, _, loss = name.partition("-")
    more: dict[str, Any] = {"extraction": loss} if loss in LOSSES else {}
    if loss.isdigit():
        more = {"extraction": "best_of_n", "candidates": int(loss)}
    more |= {"normalise_obs": True}
    cfg = AGENTS[base].Config(**SIZES, updates=updates, **more)
    return AGENTS[base], cfg, POINTS["iql-N" if loss.isdigit() else name]


def run(task: str, agent: str, data: Path | None, out: Path) -> None:
    """Tries the points, trains the best one with further seeds, and writes all returns."""
    env, rows = task_of(task, data)
    loss = agent.partition("-")[2]
    updates = UPDATES[task] // (2 if loss in LOSSES or loss.isdigit() else 1)
    algorithm, cfg, points = algorithm_of(agent, updates)
    points = GRIDS.get(agent, points) if task in ("hole", "cliff") else points

    statics = list({repr(static): static for static, _ in points}.values())
    trainers = [
        offline.trainer(algorithm, dataclasses.replace(cfg, **static), env, episodes=EPISODES[task])
        for static in statics
    ]

    def fit(members: Sequence[tuple[Point, int]]) -> Result:
        """Trains members of equal static values, each a point and a seed."""
        trainer = trainers[statics.index(members[0][0][0])]
        keys = jnp.concatenate([offline.keys_of(seed, 1) for _, seed in members])
        hypers = [COMMON[task] | point[1] for point, _ in members]
        return trainer(keys, offline.hypers_of(algorithm, hypers), rows)

    tried: list[float] = []
    for static in statics:
        members = [(point, seed) for point in points if point[0] == static for seed in TRIED]
        tried += offline.returns(fit(members))[:, -1].reshape(-1, len(TRIED)).mean(1).tolist()
    best = points[int(np.argmax(tried))]
    result = fit([(best, seed) for seed in range(SEEDS)])
    found = {"return": offline.interval(offline.returns(result)[:, -1])}
    found |= {
        name: offline.interval(offline.metric(result, name)[:, -1])
        for name in ("q", "td_error", "action_distance")
    }
    point = best[0] | best[1]
    print(task, agent, point, *(f"{k} {offline.told(x)}" for k, x in found.items()), flush=True)
    own = {"agent": agent, "point": point, "common": COMMON[task], "tried": tried}
    own |= {"updates": updates, "sizes": SIZES}
    files.write_json(out / f"{task}-{agent}.json", own | found)


def summarise(task: str, agents: Sequence[str], out: Path) -> None:
    """Prints and writes the results of agents of a task; the first one is the reference."""
    rows = {agent: json.loads((out / f"{task}-{agent}.json").read_text()) for agent in agents}
    base = rows[agents[0]]["return"]["members"]
    for name, row in rows.items():
        better = stats.probability_of_improvement(row["return"]["members"], base)
        told = ", ".join(f"{key}={x:g}" for key, x in row["point"].items())
        print(f"{name:<12} {offline.told(row['return'])}  P(better) {better:.2f}  {told}")
    found = {"versions": provenance.versions(), "seeds": SEEDS, "agents": rows}
    files.write_json(out / f"offline_{task}.json", found)


def main() -> None:
    parser = argparse.ArgumentParser(description="Offline agents on small tasks")
    parser.add_argument("--task", choices=list(UPDATES), required=True)
    parser.add_argument("--agent", nargs="+", required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    jax_setup.start()
    args.out.mkdir(parents=True, exist_ok=True)
    for agent in args.agent:
        if not (args.out / f"{args.task}-{agent}.json").is_file():
            run(args.task, agent, args.data, args.out)
    summarise(args.task, args.agent, args.out)


if __name__ == "__main__":
    main()
