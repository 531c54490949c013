"""Population-based training of a slot: trials exchange weights and settings between chunks.

Members stay with the process that trains them. Weights of a parent that another process trains
travel through a file in the run's folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import drive, evolution
from jaxrl.experiments import load, planning, running
from jaxrl.experiments.options import Settings
from jaxrl.experiments.planning import Plan
from jaxrl.experiments.search import batch
from jaxrl.experiments.search.batch import Engine, Outcome
from jaxrl.experiments.search.ranges import Range
from jaxrl.program import MemberState
from jaxrl.runs import records
from jaxrl.runs.processes import Hosts
from jaxrl.types import Array, PyTree

FOLDER = "exchange"


def evolve(
    engine: Engine, settings: Settings, path: Path, ranges: Mapping[str, Range], share: float
) -> Outcome:
    """One slot, in which `share` of the trials takes over from as many best after every evaluation
    but the last."""
    seeds, count = settings.options.seeds, len(settings.points)
    objective, hosts = engine.objective, engine.hosts

    def within(ready: Plan) -> running.Within:
        def adapt(stage: int, state: MemberState, report: drive.Report) -> MemberState:
            columns = running.metrics_of(report)
            if columns is None or stage < running.end(ready)[0]:
                return state
            own = [columns["finite"], columns[objective.metric], *_units(state.hp, ranges).T]
            rows = np.stack([x[: len(columns["finite"])] for x in own], 1)
            finite, values, *units = batch.everywhere(ready, hosts, rows).T
            members = objective.members({"finite": finite[None], objective.metric: values[None]})
            rng = np.random.default_rng([settings.options.seed, stage, report.step])
            parents = evolution.truncation(
                rng, objective.ranking(members.reshape(-1, seeds)), share
            )
            moved = evolution.perturb(rng, np.stack(units, 1)[::seeds], parents)
            told = json.dumps([parents.tolist(), moved.tolist()])
            parents, moved = map(np.array, json.loads(hosts.say(told)))
            hp = planning.table(
                {"agent": settings.hp, "env": ready.env.params},
                ready.members,
                {
                    name: np.repeat(each.values(moved[:, i]), seeds)
                    for i, (name, each) in enumerate(ranges.items())
                },
            )
            rows = evolution.members_of(parents, seeds)
            new = _take_over(ready, hosts, path / FOLDER, state, rows, hp)
            return jax.device_put(new, jax.tree.map(lambda x: x.sharding, state))

        return running.Within({}, adapt=adapt)

    found = batch.run(engine, settings, path, count, within)
    if not hosts.leads:
        return found
    shutil.rmtree(path / FOLDER, ignore_errors=True)
    folder = records.RunDir(path)
    state = load.restore(planning.plan(load.settings_of(folder)), folder)
    units = _units(state.member.hp, ranges)[::seeds]
    columns = {name: each.values(units[:, i]) for i, (name, each) in enumerate(ranges.items())}
    final = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return found._replace(final=final)


def _units(hp: Mapping[str, PyTree], ranges: Mapping[str, Range]) -> np.ndarray:
    """Settings [P, V] of members as they stand in a state, in the unit cube."""
    columns = []
    for name, each in ranges.items():
        part, _, field = name.partition(".")
        record = hp[part]
        values = record[field] if isinstance(record, Mapping) else getattr(record, field)
        columns.append(each.units(np.asarray(values).tolist()))
    return np.stack(columns, axis=1)


# --- weights -------------------------------------------------------------------------------------


def _take_over(
    ready: Plan,
    hosts: Hosts,
    folder: Path,
    state: MemberState,
    parents: np.ndarray,
    hp: PyTree,
) -> MemberState:
    """This process's members after an exchange in which member i has the parent `parents[i]` [P],
    and the settings of row i of `hp` [P, ...]."""
    first, last = ready.ranges[hosts.index]
    own, home = np.arange(first, last), np.empty(ready.members, int)
    for process, (begin, end) in enumerate(ready.ranges):
        home[begin:end] = process
    away = np.flatnonzero(home != home[parents])
    learner = lambda member: jax.tree.map(lambda x: x[member - first], state.learner)
    for parent in np.intersect1d(parents[away], own):
        folder.mkdir(exist_ok=True)
        records.atomic_write(folder / f"{parent}", _bytes(learner(parent)))
    if away.size:
        hosts.all(True)  # until all files are there
    new = state
    if own.size:
        here = np.where(home[parents[own]] == hosts.index, parents[own], own) - first
        padding = np.arange(own.size, len(state.key))  # takes from itself
        rows = jnp.asarray(np.append(here, padding).astype(np.int32))
        padded = np.minimum(np.arange(len(rows)) + first, last - 1)
        new = _exchange(state, rows, jax.tree.map(lambda x: x[padded], hp))
    for member in np.intersect1d(away, own):
        row = _from_bytes((folder / f"{parents[member]}").read_bytes(), learner(member))
        its = jax.tree.map(lambda x: x[member], hp)  # noqa: B023
        new = _put(new, jnp.int32(member - first), row, its)
    if away.size:
        hosts.all(True)  # until all have read, since the next exchange writes these files anew
    return new


_exchange = jax.jit(evolution.exchange)


@jax.jit
def _put(state: MemberState, row: Array, learner: PyTree, hp: PyTree) -> MemberState:
    put = lambda x, new: x.at[row].set(new)
    return state._replace(
        learner=jax.tree.map(put, state.learner, learner), hp=jax.tree.map(put, state.hp, hp)
    )


def _raw(x: Array) -> np.ndarray:
    keys = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if keys else x)


def _bytes(tree: PyTree) -> bytes:
    return b"".join(_raw(x).tobytes() for x in jax.tree.leaves(tree))


def _from_bytes(data: bytes, like: PyTree) -> PyTree:
    """The tree in `data`, of the shapes and types of another."""
    at = 0

    def one(x: Array) -> Any:
        nonlocal at
        raw = _raw(x)
        found = jnp.asarray(np.frombuffer(data, raw.dtype, raw.size, at).reshape(raw.shape))
        at += raw.nbytes
        keys = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(found, impl=jax.random.key_impl(x)) if keys else found

    return jax.tree.map(one, like)
