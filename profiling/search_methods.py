"""Successive halving and population-based training against random search, at equal steps.

    python profiling/search_methods.py [--repetitions 5]

PQN (64 x 64) on CartPole, 32,768 environment steps a trial, four settings searched, one seed a
trial. 64 trials with successive halving (one in four goes on, three rungs) make as many steps as
ten whole ones, so the other two methods have ten. Every method hands over one policy, the best by
its last evaluation; what is compared is its return in 256 fresh episodes, since that of the
evaluation it was chosen by is too high.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.experiments import load, search, study
from jaxrl.stats import bootstrap_ci

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


def once(method: str, seed: int, out: Path) -> tuple[float, float, int]:
    """(return of the policy it hands over, what it was chosen by, environment steps)."""
    found = search.search(
        "pqn",
        env="CartPole-v1",
        preset="none",
        seed=seed,
        evals=16,
        eval_episodes=16,
        agent={"hidden": (64, 64), "total_steps": 32_768, "num_envs": 16, "num_steps": 32},
        sampler="random",
        range=RANGES,
        out=str(out),
        **METHODS[method],
    )
    trial = study.best(study.read_study(out), 1)[0]
    run = out / trial.user_attrs["run"]
    if method == "halving":  # the last rung, in which few are left
        last = max(run.glob("rung*"))
        settings = load.settings_of(load.open_for_reading(last))
        near = [np.isclose(p["agent.lr"], trial.params["agent.lr"]) for p in settings.points]
        run, row = last, int(np.argmax(near))
    else:
        row = trial.user_attrs["row"]
    episodes = load.evaluate(run, EPISODES, 1000 + seed)[1]
    return float(episodes.returns[row].mean()), found["best"]["value"], found["env_steps"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    count = parser.parse_args().repetitions
    lines = []
    for method in METHODS:
        with tempfile.TemporaryDirectory() as name:
            rows = [once(method, 100 * i, Path(name) / str(i)) for i in range(count)]
        returns = np.array([row[0] for row in rows])
        low, high = bootstrap_ci(returns, statistic=np.mean)
        each = ", ".join(f"{x:.0f}" for x in returns)
        lines.append(
            f"{method}: {returns.mean():.0f} ({low:.0f} to {high:.0f}) of {each}; chosen by "
            f"{np.mean([row[1] for row in rows]):.0f}; {rows[0][2]:,} environment steps"
        )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
