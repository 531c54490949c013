"""Evaluations with fewer episodes: what they save, and what the intervals over seeds lose.

    python profiling/looks.py [--quick] [--json FILE]

Runs README's first command (PQN on CartPole-v1, eight seeds). At each of its evaluations, the same
policies are evaluated again with a half, a quarter and an eighth of the episodes; the CPU seconds
of all evaluations are counted separately from those of training. From the returns of the full
evaluations, subsets of the episodes are drawn, the same number for each seed. The width of the 95 %
interval of the IQM over seeds, as in a run's summary, is divided by the width with all episodes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl import drive, envs, population
from jaxrl.compiling import compiled
from jaxrl.experiments import agents, jax_setup, train
from jaxrl.program import Stage, evaluate_fn
from jaxrl.runs import files, provenance, stats

AGENT, ENV, SEEDS = "pqn", "CartPole-v1", 8
EPISODES = 128  # of this command
FEWER = (EPISODES // 2, EPISODES // 4, EPISODES // 8)
DRAWS = 200  # subsets of the episodes of a look


class Looks:
    """Returns of all evaluations of a run, and CPU seconds."""

    def __init__(self, stages: dict[int, Stage]) -> None:
        self.stages = stages  # episodes -> stage
        self.built: dict[int, Any] = {}
        self.seconds: dict[str, float] = {"training": 0.0}
        self.steps: list[int] = []
        self.returns: list[np.ndarray] = []  # [P, episodes] of the full evaluations

    def timed(self, name: str, run: Any, *args: Any, **options: Any) -> Any:
        begin = time.process_time()
        found = jax.block_until_ready(run(*args, **options))
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - begin
        return found

    def evaluate(self, run: Any, index: int, state: Any, step: int) -> Any:
        args = run.to_evaluate(index, state, step)
        if not self.built:  # compiled before anything is timed
            self.built = {
                n: compiled(population.lift(run.plan)(evaluate_fn(stage), stage), args, "cpu")
                for n, stage in self.stages.items()
            }
        found = {n: self.timed(f"{n} episodes", self.built[n], *args)[1] for n in self.built}
        self.steps.append(step)
        self.returns.append(np.asarray(found[EPISODES].returns)[run.placement.rows])
        return found[EPISODES]


def watched(seeds: int, own: dict[str, Any]) -> Looks:
    """README's command, with further evaluations."""
    algorithm, env = agents.load(AGENT), envs.make(ENV)
    stage = lambda n: algorithm.program(algorithm.Config(), env, evals=1, episodes=n).stages[0]
    looks = Looks({n: stage(n) for n in (EPISODES, *FEWER)})
    advance = drive._Run.advance
    drive._Run.advance = lambda *args, **more: looks.timed("training", advance, *args, **more)
    drive._Run.evaluate = lambda run, *args: looks.evaluate(run, *args)
    with tempfile.TemporaryDirectory() as folder:
        options = {"seeds": seeds, "eval_episodes": EPISODES, "out": Path(folder) / "run"}
        train.run(AGENT, env=ENV, **options, agent=own)
    return looks


def widths(returns: np.ndarray, episodes: int, draws: int) -> np.ndarray:
    """Widths [draws] of the 95 % interval with subsets of the episodes of `returns` [P, K]."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(draws if episodes < returns.shape[1] else 1):
        chosen = rng.permuted(np.tile(np.arange(returns.shape[1]), (len(returns), 1)), axis=1)
        scores = np.take_along_axis(returns, chosen[:, :episodes], 1).mean(1)
        low, high = stats.bootstrap_ci(scores)
        found.append(high - low)
    return np.array(found)


def describe(step: int, returns: np.ndarray, draws: int) -> dict[str, Any]:
    """An evaluation: its IQM, interval, and relative widths of the interval with fewer episodes."""
    scores = returns.mean(1)
    low, high = stats.bootstrap_ci(scores)
    row: dict[str, Any] = {"update": step, "iqm": float(stats.iqm(scores)), "ci95": [low, high]}
    row["std_between_seeds"] = float(stats.std(scores))
    row["std_within_seeds"] = float(np.sqrt(np.mean(stats.std(returns, 1) ** 2)))
    if high > low:
        relative = {str(n): widths(returns, n, draws) / (high - low) for n in FEWER}
        row["relative_width"] = {n: quantiles(width) for n, width in relative.items()}
    return row


def quantiles(x: np.ndarray) -> list[float]:
    """Median, and the bounds of the middle 95 %."""
    return np.quantile(x, [0.5, 0.025, 0.975]).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluations with fewer episodes")
    parser.add_argument("--quick", action="store_true", help="two seeds and few updates")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    jax_setup.start()
    looks = watched(2 if args.quick else SEEDS, {"total_steps": 40_960} if args.quick else {})
    rows = [
        describe(step, returns, 5 if args.quick else DRAWS)
        for step, returns in zip(looks.steps, looks.returns, strict=True)
    ]
    print("| update | IQM | 95 % interval | std between, within seeds | relative widths |")
    print("|---" * 5 + "|")
    for row in rows:
        told = ", ".join(f"{w[0]:.2f} ({w[1]:.2f}, {w[2]:.2f})" for w in shown(row))
        low, high = row["ci95"]
        spread = f"{row['std_between_seeds']:.1f}, {row['std_within_seeds']:.1f}"
        print(f"| {row['update']} | {row['iqm']:.1f} | {low:.1f}, {high:.1f} | {spread} | {told} |")
    medians = np.array([[width[0] for width in shown(row)] for row in rows if shown(row)])
    overall = {str(n): quantiles(each) for n, each in zip(FEWER, medians.T, strict=True)}
    print("relative widths, medians of the evaluations:", overall)
    print("CPU seconds:", {name: round(seconds, 2) for name, seconds in looks.seconds.items()})
    if args.json:
        about = {"versions": provenance.versions(), "cpu_seconds": looks.seconds}
        about["relative_width"] = overall
        files.write_json(args.json, about | {"looks": rows})


def shown(row: dict[str, Any]) -> list[list[float]]:
    return list(row.get("relative_width", {}).values())


if __name__ == "__main__":
    main()
