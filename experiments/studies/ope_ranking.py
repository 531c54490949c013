"""Study: which estimator ranks policies best without playing them?

    python -m jaxrl.experiments.studies.ope_ranking --task cartpole --seeds 0 1 2 3 4 --out DIR
    python -m jaxrl.experiments.studies.ope_ranking --task cartpole --out DIR
    python -m jaxrl.experiments.studies.ope_ranking --draw FILE ... --out PICTURE

CartPole, Acrobot or Pendulum with episodes of at most 200 steps. Ten candidates: PPO with five
learning rates, each with two amounts of noise (epsilon or std, `NOISE`). Data: 50,000 rows of
another PPO run for every seed. `--level medium` takes the first snapshot that is a third of the way
to the best one, `--level expert` the best one. Log-probabilities are recorded ones in CartPole and
Acrobot, those of a fitted policy in Pendulum.

`--seeds` evaluates one dataset each: DIR/TASK-LEVEL-SEED.json. Without it, those of all seeds are
summarised: DIR/ope_TASK_LEVEL.json has intervals of each metric over datasets. Datasets of the
seeds from 100 on are for choosing `--tau`, and are not in the intervals. True values are means of
10,000 episodes of each candidate.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
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
from jaxrl.runs import figures, files, provenance

EPISODES = 10_000
SHORT = {"max_steps": 200}
FQE: dict[str, Any] = {"updates": 5_000, "hidden": (64, 64), "lr": 1e-3}
TAU = 0.1  # Polyak step size of FQE
DRAWN = ("fqe", "dr", "sndr", "snpdis", "sntis")
TUNING = 100  # first seed of the datasets for choosing it
ENVS = {"cartpole": "CartPole-v1", "acrobot": "Acrobot-v1", "pendulum": "Pendulum-v1"}
NOISE: dict[str, dict[str, Any]] = {
    "cartpole": {"epsilon": (0.0, 0.3)},
    "acrobot": {"epsilon": (0.0, 0.3)},
    "pendulum": {"std": (0.1, 0.5)},
}
STEPS = {"cartpole": 60_000, "acrobot": 100_000, "pendulum": 100_000}  # of training
RATES = [1e-5, 3e-5, 1e-4, 3e-4, 2.5e-3]


def candidates(task: str, out: Path) -> Path:
    """The finished run of the five policies; trained once."""
    path = out / f"candidates-{task}"
    if not (path / "summary.json").is_file():
        sweep.sweep(
            "ppo",
            env=ENVS[task],
            env_options=SHORT,
            sweep={"agent.lr": RATES},
            agent={"total_steps": STEPS[task]},
            evals=1,
            out=path,
        )
    return path


def logged(task: str, level: str, out: Path, seed: int, steps: int) -> Path:
    """The file of the dataset of one seed, whose PPO run has so many steps."""
    file = out / f"{task}-{level}-{seed}.npz"
    if file.is_file():
        return file
    settings = {"agent.total_steps": steps, "env_options": SHORT, "seed": 1000 + seed}
    ((_, found),) = collect.make(ENVS[task], [level], 50_000, "ppo", settings)
    datasets.save(file, found)
    return file


def evaluate(task: str, level: str, out: Path, seed: int, tau: float, steps: int) -> None:
    """Writes the agreement of all estimators on the dataset of one seed."""
    run, file = candidates(task, out), logged(task, level, out, seed, steps)
    truth = out / f"true-{task}.json"
    known = json.loads(truth.read_text()) if truth.is_file() else None
    options = OpeOptions(data=file, tau=tau, **NOISE[task], **FQE)
    options = dataclasses.replace(options, episodes=0 if known else EPISODES)
    found: Found = ope.run([run], options)
    if known is None:
        files.write_json(truth, found.columns["true"])
    found = found._replace(columns={**found.columns, "true": known or found.columns["true"]})
    names = [name for name in NAMES if np.isfinite(found.estimate(name)).all()]
    rows = {name: agreement(found, name) for name in names}
    curves = {name: {key: x.tolist() for key, x in by_k(found, name).items()} for name in names}
    own = {"behaviour": found.behaviour, "tau": tau, "steps": steps, "columns": dict(found.columns)}
    name = f"{seed}" if seed < TUNING else f"tuning-{seed}-{tau:g}"
    own |= {"metrics": rows, "by_k": curves}
    files.write_json(out / f"{task}-{level}-{name}.json", own)


def summarise(task: str, level: str, out: Path) -> None:
    """Prints and writes the intervals over all seeds in `out`."""
    start = f"{task}-{level}-tuning-"
    tuning = {  # by seed and tau
        path.stem.removeprefix(start): json.loads(path.read_text())["metrics"]
        for path in sorted(out.glob(f"{start}*.json"))
    }
    paths = sorted(out.glob(f"{task}-{level}-[0-9]*.json"))
    every = [json.loads(path.read_text()) for path in paths]
    rows = [datasets.load(path.with_suffix(".npz")).transitions for path in paths]
    found, scale = {}, np.ptp(every[0]["columns"]["true"])
    for name in NAMES:
        if not all(name in each["metrics"] for each in every):
            continue  # no finite estimate of a candidate
        columns = {
            key: np.array([each["metrics"][name][key] for each in every], float)
            for key in every[0]["metrics"][name]
        }
        columns["error"] = np.sqrt(columns.pop("MSE")) / scale
        found[name] = {
            key: offline.interval(x) for key, x in columns.items() if np.isfinite(x).all()
        }
        print(f"{name:<7}", *(f"{key} {offline.told(x)}" for key, x in found[name].items()))
    # [seeds, k]; std@k is 0, and the ratio undefined, at k = 1.
    ratios = {
        name: np.array([each["by_k"][name]["SharpeRatio@k"] for each in every], float)[:, 1:]
        for name in found
    }
    curves = {name: [offline.interval(x) for x in ratio.T] for name, ratio in ratios.items()}
    told = {
        "versions": provenance.versions(),
        "settings": {
            "fqe": FQE | {"tau": every[0]["tau"]},
            "noise": NOISE[task],
            "level": level,
            "steps": every[0].get("steps", STEPS[task]),
            "episodes": EPISODES,
        },
        "true": every[0]["columns"]["true"],
        "behaviour": [each["behaviour"] for each in every],
        "episodes": [int(each.start.sum()) for each in rows],
        "terminated": [int(each.terminated.sum()) for each in rows],
        "effective": [each["columns"]["effective"] for each in every],
        "fqe": [each["columns"]["fqe"] for each in every],
        "tuning": tuning,
        "estimators": found,
        "by_k": curves,
    }
    files.write_json(out / f"ope_{task}_{level}.json", told)


def draw(paths: Sequence[Path], out: Path) -> None:
    """Draws SharpeRatio@k with its intervals against k, one panel per summary, three in a row."""
    wide = min(3, len(paths))
    tall = -(-len(paths) // wide)
    figure = figures.new(4.2 * wide, 3.4 * tall + figures.below(len(DRAWN)))
    for i, path in enumerate(paths):
        found = json.loads(path.read_text())
        axes = figure.add_subplot(tall, wide, i + 1)
        for j, name in enumerate(DRAWN):
            if name not in found["by_k"]:
                continue
            points = found["by_k"][name]
            k = np.arange(2, len(points) + 2)
            colour, dash = figures.style(j)
            low, high = zip(*(point["ci95"] for point in points), strict=True)
            axes.fill_between(k, low, high, color=colour, alpha=0.12, lw=0)
            axes.plot(
                k, [x["iqm"] for x in points], dash, color=colour, marker="o", ms=3, label=name
            )
        figures.dress(
            axes, "k" if i >= len(paths) - wide else "", "" if i % wide else "SharpeRatio@k"
        )
        axes.set_yscale("symlog", linthresh=1)
        figures.title(axes, path.stem.removeprefix("ope_").removesuffix("_cpu").replace("_", ", "))
        if i == len(paths) - wide:
            figures.legend(axes, len(DRAWN))
    figures.save(figure, out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Estimators of values against true values")
    parser.add_argument("--task", choices=list(ENVS), default="cartpole")
    parser.add_argument("--level", choices=["medium", "medium-expert", "expert"], default="medium")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--steps", type=int, help="of the PPO runs that collect data")
    parser.add_argument("--tau", type=float, default=TAU)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draw", type=Path, nargs="+", help="files of summaries")
    args = parser.parse_args()
    if args.draw:
        draw(args.draw, args.out)
        return
    jax_setup.start()
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds or ():
        evaluate(args.task, args.level, args.out, seed, args.tau, args.steps or STEPS[args.task])
    if not args.seeds:
        summarise(args.task, args.level, args.out)


if __name__ == "__main__":
    main()
