"""Study: which estimator ranks policies best without playing them?

    python -m jaxrl.experiments.studies.ope_ranking --seed 0 --out DIR
    python -m jaxrl.experiments.studies.ope_ranking --out DIR

CartPole with episodes of at most 200 steps. Ten candidates: PPO with five learning rates, each with
epsilon 0 and 0.3. Data: 50,000 rows of the first snapshot of another PPO run that is a third of the
way to the best one, with its log-probabilities; another run for every seed.

`--seed` evaluates one dataset: DIR/cartpole-SEED.json. Without it, those of all seeds are
summarised: DIR/ope_cartpole.json has intervals of each metric over datasets. True values are means
of 10,000 episodes of each candidate.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.envs import datasets
from jaxrl.experiments import jax_setup, ope, sweep
from jaxrl.experiments.commands import OpeOptions
from jaxrl.experiments.data import collect
from jaxrl.experiments.ope_report import Found, agreement, by_k
from jaxrl.experiments.studies import offline
from jaxrl.ope.estimate import NAMES
from jaxrl.runs import files, provenance

EPISODES = 10_000
SHORT = {"max_steps": 200}
FQE: dict[str, Any] = {"updates": 10_000, "hidden": (64, 64), "lr": 1e-3}
EPSILON = (0.0, 0.3)


def candidates(out: Path) -> Path:
    """The finished run of the five policies; trained once."""
    path = out / "candidates-cartpole"
    if not (path / "summary.json").is_file():
        sweep.sweep(
            "ppo",
            env="CartPole-v1",
            env_options=SHORT,
            sweep={"agent.lr": [1e-5, 3e-5, 1e-4, 3e-4, 2.5e-3]},
            agent={"total_steps": 60_000},
            evals=1,
            out=path,
        )
    return path


def logged(out: Path, seed: int) -> Path:
    """The file of the dataset of one seed."""
    file = out / f"cartpole-{seed}.npz"
    settings = {"agent.total_steps": 60_000, "env_options": SHORT, "seed": 1000 + seed}
    ((_, found),) = collect.make("CartPole-v1", ["medium"], 50_000, "ppo", settings)
    datasets.save(file, found)
    return file


def evaluate(out: Path, seed: int) -> None:
    """Writes the agreement of all estimators on the dataset of one seed."""
    run, file = candidates(out), logged(out, seed)
    truth = out / "true-cartpole.json"
    known = json.loads(truth.read_text()) if truth.is_file() else None
    options = OpeOptions(data=file, epsilon=EPSILON, **FQE)
    options = dataclasses.replace(options, episodes=0 if known else EPISODES)
    found: Found = ope.run([run], options)
    if known is None:
        files.write_json(truth, found.columns["true"])
    found = found._replace(columns={**found.columns, "true": known or found.columns["true"]})
    names = [name for name in NAMES if np.isfinite(found.estimate(name)).all()]
    rows = {name: agreement(found, name) for name in names}
    curves = {name: {key: x.tolist() for key, x in by_k(found, name).items()} for name in names}
    own = {"behaviour": found.behaviour, "columns": dict(found.columns)}
    files.write_json(out / f"cartpole-{seed}.json", own | {"metrics": rows, "by_k": curves})


def summarise(out: Path) -> None:
    """Prints and writes the intervals over all seeds in `out`."""
    every = [json.loads(file.read_text()) for file in sorted(out.glob("cartpole-*.json"))]
    found, scale = {}, np.ptp(every[0]["columns"]["true"])
    for name in every[0]["metrics"]:
        columns = {
            key: np.array([each["metrics"][name][key] for each in every], float)
            for key in every[0]["metrics"][name]
        }
        columns["error"] = np.sqrt(columns.pop("MSE")) / scale
        found[name] = {
            key: offline.interval(x) for key, x in columns.items() if np.isfinite(x).all()
        }
        print(f"{name:<7}", *(f"{key} {offline.told(x)}" for key, x in found[name].items()))
    told = {
        "versions": provenance.versions(),
        "settings": {"fqe": FQE, "epsilon": EPSILON, "episodes": EPISODES},
        "true": every[0]["columns"]["true"],
        "behaviour": [each["behaviour"] for each in every],
        "effective": [each["columns"]["effective"] for each in every],
        "estimators": found,
    }
    files.write_json(out / "ope_cartpole.json", told)


def main() -> None:
    parser = argparse.ArgumentParser(description="Estimators of values against true values")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    jax_setup.start()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.seed is None:
        summarise(args.out)
    else:
        evaluate(args.out, args.seed)


if __name__ == "__main__":
    main()
