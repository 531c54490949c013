"""Results of a run: summary.json, members.csv, and the lines printed at its end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxrl.envs.datasets import normalised_score
from jaxrl.errors import UserError
from jaxrl.experiments import compare_bases
from jaxrl.experiments.console import clock, device_kind, interval, plural, rate
from jaxrl.experiments.plan import Plan, swept_values
from jaxrl.runs import metrics, provenance, records, stats
from jaxrl.runs.folders import AGAIN
from jaxrl.types import Transition

_OF_EPISODES = ("return", "length", "episode_return", "episode_length", *stats.RISKS)


def summarise(
    ready: Plan,
    run: records.RunDir,
    wall_s: float,
    compile_s: float,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Results of a run, from its metrics; also writes members.csv.

    Members that a search stopped early count with their last results. Besides returns: "risk",
    value at risk and conditional value at risk over the episodes of a member (`stats.risk`);
    "score", the return normalised to 0 (random) and 100 (expert) if the dataset has these
    references; "diverged", members whose Q exceeds every attainable return; "bases", base policies
    with and without correction (`compare_bases.compare`).
    """
    settings, stages, count = ready.settings, ready.program.stages, ready.members
    history = records.read_metrics(run, stages[-1].name, say, complete=True)
    if not history:
        raise UserError(
            f"{run.path / 'metrics'} has no undamaged part of stage {stages[-1].name!r}: restore "
            f"the folder, or {AGAIN}"
        )
    by_chunk = metrics.by_chunk(history, count)  # [C, P]
    row, each = last_trained(by_chunk["finite"]), np.arange(count)
    last = {name: values[row, each] for name, values in by_chunk.items()}
    failed = last["finite"] < 1
    returns = by_chunk["return"]
    final = last["return"]
    best = np.max(np.where(np.isfinite(returns), returns, -np.inf), 0)
    score = normalised_score(ready.meta, final)
    run.write_members(
        {
            "id": np.arange(count),
            **swept_values(settings),
            "seed": ready.seeds,
            "final_return": final,
            "best_return": np.where(np.isfinite(best), best, np.nan),
            **({} if score is None else {"final_score": score}),
            "failed": failed,
        }
    )
    known = ~np.isnan(by_chunk["finite"])
    env_steps = int(np.where(known, by_chunk["env_steps"], 0).max(0).sum())
    before = sum(stage.updates for stage in stages[:-1])
    updates = int(np.where(known, before + by_chunk["update"], 0).max(0).sum())
    learns_q = bool(ready.inputs) and "q" in by_chunk
    return {
        "finished": True,
        "agent": settings.agent,
        "env": settings.options.env,
        "members": count,
        "updates": sum(stage.updates for stage in stages),
        "env_steps": env_steps,
        "wall_s": wall_s,
        "compile_s": compile_s,
        "steps_per_s": env_steps / (wall_s - compile_s),
        "updates_per_s": updates / (wall_s - compile_s),
        "return": outcome(final)
        | {
            "episodes": settings.options.eval_episodes,
            "explore": bool(getattr(stages[-1].evaluate, "explore", False)),
        },
        "risk": {
            name: {key: outcome(last[name])[key] for key in ("iqm", "ci95")}
            for name in stats.RISKS
            if name in last
        },
        **({} if score is None else {"score": outcome(score)}),
        "failed_members": np.flatnonzero(failed),
        **({"failure": failure(by_chunk)} if failed.all() else {}),
        **({"diverged": diverged(ready, last["q"], entropy_bonus(by_chunk))} if learns_q else {}),
        **({"bases": compare_bases.compare(ready, last)} if ready.algorithm.base_acts else {}),
        **({"points": by_point(ready, final, failed)} if settings.swept else {}),
        "versions": provenance.versions(),
        "device": device_kind(),
    }


def last_trained(finite: np.ndarray) -> np.ndarray:
    """Index [P] of the row in which each member was last trained, from "finite" [C, P]; the last
    row for members that were never trained."""
    known = ~np.isnan(finite)
    return len(finite) - 1 - np.argmax(known[::-1], 0)


def failure(by_chunk: Mapping[str, np.ndarray]) -> str:
    """What is not finite in the chunk in which the last member failed.

    Args:
      by_chunk: metrics [C, P] of a stage in which all members failed.
    """
    row = int(np.argmax(np.all(by_chunk["finite"] < 1, 1)))
    finite = {name: bool(np.isfinite(x[row]).any()) for name, x in by_chunk.items()}
    what = [name for name in sorted(finite) if not finite[name] and name not in _OF_EPISODES]
    if finite.get("episode_length") and not finite["episode_return"]:
        what = ["reward"]  # the return of a whole episode is missing
    update = int(by_chunk["update"][row].max())
    return f"{', '.join(what) or 'parameters'} not finite by update {update:,}"


def outcome(scores: np.ndarray) -> dict[str, Any]:
    """Statistics of the returns [P] of members."""
    found = stats.summarise(scores)
    return {name: found[name] for name in ("iqm", "ci95", "mean", "std", "min", "max", "members")}


def by_point(ready: Plan, final: np.ndarray, failed: np.ndarray) -> list[dict[str, Any]]:
    """Statistics of each point, from the returns and failures [P] of all members."""
    groups = np.split(np.arange(ready.members), len(ready.settings.points))
    return [
        {"values": values, "return": outcome(final[rows]), "failed": failed[rows].sum()}
        for values, rows in zip(ready.settings.points, groups, strict=True)
    ]


def entropy_bonus(by_chunk: Mapping[str, np.ndarray]) -> np.ndarray | float:
    """Largest |α H| [P] of an evaluation interval; 0 for agents without a temperature."""
    if "temperature" not in by_chunk:
        return 0.0
    bonus = np.abs(by_chunk["temperature"] * by_chunk["entropy"])  # [C, P]
    return np.where(np.isnan(bonus), 0, bonus).max(0)


def diverged(ready: Plan, q: np.ndarray, bonus: np.ndarray | float = 0.0) -> np.ndarray:
    """Members whose mean |Q| [P] over the dataset exceeds (max |r| + bonus) / (1 - γ).

    r are the rewards of the dataset after reward_scale and reward_shift. Rewards that are all 0
    give Q-values no scale, so no member counts as diverged.

    Args:
      bonus: [P], see `entropy_bonus`.
    """
    data: Transition = ready.inputs["data"]
    hp = ready.hp.agent
    of = lambda name, default: np.asarray(getattr(hp, name, default))
    ends = np.array([[np.min(data.reward)], [np.max(data.reward)]])
    rewards = of("reward_scale", 1.0) * ends + of("reward_shift", 0.0)  # [2, 1 or P]
    largest = np.abs(rewards).max(0)  # [1 or P]
    limit = (largest + bonus) / np.maximum(1 - of("gamma", 0.99), 1e-9)
    return np.flatnonzero((np.abs(q) > limit) & (largest > 0))


# --- lines ---------------------------------------------------------------------------------------


def result(summary: dict[str, Any]) -> str:
    """The result in one line, plus a warning line if Q has diverged."""
    found, failed = summary["return"], list(summary["failed_members"])
    how = ", with exploration" if found.get("explore") else ""
    line = (
        f"return {found['iqm']:.4g} (IQM{how}, {interval(found)}; lowest member {found['min']:.4g})"
        if found["iqm"] is not None
        else "no return"
    )
    if "failure" in summary:
        who = "the member" if summary["members"] == 1 else f"all {summary['members']:,} members"
        return f"{who} failed: {summary['failure']}"
    score = summary.get("score", {}).get("iqm")
    line += "" if score is None else f", normalised {score:.1f}"
    names = f"; {len(failed)} failed: {listed(failed)}" if failed else ""
    gone = list(summary.get("diverged", []))
    warning = f"\nwarning: Q has diverged in {plural(len(gone), 'member')}: {listed(gone)}"
    return f"{line}, {plural(summary['members'], 'member')}{names}{warning if gone else ''}"


def listed(members: list[int]) -> str:
    """The first eight members as text."""
    return ", ".join(map(str, members[:8])) + (", ..." if len(members) > 8 else "")


def speed(summary: dict[str, Any], unit: str) -> str:
    wall, compiling = clock(summary["wall_s"]), clock(summary["compile_s"])
    return f"{rate(summary[f'{unit}_per_s'])} {unit}/s, {wall} of which {compiling} compiling"


def context(ready: Plan) -> dict[str, Any]:
    """The context in config.json; it does not affect the run's name."""
    options = ready.settings.options
    return {
        "versions": provenance.versions(),
        "device": device_kind(),
        "git": provenance.git_hash(),
        "command": sys.argv,
        "width": ready.layout.width,
        "matmul_precision": jax.config.values["jax_default_matmul_precision"],
        "unit": ready.unit,
        "members": ready.members,
        "stages": {  # how many parts the metrics have, see `metrics.missing`
            stage.name: {
                "updates": stage.updates,
                "evals": stage.evals,
                "every": stage.source.every,
                **({"first": True} if stage.first else {}),
            }
            for stage in ready.program.stages
        },
        **({"on_host": True, "resume_is_bitwise": False} if ready.on_host else {}),
        **({"data": options.data.resolve()} if options.data else {}),
        **({"base": [path.resolve() for path in options.base]} if options.base else {}),
        **({"from_run": options.from_run.resolve()} if options.from_run else {}),
    }
