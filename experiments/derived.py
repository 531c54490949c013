"""Runs whose policies were not trained but derived from runs: merged, or picked at their peak.

Such a run can be loaded, evaluated, rendered and reported like any other. Its config.json has the
settings of the run that it was derived from, and "derived": what was done, and a hash of the runs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import drive, population
from jaxrl.experiments.console import print_line, short_path
from jaxrl.experiments.plan import Plan
from jaxrl.experiments.run_folders import width_of
from jaxrl.experiments.summary import context, result, summarise
from jaxrl.experiments.train_loop import metrics_of
from jaxrl.runs import files, records
from jaxrl.runs.metrics import part_name
from jaxrl.runs.shards import Shards, indices
from jaxrl.snapshot import RunState
from jaxrl.types import PyTree


def write_run(
    path: Path,
    ready: Plan,
    run: records.RunDir,
    state: RunState,
    origin: Mapping[str, Any],
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a finished run with the members of `state`, evaluated once, and returns its summary.

    Args:
      ready: the plan of `run`, from which the state is derived.
      state: of the last stage; the learners [P, ...] are the derived ones.
      origin: what was done; part of the run's identity.

    Raises:
      UserError: the folder holds another run, or other files.
    """
    begin, stage = time.perf_counter(), ready.program.stages[state.stage]
    state = state._replace(step=stage.updates)
    own = files.plain(run.config()["config"] | {"derived": origin})
    told = context(ready) | {"width": width_of(run)}
    stages = {stage.name: {"updates": stage.updates, "evals": 1, "every": stage.updates or 1}}
    layout = population.Layout(ready.layout.mesh, width_of(run))
    with records.open_run(path, own, told | {"stages": stages}, overwrite) as made:
        if not made.finished:
            index = sum(s.updates + 1 for s in ready.program.stages[: state.stage]) + state.step
            meta = {"stage": state.stage, "step": state.step, "wall_s": 0.0, "compile_s": 0.0}
            if index not in indices(made.checkpoints):  # else written before a kill
                with Shards(made.checkpoints, own, [(0, ready.members)]) as shards:
                    shards.save(index, state, meta)
                    shards.wait()
            key = jax.random.fold_in(jax.random.key(1), 0)
            evals = drive.evaluate(
                ready.program, layout, state, key, ready.inputs, own=ready.own, ids=ready.seeds
            )
            finite = {"finite": finite_members(state.member.learner)}
            columns = metrics_of(drive.Report(stage.name, state.step, finite, evals)) or {}
            rows = {"stage": stage.name, "member": np.arange(ready.members), "update": state.step}
            rows |= {"env_steps": ready.env_steps(state.stage, state.step)}
            made.write_part(part_name(state.stage, state.step, 0), rows | columns)
            spent = time.perf_counter() - begin
            made.write_summary(summarise(ready, made, wall_s=spent, compile_s=0.0))
        summary = made.summary() or {}
    print_line(f"{short_path(path)}: {result(summary)}")
    return summary


def finite_members(learner: PyTree) -> np.ndarray:
    """Members [P] float32 whose floating-point leaves [P, ...] are finite: 1, otherwise 0."""
    leaves = [x for x in jax.tree.leaves(learner) if jnp.issubdtype(x.dtype, jnp.floating)]
    sound = [np.isfinite(np.asarray(x)).reshape(len(x), -1).all(1) for x in leaves]
    return np.all(sound, 0).astype(np.float32)
