"""Population-based training of a slot: trials exchange weights and settings between chunks.

Members stay in the process that trains them. Weights of a parent in another process are copied
through a file in the folder of the run. The exchange is decided in numpy on the host, from a
seeded generator; `exchange_members` applies it to the state of the population.

Population Based Training of Neural Networks. Max Jaderberg et al. 2017, arXiv:1711.09846.

Deviation: hyperparameters change by a fraction of their range, on its scale, instead of by a
factor. A factor would hardly change a discount between 0.9 and 1.
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

from jaxrl import drive
from jaxrl.experiments import restore, train_loop
from jaxrl.experiments.plan import Plan, hyper_table, with_factor
from jaxrl.experiments.search import slots
from jaxrl.experiments.search.slots import Engine, Outcome, members_of
from jaxrl.experiments.search.space import Range
from jaxrl.experiments.settings import Settings
from jaxrl.program import MemberState
from jaxrl.runs import files, records
from jaxrl.runs.processes import Processes
from jaxrl.types import Array, HyperParams, PyTree

FOLDER = "exchange"


def evolve(
    engine: Engine, settings: Settings, path: Path, ranges: Mapping[str, Range], share: float
) -> Outcome:
    """Trains one slot; after every evaluation but the last, the worst fraction `share` of the
    trials copies weights and settings from an equal number of the best trials."""
    seeds, count = settings.options.seeds, len(settings.points)
    objective, processes = engine.objective, engine.processes

    def within(ready: Plan) -> train_loop.Within:
        def adapt(stage: int, state: MemberState, report: drive.Report) -> MemberState:
            columns = train_loop.metrics_of(report)
            if columns is None or stage < ready.end[0]:
                return state
            own = [columns["finite"], columns[objective.metric], *_units(state.hp, ranges).T]
            rows = np.stack([x[: len(columns["finite"])] for x in own], 1)
            finite, values, *units = slots.everywhere(ready, processes, rows).T
            members = objective.members({"finite": finite[None], objective.metric: values[None]})
            rng = np.random.default_rng([settings.options.seed, stage, report.step])
            parents = truncation(rng, objective.ranking(members.reshape(-1, seeds)), share)
            moved = perturb(rng, np.stack(units, 1)[::seeds], parents)
            told = json.dumps([parents.tolist(), moved.tolist()])
            parents, moved = map(np.array, json.loads(processes.broadcast(told)))
            hp = hyper_table(
                HyperParams(settings.hp, ready.env.params),
                ready.members,
                {
                    name: np.repeat(each.values(moved[:, i]), seeds)
                    for i, (name, each) in enumerate(ranges.items())
                },
            )
            hp = with_factor(hp, settings, ready.inputs)
            rows = members_of(parents, seeds)
            new = _take_over(ready, processes, path / FOLDER, state, rows, hp)
            return jax.device_put(new, jax.tree.map(lambda x: x.sharding, state))

        return train_loop.Within({}, adapt=adapt)

    found = slots.run(engine, settings, path, count, within)
    if not processes.leads:
        return found
    shutil.rmtree(path / FOLDER, ignore_errors=True)
    folder = records.RunDir(path)
    its = restore.settings_of(folder, restore.trust_of(settings))
    state = restore.read_state(restore.prepare(its), folder)
    units = _units(state.member.hp, ranges)[::seeds]
    columns = {name: each.values(units[:, i]) for i, (name, each) in enumerate(ranges.items())}
    final = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return found._replace(final=final)


def _units(hp: HyperParams, ranges: Mapping[str, Range]) -> np.ndarray:
    """Current settings [P, V] of the members of a state, in the unit cube."""
    columns = []
    for name, each in ranges.items():
        part, _, field = name.partition(".")
        record = getattr(hp, part)
        values = record[field] if isinstance(record, Mapping) else getattr(record, field)
        columns.append(each.units(np.asarray(values).tolist()))
    return np.stack(columns, axis=1)


# --- weights -------------------------------------------------------------------------------------


def _take_over(
    ready: Plan,
    processes: Processes,
    folder: Path,
    state: MemberState,
    parents: np.ndarray,
    hp: PyTree,
) -> MemberState:
    """Members of this process after an exchange: member i copies the learner of `parents[i]` [P]
    and takes the settings in row i of `hp` [P, ...]."""
    first, last = ready.ranges[processes.index]
    own, home = np.arange(first, last), np.empty(ready.members, int)
    for process, (begin, end) in enumerate(ready.ranges):
        home[begin:end] = process
    away = np.flatnonzero(home != home[parents])
    learner = lambda member: jax.tree.map(lambda x: x[member - first], state.learner)
    for parent in np.intersect1d(parents[away], own):
        folder.mkdir(exist_ok=True)
        files.atomic_write(folder / f"{parent}", _bytes(learner(parent)))
    if away.size:
        processes.all_true(True)  # waits until all files are written
    new = state
    if own.size:
        here = np.where(home[parents[own]] == processes.index, parents[own], own) - first
        padding = np.arange(own.size, len(state.key))  # copies itself
        rows = jnp.asarray(np.append(here, padding).astype(np.int32))
        padded = np.minimum(np.arange(len(rows)) + first, last - 1)
        new = _exchange(state, rows, jax.tree.map(lambda x: x[padded], hp))
    for member in np.intersect1d(away, own):
        row = _from_bytes((folder / f"{parents[member]}").read_bytes(), learner(member))
        its = jax.tree.map(lambda x: x[member], hp)  # noqa: B023
        new = _put(new, jnp.int32(member - first), row, its)
    if away.size:
        processes.all_true(True)  # all have read; the next exchange overwrites the files
    return new


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
    """The tree in `data`, with the structure, shapes and dtypes of `like`."""
    at = 0

    def one(x: Array) -> Any:
        nonlocal at
        raw = _raw(x)
        found = jnp.asarray(np.frombuffer(data, raw.dtype, raw.size, at).reshape(raw.shape))
        at += raw.nbytes
        keys = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(found, impl=jax.random.key_impl(x)) if keys else found

    return jax.tree.map(one, like)


def truncation(rng: np.random.Generator, scores: np.ndarray, share: float) -> np.ndarray:
    """Parents [Q]: a random one of the best floor(share Q) trials for each of as many worst ones;
    every other trial is its own parent.

    Args:
      scores: [Q], higher is better; NaN is worst. A trial without a score is never a parent;
        without any score no trial is replaced.
      share: fraction of the trials to replace, at most 0.5.
    """
    count = int(share * scores.size)
    parents = np.arange(scores.size)
    ranked = np.argsort(np.where(np.isnan(scores), -np.inf, scores), kind="stable")
    best = [trial for trial in ranked[scores.size - count :] if not np.isnan(scores[trial])]
    if count and best:
        parents[ranked[:count]] = rng.choice(best, count)
    return parents


def perturb(
    rng: np.random.Generator,
    units: np.ndarray,
    parents: np.ndarray,
    step: float = 0.1,
    resample: float = 0.25,
) -> np.ndarray:
    """Settings after an exchange, [Q, V] in the unit cube. A replaced trial copies the settings of
    its parent; each setting is then moved up or down by `step`, or resampled with probability
    `resample`."""
    moved = units[parents] + step * rng.choice([-1.0, 1.0], units.shape)
    fresh = rng.uniform(size=units.shape)
    new = np.where(rng.uniform(size=units.shape) < resample, fresh, np.clip(moved, 0, 1))
    adopted = parents != np.arange(parents.size)
    return np.where(adopted[:, None], new, units)


def exchange_members(state: MemberState, parents: Array, hp: PyTree) -> MemberState:
    """The population after an exchange: member i has the learner of `parents[i]` and, if that is
    another member, the settings hp[i]. Source (environments, replay), key and metrics of member i
    are kept.

    Args:
      state: leaves [P, ...].
      parents: [P] int32.
      hp: leaves [P, ...], as in the state.
    """
    moved = parents != jnp.arange(parents.size)

    def settings(new: Array, old: Array) -> Array:
        return jnp.where(moved.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    learner = jax.tree.map(lambda x: x[parents], state.learner)
    return state._replace(learner=learner, hp=jax.tree.map(settings, hp, state.hp))


_exchange = jax.jit(exchange_members)
