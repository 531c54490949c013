"""Adapter of XLand-MiniGrid (pip install -e ".[xminigrid]"): "xminigrid:MiniGrid-Empty-8x8".

XLand-MiniGrid: Scalable Meta-Reinforcement Learning Environments in JAX. Alexander Nikulin,
Vladislav Kurenkov, Ilya Zisman, Artem Agarkov, Viacheslav Sinii, Sergey Kolesnikov. NeurIPS 2024,
arXiv:2312.12044.

Observations are the view of the agent, [7, 7] cells with one-hot tile and colour: [7, 7, 25].
Tasks named XLand-MiniGrid have no goal of their own: `benchmark` gives rulesets, which the suite
downloads. Environments do not reset themselves; time limits truncate.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.names import EnvError
from jaxrl.envs.suites.common import allowances, check_task, lenient, load, pictures
from jaxrl.envs.wrappers import positive, strong
from jaxrl.types import Array, Discrete, Env, EnvSpec, PyTree, TimeStep


def make(
    task: str,
    *,
    benchmark: Any = None,
    ruleset: int | None = None,
    max_steps: int | None = None,
) -> Env:
    """A task of XLand-MiniGrid.

    Args:
      benchmark: name of a set of rulesets, such as "trivial-21k", or from Python an
        `xminigrid.benchmarks.Benchmark`.
      ruleset: index of the ruleset of all episodes; None draws one for each episode.
      max_steps: time limit; None for the task's own. Rewards depend on it.

    Raises:
      EnvError: the suite is not installed, the task or the benchmark is unknown, a task named XLand
        has no benchmark, or the benchmark cannot be downloaded.
    """
    module = load("xminigrid", "xminigrid")
    constants = load("xminigrid.core.constants", "xminigrid")
    check_task("xminigrid", task, module.registered_environments())
    name = f"xminigrid:{task}"
    if task.startswith("XLand") and benchmark is None:
        known = ", ".join(module.registered_benchmarks())
        raise EnvError(f"{name} has no goal without rulesets: set benchmark to one of {known}")
    rules = _rulesets(module, name, benchmark)
    if rules is not None and ruleset is not None and not 0 <= ruleset < rules.num_rulesets():
        raise EnvError(f"ruleset of {name} must be in 0 .. {rules.num_rulesets() - 1}")
    with allowances():
        environment, given = module.make(task)
    limit = positive(
        int(given.max_steps if max_steps is None else max_steps), f"max_steps of {name}"
    )
    given = given.replace(max_steps=limit)

    def observe(cells: Array) -> Array:
        tile = jax.nn.one_hot(cells[..., 0], constants.NUM_TILES)
        colour = jax.nn.one_hot(cells[..., 1], constants.NUM_COLORS)
        return jnp.concatenate([tile, colour], -1)

    @lenient
    def reset(key: Array, params: PyTree) -> tuple[PyTree, Array]:
        key_reset, key_rules = jax.random.split(key)
        own = given
        if rules is not None:
            fixed = ruleset is not None
            chosen = rules.get_ruleset(ruleset) if fixed else rules.sample_ruleset(key_rules)
            own = given.replace(ruleset=chosen)
        ts = environment.reset(own, jax.random.key_data(key_reset))
        return strong(ts), observe(ts.observation)

    @lenient
    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        ts = environment.step(given, state, action)
        ended = ts.last() & (ts.discount == 0)
        reward = jnp.asarray(ts.reward, jnp.float32)
        return strong(ts), TimeStep(observe(ts.observation), reward, ended, ts.last() & ~ended)

    def render(states: PyTree, params: PyTree) -> np.ndarray:
        drawn = given.replace(render_mode="rgb_array")
        return pictures(lambda ts: environment.render(drawn, ts), states)

    _, obs = jax.eval_shape(reset, jax.random.key(0), {})
    actions = Discrete(int(environment.num_actions(given)))
    spec = EnvSpec(name, obs.shape, actions, limit)
    return Env(spec, {}, reset, step, render=render)


def _rulesets(module: Any, name: str, benchmark: Any) -> Any:
    """The benchmark, loaded if it is given by name."""
    if not isinstance(benchmark, str):
        return benchmark
    if benchmark not in module.registered_benchmarks():
        known = ", ".join(module.registered_benchmarks())
        raise EnvError(f"benchmark of {name} must be one of {known}, not {benchmark!r}")
    try:
        return module.load_benchmark(benchmark)
    except OSError as error:
        raise EnvError(f"benchmark {benchmark} of {name} cannot be downloaded: {error}") from error
