"""`jaxrl peak`: for every member of an offline run, the policy at the peak of a metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl import diagnosis
from jaxrl.errors import UserError, nearest
from jaxrl.experiments import derived, restore
from jaxrl.experiments.commands import PeakOptions
from jaxrl.experiments.console import plural, print_line, short_path
from jaxrl.experiments.plan import Plan
from jaxrl.experiments.run_folders import open_run_folder, state_digest
from jaxrl.runs import metrics, records, shards
from jaxrl.types import PyTree


def run(path: Path, options: PeakOptions) -> dict[str, Any]:
    """Writes a run with the members of `path` at their peaks, and returns its summary.

    Raises:
      UserError: no such metric, or fewer than two checkpoints of evaluations were kept.
    """
    if options.out is None:
        raise UserError("peak writes a run: pass --out FOLDER")
    trust = restore.confirmed(path, options.agent, options.env, options.trust)
    found = open_run_folder(path)
    if not found.as_found().finished:
        raise UserError(f"{short_path(path)} is not finished")
    ready = restore.prepare(restore.settings_of(found, trust))
    restore.check_unchanged(found, ready.digests)
    updates, values = column(found, ready, options.metric)
    kept = [i for i, update in enumerate(updates) if update in steps_kept(found, ready)]
    if len(kept) < 2:
        raise UserError(
            f"{short_path(path)} keeps {plural(len(kept), 'checkpoint')} of its evaluations: train "
            "it with --checkpoint-seconds 0 --keep 100"
        )
    chosen = np.array([kept[diagnosis.peak(values[kept, i])] for i in range(ready.members)])
    state = restore.read_state(ready, found)
    learner = picked(found, ready, state.member.learner, updates[chosen])
    state = state._replace(member=state.member._replace(learner=learner))
    if len(kept) < len(updates):
        print_line(f"chosen among {len(kept)} of {len(updates)} evaluations; others are not kept")
    told = ", ".join(f"{update:,}" for update in updates[chosen])
    print_line(f"updates of the members at the peak of {options.metric}: {told}")
    origin = {
        "peak": options.metric,
        "of": state_digest(path),
        "updates": updates[chosen].tolist(),
    }
    return derived.write_run(options.out, ready, found, state, origin, options.overwrite)


def column(run: records.RunDir, ready: Plan, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Updates [C] of the evaluations of the last stage, and a metric of them [C, P]."""
    history = records.read_metrics(run, ready.program.stages[-1].name, print_line, complete=True)
    history = metrics.by_chunk(history, ready.members)
    if metric not in history:
        known = sorted(set(history) - {"finite", "env_steps", "update"})
        raise UserError(
            f"unknown metric {metric}{nearest(metric, known)}; known: {', '.join(known)}"
        )
    return history["update"][:, 0].astype(int), history[metric]


def steps_kept(run: records.RunDir, ready: Plan) -> dict[int, int]:
    """Index of the checkpoint by update of the last stage, for those that hold all members."""
    before = sum(stage.updates + 1 for stage in ready.program.stages[:-1])
    whole = shards.indices(run.checkpoints).items()
    every = (0, ready.members)
    return {i - before: i for i, parts in whole if i >= before and shards.cover(parts, every)}


def picked(run: records.RunDir, ready: Plan, learner: PyTree, updates: np.ndarray) -> PyTree:
    """The learners [P, ...] of members at `updates` [P]; `learner` is one of the same shapes."""
    index = steps_kept(run, ready)
    for update in np.unique(updates):
        then = restore.read_state(ready, run, index=index[int(update)]).member.learner
        rows = updates == update
        mix = lambda new, old: np.where(rows.reshape(-1, *(1,) * (np.ndim(old) - 1)), new, old)  # noqa: B023
        learner = jax.tree.map(mix, then, learner)
    return learner
