"""`jaxrl merge`: policies between two runs in weight space, played in the environments of both, and
written as runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import envs
from jaxrl.errors import UserError
from jaxrl.evaluate import evaluator
from jaxrl.experiments import restore
from jaxrl.experiments.commands import MergeOptions
from jaxrl.experiments.console import print_line, short_path, write_csv
from jaxrl.experiments.derived import write_run
from jaxrl.experiments.plan import hypers_of
from jaxrl.experiments.requests import expand
from jaxrl.experiments.run_folders import count_members, open_run_folder, state_digest
from jaxrl.experiments.settings import Settings
from jaxrl.experiments.tables import Column, print_table, print_words
from jaxrl.merging import merge
from jaxrl.policies import Trained
from jaxrl.runs import files, stats
from jaxrl.types import Array, Env, HyperParams, Policy, PyTree


def run(first: Path, second: Path, options: MergeOptions) -> dict[str, np.ndarray]:
    """Mean returns [W, P] of the merged members, for W weights α, by environment; prints them.

    Member i of `first` is merged with member i of `second`. With `options.out`, the merges are
    written as runs (`derived`).

    Raises:
      UserError: the runs have other agents, networks or numbers of members, or are not finished.
    """
    weights = alphas(options)
    files.check_writable(options.csv)
    paths = (first, second)
    if options.out and not all(open_run_folder(path).as_found().finished for path in paths):
        raise UserError("merge writes runs of finished runs only: remove --out")
    trust = [restore.confirmed(p, options.agent, options.env, options.trust) for p in paths]
    pairs = list(zip(paths, trust, strict=True))
    settings = [restore.settings_of(open_run_folder(path), own) for path, own in pairs]
    counts = [count_members(path) for path in paths]
    if settings[0].agent != settings[1].agent or counts[0] != counts[1]:
        told = " and ".join(f"{s.agent} of {n}" for s, n in zip(settings, counts, strict=True))
        raise UserError(f"merge needs one agent and equal numbers of members, not {told}")
    read = [restore.read_policies(open_run_folder(p), (0, counts[0]), own) for p, own in pairs]
    policy, (a, b) = read[0].policy, (each.trained for each in read)
    shapes = lambda tree: jax.tree.map(np.shape, tree.state)
    if shapes(a) != shapes(b):
        raise UserError("merge needs networks of the same sizes in both runs")
    found: dict[str, np.ndarray] = {}
    for name, (own, env) in _environments(settings).items():
        params = hypers_of(own, env).env
        found[name] = _returns(env, policy, a, b, params, weights, options)
    _show(found, paths, weights, options)
    for path, each in zip(paths, read, strict=True):
        if each.unfinished:
            print_line(f"{short_path(path.resolve())}: {each.unfinished}")
    if options.out is not None:
        _write(options.out, settings[0], paths, b.state, weights, options.overwrite)
    return found


def alphas(options: MergeOptions) -> list[float]:
    """The weights of the second run; raises UserError for others than numbers from 0 to 1."""
    try:
        found = [float(x) for word in options.alpha for x in expand("--alpha", word)]
    except ValueError:
        found = [-1.0]
    if not found or min(found) < 0 or max(found) > 1:
        raise UserError("--alpha must be between 0 (the first run) and 1 (the second run)")
    return found


def _write(
    out: Path,
    settings: Settings,
    paths: tuple[Path, Path],
    second: PyTree,
    weights: Sequence[float],
    overwrite: bool,
) -> None:
    """Writes one run per weight, with the settings of the first run and learners [P, ...] between
    its own and those of `second`."""
    run, ready = open_run_folder(paths[0]), restore.prepare(settings)
    restore.check_unchanged(run, ready.digests)
    state = restore.read_state(ready, run)
    for alpha in weights:
        learner = jax.device_get(merge(state.member.learner, second, alpha))
        mixed = state._replace(member=state.member._replace(learner=learner))
        origin = {"merge": [state_digest(path) for path in paths], "alpha": alpha}
        path = out if len(weights) == 1 else out / f"alpha-{alpha:g}"
        write_run(path, ready, run, mixed, origin, overwrite)


def _environments(settings: list[Settings]) -> dict[str, tuple[Settings, Env]]:
    """The environments of the runs by a name; one if they are the same."""
    found = {}
    for which, own in zip(("first", "second"), settings, strict=True):
        env = envs.make(own.options.env, **own.options.env_options)
        if env.host is not None or env.persist is not None:
            raise UserError(f"merged policies cannot be evaluated in {env.spec.name}")
        same = [s for s, _ in found.values() if _key(s) == _key(own)]
        if not same:
            found[f"return, env of {which}"] = (own, env)
    return found if len(found) > 1 else {"return": next(iter(found.values()))}


def _key(settings: Settings) -> Any:
    return settings.options.env, sorted(settings.options.env_options.items())


def _returns(
    env: Env,
    policy: Policy,
    a: Trained,
    b: Trained,
    params: PyTree,
    weights: Sequence[float],
    options: MergeOptions,
) -> np.ndarray:
    """Mean returns [W, P] of greedy merged policies."""
    play = evaluator(env, policy, options.episodes)

    def of_one(a: Trained, b: Trained, params: PyTree, alpha: Array) -> Array:
        state = merge(a.state, b.state, alpha)
        key = jax.random.key(options.seed)
        found: Any = play(state, HyperParams(a.hp, params), {}, key)
        return jnp.mean(found.returns)

    members = jax.vmap(of_one, (0, 0, 0, None))
    every = jax.jit(jax.vmap(members, (None, None, None, 0)))
    return np.asarray(every(a, b, params, jnp.float32(weights)), float)


def _show(
    found: dict[str, np.ndarray],
    paths: tuple[Path, Path],
    weights: Sequence[float],
    options: MergeOptions,
) -> None:
    columns = [Column("alpha", [f"{alpha:g}" for alpha in weights])]
    for name, returns in found.items():
        columns.append(Column(name, [f"{stats.iqm(row):.4g}" for row in returns]))
        low_high = [f"{row.min():.4g} to {row.max():.4g}" for row in returns]
        columns.append(Column("members", low_high, 1))
    print_table(columns)
    names = [str(short_path(path.resolve())) for path in paths]
    print_words(f"alpha: weight of {names[1]}; at 0 the policies of {names[0]}. IQM over members")
    if options.csv is None:
        return
    rows = [
        {"alpha": alpha, "member": member}
        | {name: float(returns[i, member]) for name, returns in found.items()}
        for i, alpha in enumerate(weights)
        for member in range(len(next(iter(found.values()))[0]))
    ]
    write_csv(options.csv, rows)
    print_line(f"members: {options.csv}")
