"""Study: objectives of language-model RL under stale responses, on token tasks.

    python -m jaxrl.experiments.studies.staleness --seeds 8 --updates 600 --out DIR

Responses come from the policy of S updates ago. For each environment and objective one sweep of
`token_pg` over staleness and learning rate is trained in DIR/ENV-OBJECTIVE; sweeps that are
finished are not trained again. Printed, and written to DIR/staleness.json, per setting:

    accuracy   of the greedy policy after training, mean over seeds and its 95 % interval
    entropy    of the policy per token, in nats, in the last part of training
    drift      mean |log π - log μ| of the tokens of batches there, μ being the behaviour policy

DIR/staleness.png shows the accuracies.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrl.experiments import jax_setup
from jaxrl.experiments.sweep import sweep
from jaxrl.runs import figures, files, provenance
from jaxrl.runs.metrics import by_chunk
from jaxrl.runs.records import RunDir, read_metrics
from jaxrl.runs.stats import bootstrap_ci

STALENESS, RATES = (0, 8, 32), (1e-3, 3e-3, 1e-2)
ENVS: dict[str, dict[str, int]] = {"modsum": {}, "carry-add": {"alphabet": 3}}


class Kind(NamedTuple):
    """An objective with its settings; defaults of `token_pg` where nothing is said."""

    name: str
    objective: str
    hypers: dict[str, float] = {}  # noqa: RUF012 (never written to)


PLAIN = "reinforce topr ppo opmd rec asymre sequence_is bapo minpro"
MORE = "grpo gspo cispo remix red_weight opmd_log_z prefixrl chord scope_step"
WIDE = Kind("rec_wide", "rec", {"clip_low": 0.6, "clip_high": 2.0})
KINDS = (*(Kind(n, n) for n in PLAIN.split()), WIDE, *(Kind(n, n) for n in MORE.split()))


def train(env: str, kind: Kind, seeds: int, updates: int, out: Path) -> Path:
    """Trains the sweep of one objective, or finds it finished; returns its folder."""
    path = out / f"{env}-{kind.name}"
    sweep(
        "token_pg",
        env=f"tokens:{env}",
        env_options=ENVS[env],
        agent={"objective": kind.objective, "updates": updates, **kind.hypers},
        sweep={"agent.staleness": list(STALENESS), "agent.lr": list(RATES)},
        seeds=seeds,
        evals=6,
        eval_episodes=125,
        out=path,
    )
    return path


def rows(env: str, kind: Kind, path: Path) -> list[dict[str, Any]]:
    """One row per staleness and learning rate of the sweep in `path`."""
    found = []
    for staleness, folder in zip(STALENESS, sorted(path.glob("[0-9]*")), strict=True):
        run = RunDir(folder)
        assert run.config()["config"]["settings"]["staleness"] == staleness
        members = run.members()
        last = {
            name: values[-1]
            for name, values in by_chunk(read_metrics(run, "agent"), len(members["id"])).items()
        }
        for rate in RATES:
            own = np.isclose(members["agent.lr"], rate)
            accuracy = members["final_return"][own].astype(float)
            found.append(
                {
                    "env": env,
                    "objective": kind.name,
                    "staleness": staleness,
                    "lr": rate,
                    "accuracy": accuracy.tolist(),
                    "mean": float(accuracy.mean()),
                    "ci95": list(bootstrap_ci(accuracy, np.mean)),
                    "entropy": float(last["entropy"][own].mean()),
                    "drift": float(last["drift"][own].mean()),
                }
            )
    return found


def told(found: Sequence[dict[str, Any]]) -> str:
    """A markdown table: an objective per row, accuracies of the best learning rate and of each."""
    heads = [f"S = {s}, lr {r:g}" for s in STALENESS for r in RATES]
    lines = ["| environment | objective | " + " | ".join(heads) + " |"]
    lines.append("|---" * (2 + len(heads)) + "|")
    for env, name in dict.fromkeys((row["env"], row["objective"]) for row in found):
        own = [row for row in found if (row["env"], row["objective"]) == (env, name)]
        cells = ["{mean:.2f} ({ci95[0]:.2f} to {ci95[1]:.2f})".format(**row) for row in own]
        lines.append(f"| {env} | `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(path: Path, found: Sequence[dict[str, Any]]) -> None:
    """Accuracies with intervals: a row of panels per environment, a panel per staleness."""
    envs = list(dict.fromkeys(row["env"] for row in found))
    names = list(dict.fromkeys(row["objective"] for row in found))
    figure = figures.new(9.0, 1.2 + 0.28 * len(names) * len(envs))
    grid = figure.subplots(len(envs), len(STALENESS), sharex=True, sharey=True, squeeze=False)
    for env, line in zip(envs, grid, strict=True):
        for staleness, axes in zip(STALENESS, line, strict=True):
            for i, rate in enumerate(RATES):
                where = {"env": env, "staleness": staleness, "lr": rate}
                own = [row for row in found if where.items() <= row.items()]
                y = [names.index(row["objective"]) + 0.22 * (i - 1) for row in own]
                mean = np.array([row["mean"] for row in own])
                low, high = np.array([row["ci95"] for row in own]).T
                colour = figures.style(i)[0]
                bars: Any = [mean - low, high - mean]
                axes.errorbar(
                    mean, y, xerr=bars, fmt="o", ms=3, lw=1, color=colour, label=f"lr {rate:g}"
                )
            axes.set_title(f"tokens:{env}, staleness {staleness}", fontsize=8)
            axes.set_yticks(range(len(names)), names, fontsize=7)
            axes.set_xlim(-0.02, 1.02)
            axes.tick_params(axis="x", labelsize=7)
            axes.grid(axis="x", alpha=0.3)
    grid[0][0].invert_yaxis()  # all panels share it
    for axes in grid[-1]:
        axes.set_xlabel("accuracy of the greedy policy", fontsize=8)
    grid[0][0].legend(fontsize=7, loc="lower left")
    figures.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Objectives of language-model RL when stale")
    parser.add_argument("--envs", nargs="+", default=list(ENVS), choices=list(ENVS))
    known = [kind.name for kind in KINDS]
    parser.add_argument("--objectives", nargs="+", default=known, choices=known)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    jax_setup.start()
    found: list[dict[str, Any]] = []
    for env in args.envs:
        for kind in KINDS:
            if kind.name in args.objectives:
                found += rows(env, kind, train(env, kind, args.seeds, args.updates, args.out))

    files.write_json(
        args.out / "staleness.json", {"versions": provenance.versions(), "rows": found}
    )
    draw(args.out / "staleness.png", found)
    print(told(found))


if __name__ == "__main__":
    main()
