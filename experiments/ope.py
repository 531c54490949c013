"""`jaxrl ope`: values of trained policies from a dataset, without playing them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import envs
from jaxrl.envs import datasets
from jaxrl.errors import UserError
from jaxrl.evaluate import evaluator
from jaxrl.experiments import restore
from jaxrl.experiments.commands import OpeOptions
from jaxrl.experiments.console import plural, print_line, short_path
from jaxrl.experiments.ope_report import Found, show
from jaxrl.experiments.plan import hypers_of, swept_values
from jaxrl.experiments.run_folders import count_members, distinct, open_run_folder
from jaxrl.experiments.settings import Settings
from jaxrl.ope import behaviour, estimate, fqe, targets
from jaxrl.ope.episodes import Padded, padded
from jaxrl.policies import Trained
from jaxrl.runs import figures, files
from jaxrl.sources import expand
from jaxrl.types import (
    Array,
    Discrete,
    Env,
    EnvSpec,
    HyperParams,
    Policy,
    PyTree,
    TimeStep,
    Transition,
)


class Logged(NamedTuple):
    """The dataset on the device, and what all runs need of it."""

    rows: Transition  # [D], actions of the environment, without extras
    episodes: Padded
    log_behaviour: Array  # [D]


def run(paths: Sequence[Path], options: OpeOptions) -> Found:
    """Estimates the values of all members of the runs, prints them, and writes the files asked for.

    Raises:
      UserError: no dataset, runs of different environments, or options that do not fit them.
    """
    if options.data is None:
        raise UserError("ope needs a dataset: pass --data FILE")
    if options.out is not None:
        figures.check_format(options.out)
        if not options.episodes:
            raise UserError("--out draws the agreement with true values: pass --episodes 1000")
    files.check_writable(options.csv, options.out)
    paths = distinct(paths)
    trust = {p: restore.confirmed(p, options.agent, options.env, options.trust) for p in paths}
    settings = [restore.settings_of(open_run_folder(path), trust[path]) for path in paths]
    env = _env_of(settings, options)
    spreads, target = _spreads(options, env.spec), targets.target(env.spec)
    data = restore.dataset(options.data)
    datasets.check(data, env.spec)
    cfg = fqe.Config(batch_size=options.batch_size, hidden=options.hidden)
    lowest, highest = fqe.value_range(jnp.asarray(data.transitions.reward), options.gamma)
    hp = fqe.Hypers(
        lr=options.lr,
        gamma=options.gamma,
        tau=options.tau,
        spread=np.array(spreads, np.float32),
        lowest=lowest,
        highest=highest,
    )
    hp = jax.tree.map(jnp.float32, hp)
    logged = _logged(data, env.spec, target, options, cfg, hp)
    counts = [count_members(path) for path in paths]
    print_line(
        f"{plural(sum(counts) * len(spreads), 'candidate')}, "
        f"{plural(len(logged.episodes.rows), 'episode')} of data, "
        f"{options.updates:,} updates of FQE"
    )
    parts = []
    for path, own, count in zip(paths, settings, counts, strict=True):
        run = open_run_folder(path)
        policy, trained, unfinished = restore.read_policies(run, (0, count), trust[path])
        if unfinished:
            print_line(f"{short_path(run.path)}: {unfinished}")
        targets.check_memoryless(policy)
        found = _estimate(cfg, env.spec, target, policy, options.updates, trained, hp, logged)
        true = None
        if options.episodes:
            params = hypers_of(own, env).env
            true = true_values(env, target.policy(policy), trained, params, hp, options)
        parts.append(_columns(path, own, found, spreads, true))
    merged = {name: [x for part in parts for x in part[name]] for name in parts[0]}
    value = float(estimate.behaviour_value(logged.rows, logged.episodes, options.gamma))
    result = Found(merged, value, noise="epsilon" if _discrete(env.spec) else "std")
    show(result, options.csv, options.out)
    return result


def _env_of(settings: Sequence[Settings], options: OpeOptions) -> Env:
    """The environment of all runs."""
    made = {(s.options.env, repr(sorted(s.options.env_options.items()))) for s in settings}
    if len(made) > 1:
        names = ", ".join(sorted({name for name, _ in made}))
        raise UserError(f"ope compares policies of one environment, not of {names}")
    own = settings[0].options
    env = envs.make(own.env, **own.env_options)
    if options.episodes and (env.host is not None or env.persist is not None):
        raise UserError(f"{env.spec.name} cannot be played by ope: remove --episodes")
    return env


def _discrete(spec: EnvSpec) -> bool:
    return isinstance(spec.action, Discrete)


def _spreads(options: OpeOptions, spec: EnvSpec) -> tuple[float, ...]:
    """The values of --epsilon for discrete actions, of --std for boxes."""
    given, other = (options.epsilon, "std") if _discrete(spec) else (options.std, "epsilon")
    if getattr(options, other):
        fit = "discrete actions: use --epsilon" if other == "std" else "a box: use --std"
        raise UserError(f"--{other} does not fit; {spec.name} has {fit}")
    found = given or (0.0,)
    if min(found) < 0 or (_discrete(spec) and max(found) > 1):
        raise UserError("--epsilon must be between 0 and 1, --std at least 0")
    return found


def _logged(
    data: datasets.Dataset,
    spec: EnvSpec,
    target: targets.Target,
    options: OpeOptions,
    cfg: fqe.Config,
    hp: fqe.Hypers,
) -> Logged:
    """The dataset, with the behaviour's log-probabilities as `options.behaviour` says.

    "auto" takes those of the dataset for discrete actions. In boxes it fits a policy, since
    recorded densities may be those of actions before they were clipped.
    """
    own = data.transitions._replace(extras={})
    episodes = jax.tree.map(jnp.asarray, padded(own))
    rows = expand(jax.tree.map(jnp.asarray, own))
    how = options.behaviour
    if how == "data" or (
        how == "auto" and _discrete(spec) and "log_prob" in data.transitions.extras
    ):
        name = str(data.meta.get("file", "the dataset"))
        return Logged(rows, episodes, behaviour.recorded(data.transitions, name))
    unit = rows._replace(action=target.unit(rows.action))
    fitted = jax.jit(behaviour.fitted, static_argnums=(0, 1, 5))
    one = dataclasses.replace(hp, spread=jnp.float32(0))
    return Logged(rows, episodes, fitted(cfg, spec, one, unit, jax.random.key(1), options.updates))


def _estimate(
    cfg: fqe.Config,
    spec: EnvSpec,
    target: targets.Target,
    policy: Policy,
    updates: int,
    trained: Trained,
    hp: fqe.Hypers,
    logged: Logged,
) -> estimate.Estimates:
    """Estimates [M, S] of the members of one run."""
    compiled = jax.jit(estimate.estimates, static_argnums=(0, 1, 2, 3, 4))
    arrays = (logged.rows, logged.log_behaviour, logged.episodes, jax.random.key(0))
    return jax.device_get(compiled(cfg, spec, target, policy, updates, trained, hp, *arrays))


def true_values(
    env: Env,
    player: Policy,
    trained: Trained,
    params: PyTree,
    hp: fqe.Hypers,
    options: OpeOptions,
) -> np.ndarray:
    """J(π) [M, S] of target policies, the mean of `options.episodes` episodes each.

    Args:
      player: see `Target.policy`.
      params: physical parameters of the members, leaves [M, ...].
    """
    play = evaluator(discounting(env, hp.gamma), player, options.episodes, explore=True)

    def of_one(member: Trained, params: PyTree, spread: Array) -> Array:
        state = (member, spread)
        key = jax.random.key(options.seed)
        found: Any = play(state, HyperParams((), params), {}, key)
        return jnp.mean(found.returns)

    over_spreads = jax.vmap(of_one, (None, None, 0))
    every = jax.jit(jax.vmap(over_spreads, (0, 0, None)))
    return np.asarray(every(trained, params, hp.spread), float)


def discounting(env: Env, gamma: Array | float) -> Env:
    """`env` whose score is γ^t r_t, so that evaluations give discounted returns."""

    def reset(key: Array, params: PyTree) -> tuple[PyTree, Array]:
        state, obs = env.reset(key, params)
        return (state, jnp.float32(1)), obs

    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        inner, power = state
        inner, ts = env.step(key, inner, action, params)
        return (inner, power * gamma), ts._replace(score=power * ts.reward)

    return dataclasses.replace(env, reset=reset, step=step, render=None)


def _columns(
    path: Path,
    settings: Settings,
    found: estimate.Estimates,
    spreads: Sequence[float],
    true: np.ndarray | None,
) -> Mapping[str, list[Any]]:
    """One entry per candidate, member by member, of each column."""
    members, count = found.effective.shape
    seeds = settings.options.seed + np.arange(members) % settings.options.seeds
    swept = {name: np.repeat(x, count).tolist() for name, x in swept_values(settings).items()}
    flat = lambda x: np.asarray(x, float).reshape(-1).tolist()
    label = [",".join(f"{k}={v[i]}" for k, v in swept.items()) for i in range(members * count)]
    columns = {
        "run": [str(short_path(path.resolve()))] * (members * count),
        "point": label,
        "seed": np.repeat(seeds, count).tolist(),
        "spread": list(spreads) * members,
    }
    for name in estimate.NAMES:
        columns |= {name: flat(found.value[name]), f"{name}_se": flat(found.error[name])}
    columns["effective"] = flat(found.effective)
    return columns | ({} if true is None else {"true": flat(true)})
