"""Study: ReBRAC and PRDC beside TD3+BC and IQL; IQL's policy losses on the same critics.

    python -m jaxrl.experiments.studies.baselines --task dmsd --data FILE --agent prdc --out DIR
    python -m jaxrl.experiments.studies.baselines --task maze --agent prdc --out DIR

Tasks:

    dmsd   the first 200 episodes (20,000 rows) of a dataset of DMSD, rewards less 5
    maze   the maze `umaze`, 10,000 rows of walks between cells (`jaxrl data make`, level play),
           rewards less 1; the score is the fraction of episodes that reach the goal
    hole   one step: states in [-1, 1], reward -(a - 0.5)²; where |s| < 0.3 the data have actions
           near -0.5 only, elsewhere near 0.5. The score is the mean return in the hole; a policy
           that follows the data there has -1, the best one 0

Each agent tries three points on the seeds 100 and 101 and is trained again at the best one with the
seeds 0 to 5. `--agent iql-N` is IQL with `best_of_n` and N candidates, `iql-ddpg_bc` with DDPG+BC.
DIR/TASK-AGENT.json has all returns; `--summary` prints a table and writes DIR/offline_TASK.json.
"""

from __future__ import annotations

import argparse
import json
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
from jaxrl.experiments.data import collect
from jaxrl.experiments.studies import offline
from jaxrl.runs import files, provenance, stats
from jaxrl.types import Array, Box, Env, EnvSpec, PyTree, TimeStep, Transition

SEEDS, TRIED = 6, (100, 101)
SIZES: dict[str, Any] = {"batch_size": 128, "hidden": (64, 64)}
UPDATES = {"dmsd": 10_000, "maze": 10_000, "hole": 3_000}
COMMON = {
    "dmsd": {"lr": 1e-3, "tau": 0.01, "reward_shift": -5.0},
    "maze": {"lr": 1e-3, "tau": 0.02, "reward_shift": -1.0},
    "hole": {"lr": 1e-3},
}
POINTS: dict[str, tuple[dict[str, float], ...]] = {
    "td3bc": ({"alpha": 1.0}, {"alpha": 2.5}, {"alpha": 10.0}),
    "iql": (
        {"expectile": 0.7, "beta": 3.0},
        {"expectile": 0.9, "beta": 3.0},
        {"expectile": 0.9, "beta": 10.0},
    ),
    "rebrac": (
        {"actor_penalty": 0.1, "critic_penalty": 0.0},
        {"actor_penalty": 0.1, "critic_penalty": 0.1},
        {"actor_penalty": 0.02, "critic_penalty": 0.01},
    ),
    "prdc": (
        {"alpha": 2.5, "beta": 2.0},
        {"alpha": 7.5, "beta": 7.5},
        {"alpha": 10.0, "beta": 0.5},
    ),
}
AGENTS = {
    "td3bc": td3bc.ALGORITHM,
    "iql": iql.ALGORITHM,
    "rebrac": rebrac.ALGORITHM,
    "prdc": prdc.ALGORITHM,
}
HOLE = EnvSpec("hole", (1,), Box((-1.0,), (1.0,), (1,)), 1)


def hole() -> Env:
    """The environment of the hole, which starts in the hole: |s| < 0.3."""

    def reset(key: Array, params: PyTree) -> tuple[PyTree, Array]:
        obs = jax.random.uniform(key, (1,), minval=-0.3, maxval=0.3)
        return obs, obs

    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        reward = -((action[0] - 0.5) ** 2)
        return state, TimeStep(state, reward, jnp.bool_(True), jnp.bool_(False))

    return Env(HOLE, {}, reset, step)


def hole_data(rows: int = 2_000) -> Transition:
    """Episodes of one step; actions scatter by 0.1."""
    rng = np.random.default_rng(0)
    obs: Any = rng.uniform(-1, 1, (rows, 1)).astype(np.float32)
    centre = np.where(np.abs(obs) < 0.3, -0.5, 0.5)
    action: Any = np.clip(centre + 0.1 * rng.normal(size=(rows, 1)), -1, 1).astype(np.float32)
    yes: Any = np.ones(rows, bool)
    reward: Any = -((action[:, 0] - 0.5) ** 2)
    return Transition(obs, action, reward, obs, yes, ~yes, yes)


def task_of(name: str, data: Path | None) -> tuple[Env, Transition]:
    """The environment and the rows of a task."""
    if name == "hole":
        return hole(), hole_data()
    if name == "maze":
        ((_, found),) = collect.make("maze:umaze", ["play"], 10_000, None, {"seed": 0})
        return envs.make("maze:umaze"), found.transitions._replace(extras={})
    if data is None:
        raise SystemExit("dmsd needs --data FILE")
    return envs.make("dmsd"), offline.episodes_of(datasets.load(data), 0, 200)


def algorithm_of(name: str, updates: int) -> tuple[Algorithm, Any, str]:
    """The record and configuration of an agent, and the key of its points."""
    base, _, loss = name.partition("-")
    more: dict[str, Any] = {}
    if loss:
        more = {"extraction": "best_of_n", "candidates": int(loss)} if loss.isdigit() else {}
        more = more or {"extraction": loss}
    found = AGENTS[base]
    return found, found.Config(**SIZES, updates=updates, **more), base


def run(task: str, agent: str, data: Path | None, out: Path) -> None:
    """Tries the points, trains the best one with further seeds, and writes all returns."""
    env, rows = task_of(task, data)
    algorithm, cfg, base = algorithm_of(agent, UPDATES[task])
    points = [COMMON[task] | point for point in POINTS[base]]
    fit = offline.trainer(algorithm, cfg, env, evals=1, episodes=200)
    keys = jnp.concatenate([offline.keys_of(seed, 1) for seed in TRIED] * len(points))
    members = [point for point in points for _ in TRIED]
    tried = offline.returns(fit(keys, offline.hypers_of(algorithm, members), rows))[:, -1]
    by_point = tried.reshape(len(points), len(TRIED)).mean(1)
    best = points[int(np.argmax(by_point))]
    result = fit(offline.keys_of(0, SEEDS), offline.hypers_of(algorithm, [best] * SEEDS), rows)
    found = {"return": offline.interval(offline.returns(result)[:, -1])}
    found |= {
        name: offline.interval(offline.metric(result, name)[:, -1])
        for name in ("q", "td_error", "action_distance")
    }
    print(task, agent, best, *(f"{k} {offline.told(x)}" for k, x in found.items()), flush=True)
    own = {"agent": agent, "point": best, "tried": by_point.tolist(), "updates": UPDATES[task]}
    files.write_json(out / f"{task}-{agent}.json", own | {"sizes": SIZES} | found)


def summarise(task: str, out: Path) -> None:
    """Prints and writes the results of all agents of a task."""
    rows = {}
    for file in sorted(out.glob(f"{task}-*.json")):
        row = json.loads(file.read_text())
        rows[row.pop("agent")] = row
    base = rows["td3bc"]["return"]["members"]
    for name, row in rows.items():
        better = stats.probability_of_improvement(row["return"]["members"], base)
        told = {key: round(x, 3) for key, x in row["point"].items()}
        print(f"{name:<12} {offline.told(row['return'])}  better than td3bc {better:.2f}  {told}")
    files.write_json(
        out / f"offline_{task}.json", {"versions": provenance.versions(), "agents": rows}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Offline agents on small tasks")
    parser.add_argument("--task", choices=list(UPDATES), required=True)
    parser.add_argument("--agent", nargs="+", default=[])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    jax_setup.start()
    args.out.mkdir(parents=True, exist_ok=True)
    for agent in args.agent:
        run(args.task, agent, args.data, args.out)
    if args.summary:
        summarise(args.task, args.out)


if __name__ == "__main__":
    main()
