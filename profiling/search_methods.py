"""Successive halving and population-based training against random search, at equal training steps.

    python profiling/search_methods.py [--env CartPole-v1 --steps 8192] [--repetitions 5]

PQN (64 x 64), few environment steps per trial, four hyperparameters, one seed per trial. 64 trials
with successive halving (three rungs, one in four survives) make as many training steps as ten
complete trials, so the other two methods have ten. Each method returns one policy, the best in its
last evaluation. Methods are compared by the return of this policy in 256 new episodes, since the
return in the evaluation that selected it is biased upwards.

A task distinguishes the methods only if random search rarely finds the best possible return. With
--random 32, the returns of 32 random trials are printed and nothing is compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl import drive, population
from jaxrl.experiments import restore
from jaxrl.experiments.plan import make_plan
from jaxrl.experiments.search import loop, study
from jaxrl.runs import records
from jaxrl.runs.stats import bootstrap_ci

RANGES = {
    "agent.lr": "log:1e-5:1e-1",
    "agent.lam": "lin:0:1",
    "agent.eps_end": "log:0.005:0.5",
    "agent.reward_scale": "log:0.01:1",
}
METHODS: dict[str, dict[str, Any]] = {
    "random": {"trials": 10, "batch": 10},
    "halving": {"trials": 64, "batch": 64, "halving": True},
    "pbt": {"trials": 10, "batch": 10, "pbt": True},
}
EPISODES = 256


class Task(NamedTuple):
    env: str
    steps: int


def run(task: Task, method: Mapping[str, Any], seed: int, out: Path) -> dict[str, Any]:
    """Runs a search and returns its summary."""
    agent = {"hidden": (64, 64), "total_steps": task.steps, "num_envs": 16, "num_steps": 32}
    return loop.search(
        "pqn",
        env=task.env,
        preset="none",
        seed=seed,
        evals=16,
        eval_episodes=16,
        agent=agent,
        sampler="random",
        range=RANGES,
        out=str(out),
        **method,
    )


def once(task: Task, method: str, seed: int, out: Path) -> tuple[float, float, int]:
    """(return of the selected policy in new episodes, its return at selection, env steps)."""
    found = run(task, METHODS[method], seed, out)
    trial = study.best(study.read_study(out), 1)[0]
    folder, row = records.RunDir(out / trial.user_attrs["run"]), trial.user_attrs["row"]
    settings = restore.settings_of(folder)
    options = dataclasses.replace(settings.options, eval_episodes=EPISODES)
    ready = make_plan(dataclasses.replace(settings, options=options))
    state = restore.read_state(ready, folder, (row, row + 1))
    key, layout = jax.random.key(1000 + seed), population.layout(1)
    episodes = drive.evaluate(ready.program, layout, state, key, {}, ids=ready.seeds[row : row + 1])
    return float(episodes.returns.mean()), found["best"]["value"], found["env_steps"]


def look(task: Task, trials: int) -> str:
    """Returns of `trials` random trials as text, from worst to best."""
    with tempfile.TemporaryDirectory() as name:
        run(task, {"trials": trials, "batch": trials}, 7000, Path(name) / "it")
        values = [trial.value for trial in study.best(study.read_study(Path(name) / "it"), trials)]
    return ", ".join(f"{x:.0f}" for x in reversed(values))


def compare(task: Task, methods: Sequence[str], count: int) -> str:
    lines = []
    for method in methods:
        with tempfile.TemporaryDirectory() as name:
            rows = [once(task, method, 100 * i, Path(name) / str(i)) for i in range(count)]
        returns = np.array([row[0] for row in rows])
        low, high = bootstrap_ci(returns, statistic=np.mean)
        each = ", ".join(f"{x:.0f}" for x in returns)
        lines.append(
            f"{method}: {returns.mean():.0f} ({low:.0f} to {high:.0f}) of {each}; chosen by "
            f"{np.mean([row[1] for row in rows]):.0f}; {rows[0][2]:,} environment steps"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--steps", type=int, default=8_192)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--random", type=int, default=0)
    given = parser.parse_args()
    task = Task(given.env, given.steps)
    if given.random:
        found = look(task, given.random)
    else:
        found = compare(task, given.methods, given.repetitions)
    print(f"{task.env}, {task.steps:,} steps a trial\n{found}")


if __name__ == "__main__":
    main()
