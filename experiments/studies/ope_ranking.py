"""Study: which estimator ranks policies best without playing them?

    python -m jaxrl.experiments.studies.ope_ranking --task cartpole --out DIR
    python -m jaxrl.experiments.studies.ope_ranking --task dmsd --data FILE --out DIR

Ten candidates: five policies of different quality, each with two amounts of noise.

    cartpole   episodes of at most 200 steps; PPO with five learning rates, epsilon 0 and 0.3; data
               of the first snapshot of another PPO run that is a third of the way to the best one,
               with its log-probabilities, 50,000 rows, another run for every seed
    dmsd       TD3+BC with five weights of Q, trained on the last 200 episodes of the dataset, std
               0.05 and 0.3; 150 other episodes of the dataset for every seed, and a fitted
               behaviour policy

`--seed` evaluates one dataset: DIR/TASK-SEED.json. Without it, those of all seeds are summarised:
DIR/ope_TASK.json has intervals of each metric over datasets. True values are means of 10,000
episodes of each candidate.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

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
FQE = {"updates": 10_000, "hidden": (64, 64), "lr": 1e-3}
NOISE = {"cartpole": {"epsilon": (0.0, 0.3)}, "dmsd": {"std": (0.05, 0.3)}}


def candidates(task: str, out: Path, data: Path | None) -> Path:
    """The finished run of the five policies; trained once."""
    path = out / f"candidates-{task}"
    if task == "cartpole":
        values = {"agent.lr": [1e-5, 3e-5, 1e-4, 3e-4, 2.5e-3]}
        agent, own = "ppo", {"env": "CartPole-v1", "env_options": SHORT}
        sizes = {"total_steps": 60_000}
    else:
        values = {"agent.alpha": [0.05, 0.3, 1.0, 2.5, 20.0]}
        agent, own = "td3bc", {"env": "dmsd", "data": save(data, out / "training.npz", 800, 200)}
        sizes = {"updates": 3_000, "hidden": (64, 64)}
    if not (path / "summary.json").is_file():
        sweep.sweep(agent, **own, sweep=values, agent=sizes, evals=1, out=path)
    return path


def save(data: Path | None, file: Path, first: int, count: int) -> Path:
    """Writes some episodes of a dataset as a dataset of its own."""
    if data is None:
        raise SystemExit("dmsd needs --data FILE")
    rows = offline.episodes_of(datasets.load(data), first, count)
    datasets.save(file, datasets.Dataset(rows, {}))
    return file


def logged(task: str, out: Path, seed: int, data: Path | None) -> Path:
    """The file of the dataset of one seed."""
    file = out / f"{task}-{seed}.npz"
    if task == "dmsd":
        return save(data, file, 150 * seed, 150)
    settings = {"agent.total_steps": 60_000, "env_options": SHORT, "seed": 1000 + seed}
    ((_, found),) = collect.make("CartPole-v1", ["medium"], 50_000, "ppo", settings)
    datasets.save(file, found)
    return file


def evaluate(task: str, out: Path, seed: int, data: Path | None) -> None:
    """Writes the agreement of all estimators on the dataset of one seed."""
    run, file = candidates(task, out, data), logged(task, out, seed, data)
    truth = out / f"true-{task}.json"
    known = json.loads(truth.read_text()) if truth.is_file() else None
    options = OpeOptions(data=file, **NOISE[task], **FQE)  # type: ignore[arg-type]
    options = dataclasses.replace(options, episodes=0 if known else EPISODES)
    found: Found = ope.run([run], options)
    if known is None:
        files.write_json(truth, found.columns["true"])
    found = found._replace(columns={**found.columns, "true": known or found.columns["true"]})
    names = [name for name in NAMES if np.isfinite(found.estimate(name)).all()]
    rows = {name: agreement(found, name) for name in names}
    curves = {name: {key: x.tolist() for key, x in by_k(found, name).items()} for name in names}
    own = {"behaviour": found.behaviour, "columns": dict(found.columns)}
    files.write_json(out / f"{task}-{seed}.json", own | {"metrics": rows, "by_k": curves})


def summarise(task: str, out: Path) -> None:
    """Prints and writes the intervals over all seeds in `out`."""
    every = [json.loads(file.read_text()) for file in sorted(out.glob(f"{task}-*.json"))]
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
        "settings": {"fqe": FQE, "noise": NOISE[task], "episodes": EPISODES},
        "true": every[0]["columns"]["true"],
        "behaviour": [each["behaviour"] for each in every],
        "effective": [each["columns"]["effective"] for each in every],
        "estimators": found,
    }
    files.write_json(out / f"ope_{task}.json", told)


def main() -> None:
    parser = argparse.ArgumentParser(description="Estimators of values against true values")
    parser.add_argument("--task", choices=list(NOISE), required=True)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    jax_setup.start()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.seed is None:
        summarise(args.task, args.out)
    else:
        evaluate(args.task, args.out, args.seed, args.data)


if __name__ == "__main__":
    main()
