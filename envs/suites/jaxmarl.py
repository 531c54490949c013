"""Adapter of JaxMARL (pip install -e ".[jaxmarl]"): cooperative teams, "jaxmarl:SMAX-2s3z".

JaxMARL: Multi-Agent RL Environments and Algorithms in JAX. Alexander Rutherford, Benjamin Ellis,
Matteo Gallici et al. NeurIPS 2024, arXiv:2311.10090.

Tasks: SMAX (StarCraft-like battles against a scripted enemy), MPE (particles) and Overcooked. A
team shares one policy, see `jaxrl.teams`. Differences from the suite:

  - Environments do not reset themselves; `next_obs` is the true successor.
  - Time limits truncate; in JaxMARL they are part of `dones["__all__"]`.
  - The reported return is that of the team: the mean over agents, whose rewards are equal in SMAX
    and Overcooked. SMAX also measures the rate of battles won, "won".
  - SMAX has action masks: dead units do nothing, and targets have to be in range.

Teams whose agents differ in observations or actions, as in MPE_simple_adversary, are refused.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.names import EnvError
from jaxrl.envs.suites import TASKS
from jaxrl.envs.suites.common import allowances, check_task, lenient, load, pictures
from jaxrl.envs.suites.jaxmarl_drawings import drawing
from jaxrl.envs.wrappers import positive, strong, time_limit
from jaxrl.masks import Masked
from jaxrl.types import Array, Discrete, Env, EnvSpec, PyTree, TimeStep

NEVER = 2**30  # a time limit that is not reached


def make(task: str, *, layout: str = "cramped_room", max_steps: int | None = None) -> Env:
    """A task of JaxMARL.

    Args:
      layout: kitchen of overcooked.
      max_steps: time limit; None for the task's own.

    Raises:
      EnvError: the suite is not installed, the task or the layout is unknown, or the agents of the
        team differ.
    """
    check_task("jaxmarl", task, TASKS["jaxmarl"])
    name = f"jaxmarl:{task}"
    game = _game(name, task, layout)
    inner = game._env if task.startswith("SMAX") else game
    steps = int(inner.max_steps) if max_steps is None else max_steps
    limit = positive(steps, f"max_steps of {name}")
    endless = task == "overcooked"  # only its time limit ends it, which observations show
    inner.max_steps = limit if endless else NEVER
    agents, count = list(game.agents), _actions(name, game)
    masked = task.startswith("SMAX")

    def gather(by_agent: Any, dtype: Any = jnp.float32) -> Array:
        return jnp.stack([jnp.asarray(by_agent[agent], dtype) for agent in agents])

    def observe(obs: Any, state: Any) -> Any:
        seen = gather(obs)
        return Masked(seen, gather(game.get_avail_actions(state), bool)) if masked else seen

    def battle(state: Any) -> dict[str, Array]:
        if not masked:
            return {}
        enemies = state.state.unit_alive[game.num_allies :]
        return {"won": (~jnp.any(enemies)).astype(jnp.float32)}

    @lenient
    def reset(key: Array, params: PyTree) -> tuple[PyTree, Any]:
        obs, state = game.reset(key)
        return strong(state), observe(obs, state)

    @lenient
    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        actions = {agent: action[i] for i, agent in enumerate(agents)}
        obs, state, rewards, dones, _ = game.step_env(key, state, actions)
        reward = gather(rewards)
        over, no = jnp.asarray(dones["__all__"], bool), jnp.zeros((), bool)
        ends = (no, over) if endless else (over, no)
        score = jnp.mean(reward)
        return strong(state), TimeStep(observe(obs, state), reward, *ends, score, battle(state))

    _, seen = jax.eval_shape(reset, jax.random.key(0), {})
    shape = (seen.obs if masked else seen).shape[1:]
    measures = ("won",) if masked else ()
    space = Discrete(count)
    spec = EnvSpec(name, shape, space, None, masked, measures, len(agents))

    def render(states: PyTree, params: PyTree) -> np.ndarray:
        return pictures(drawing(task, inner), states)

    return time_limit(Env(spec, {}, reset, step, render=render), limit)


def _game(name: str, task: str, layout: str) -> Any:
    """JaxMARL's environment."""
    module = load("jaxmarl", "jaxmarl")
    with allowances():
        if task.startswith("SMAX-"):
            smax = load("jaxmarl.environments.smax", "jaxmarl")
            scenario = smax.map_name_to_scenario(task.removeprefix("SMAX-"))
            return module.make("HeuristicEnemySMAX", scenario=scenario)
        if task == "overcooked":
            layouts = load("jaxmarl.environments.overcooked", "jaxmarl").overcooked_layouts
            if layout not in layouts:
                raise EnvError(f"layout of {name} must be one of {', '.join(layouts)}")
            return module.make("overcooked", layout=layouts[layout])
        return module.make(task)


def _actions(name: str, game: Any) -> int:
    """The number of actions of each agent."""
    spaces = [game.action_space(agent) for agent in game.agents]
    views = {game.observation_space(agent).shape for agent in game.agents}
    counts: set[Any] = {getattr(space, "n", None) for space in spaces}
    if len(counts) > 1 or len(views) > 1 or None in counts:
        raise EnvError(f"the agents of {name} differ, or have other than discrete actions")
    return int(counts.pop())
