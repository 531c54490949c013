"""DMSD: two coupled masses that follow targets; a task of the NeoRL-2 benchmark in closed form.

Two unit masses between walls, joined to the walls and to each other by springs and dampers; actions
push them. With k the stiffness and c the damping of all springs and dampers, f the strength of the
actions and Δ the time step,

    x1' = x1 + Δ v1
    v1' = v1 + Δ (k (x2 - 2 x1) + c (v2 - 2 v1) + f a1)         and the same for 2
    r   = -Σ_i log(|x_i' - target_i'| + 0.01)

Observations [6] are x, v, target; actions [2] lie in [-1, 1]. An episode has 100 steps and no
termination. Each target coordinate is drawn again at half-time with probability 1/2: `next_obs` and
the reward of the 50th step have the new one.

The equations were found from the published data (polixir/neorl2_dataset, CC BY 4.0), which they
reproduce to 1e-6; `tests/test_dmsd.py` shows it.

`jaxrl data make` stores the state of the simulator before each step in `extras["state"]`. The
observation holds all of the state but the time, which decides when targets are drawn again.
`with_states` adds states to NeoRL-2's files: the time is the number of steps since the episode
began. Rollouts in a true model that pass half-time then draw their own new targets, as the
environment does.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.wrappers import positive
from jaxrl.errors import UserError
from jaxrl.types import Array, Box, Env, EnvSpec, PyTree, TimeStep, Transition

PARAMS = {"stiffness": 0.1, "damping": 0.2, "force": 1.5}
DELTA = 0.2
REACH = 1.5  # targets lie in [-REACH, REACH]


class DmsdState(NamedTuple):
    x: Array  # [2] positions
    v: Array  # [2] velocities
    target: Array  # [2]
    t: Array  # [] int32


def make(max_steps: int = 100) -> Env:
    """The task; targets may change after half of `max_steps`."""
    limit = positive(max_steps, "max_steps of dmsd")

    def draw_target(key: Array) -> Array:
        return jax.random.uniform(key, (2,), minval=-REACH, maxval=REACH)

    def observe(state: DmsdState) -> Array:
        return jnp.concatenate([state.x, state.v, state.target])

    def reset(key: Array, params: PyTree) -> tuple[DmsdState, Array]:
        key_x, key_v, key_target = jax.random.split(key, 3)
        state = DmsdState(
            jax.random.uniform(key_x, (2,), minval=-0.25, maxval=0.25),
            jax.random.uniform(key_v, (2,), minval=-0.1, maxval=0.1),
            draw_target(key_target),
            jnp.int32(0),
        )
        return state, observe(state)

    def step(
        key: Array, state: DmsdState, action: Array, params: PyTree
    ) -> tuple[DmsdState, TimeStep]:
        key_target, key_which = jax.random.split(key)
        x, v, target, t = state
        pull = x[::-1] - 2 * x
        drag = v[::-1] - 2 * v
        push = jnp.clip(action, -1.0, 1.0)
        force = params["stiffness"] * pull + params["damping"] * drag + params["force"] * push
        t = t + 1
        again = (t == limit // 2) & jax.random.bernoulli(key_which, shape=(2,))
        target = jnp.where(again, draw_target(key_target), target)
        after = DmsdState(x + DELTA * v, v + DELTA * force, target, t)
        obs = observe(after)
        return after, TimeStep(obs, reward_at(obs), jnp.zeros((), bool), t >= limit)

    params = {name: jnp.float32(value) for name, value in PARAMS.items()}
    space = Box((-1.0, -1.0), (1.0, 1.0), (2,))
    return Env(EnvSpec("dmsd", (6,), space, limit), params, reset, step, outcome=outcome)


def reward_at(obs: Array) -> Array:
    """[...] of arriving where [..., 6] is observed."""
    return -jnp.sum(jnp.log(jnp.abs(obs[..., :2] - obs[..., 4:]) + 0.01), -1)


def outcome(obs: Array, action: Array, next_obs: Array, params: PyTree) -> tuple[Array, Array]:
    """Reward and termination of a step: see `Env`."""
    return reward_at(next_obs), jnp.zeros((), bool)


def with_states(env: str, data: Transition) -> Transition:
    """`data` with states of the environment called `env`; as it is where it has them or must.

    Raises:
      UserError: data that begin in the middle of an episode.
    """
    if env != "dmsd" or "state" in data.extras:
        return data
    start = np.asarray(data.start)
    if not start[0]:
        raise UserError("row 0 is in the middle of an episode: its simulator state is not known")
    rows = np.arange(len(start))
    t = rows - np.maximum.accumulate(np.where(start, rows, 0))
    x, v, target = np.split(np.asarray(data.obs), 3, axis=1)
    return data._replace(extras=data.extras | {"state": (x, v, target, t.astype(np.int32))})
