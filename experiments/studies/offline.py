"""What the studies of offline agents share: members of one program, intervals, and rows of data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.algorithm import Algorithm
from jaxrl.envs.datasets import Dataset
from jaxrl.program import Result, train
from jaxrl.runs import stats
from jaxrl.types import Array, Env, Transition


def keys_of(first: int, count: int) -> Array:
    """The keys [P] of the seeds first .. first + count - 1, as on the command line."""
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(0), seed))(
        jnp.arange(first, first + count)
    )


def hypers_of(algorithm: Algorithm, members: Sequence[Mapping[str, float]]) -> Any:
    """The hyperparameters [P] of members, from the values that differ from the defaults."""
    each = [jax.tree.map(jnp.float32, algorithm.Hypers(**values)) for values in members]
    return jax.tree.map(lambda *x: jnp.stack(x), *each)


def trainer(
    algorithm: Algorithm, cfg: Any, env: Env, evals: int = 1, episodes: int = 100
) -> Callable[[Array, Any, Transition], Result]:
    """Function (keys [P], hypers [P], rows [D]) -> `Result` [P] on the host, compiled once."""
    program = algorithm.program(cfg, env, evals=evals, episodes=episodes)
    compiled = jax.jit(jax.vmap(train(program), (0, 0, None)))
    bare = lambda data: jax.tree.map(jnp.asarray, data._replace(extras={}))
    return lambda keys, hp, data: jax.device_get(compiled(keys, hp, bare(data)))


def returns(result: Result) -> np.ndarray:
    """Mean returns [P, C] of the evaluations of the last stage."""
    return np.asarray(result.evals[result.program.stages[-1].name].returns).mean(-1)


def metric(result: Result, name: str) -> np.ndarray:
    """A metric [P, C] of the last stage."""
    return np.asarray(result.metrics[result.program.stages[-1].name][name].value)


def interval(values: np.ndarray) -> dict[str, Any]:
    """IQM of members [P] with its 95 % interval, and the members."""
    found = stats.summarise(values)
    return {"iqm": found["iqm"], "ci95": found["ci95"], "members": np.asarray(values).tolist()}


def told(found: dict[str, Any]) -> str:
    """An `interval` as text."""
    low, high = found["ci95"]
    return f"{found['iqm']:.4g} ({low:.4g} to {high:.4g})"


def episodes_of(data: Dataset | Transition, first: int, count: int) -> Transition:
    """The rows of the episodes first .. first + count - 1."""
    t = data.transitions if isinstance(data, Dataset) else data
    number = np.cumsum(t.start) - 1
    rows = (number >= first) & (number < first + count)
    return jax.tree.map(lambda x: x[rows], t._replace(extras={}))
