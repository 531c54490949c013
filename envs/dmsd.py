"""DMSD, the double mass-spring-damper of NeoRL-2: two coupled masses must track targets.

Springs and dampers join two unit masses to walls and to each other; actions are forces on the
masses. With stiffness k and damping c of all springs and dampers, force f per unit of action and
time step Δ,

    x1' = x1 + Δ v1
    v1' = v1 + Δ (k (x2 - 2 x1) + c (v2 - 2 v1) + f a1)         and the same for 2
    r   = -Σ_i log(|x_i' - target_i'| + 0.01)

Observations [6] are (x, v, target), two elements each; actions [2] lie in [-1, 1]. Episodes are
truncated after 100 steps and never terminate. At half-time each coordinate of the target is redrawn
with probability 1/2: `next_obs` and the reward of the 50th step have the new target.

The equations were identified from the published data (polixir/neorl2_dataset, CC BY 4.0) and
reproduce them to 1e-6 (`tests/test_dmsd.py`).

`jaxrl data make` stores the simulator's state before each step in `extras["state"]`. Observations
contain the whole state except the time, which decides when targets are redrawn. `with_states` adds
states to NeoRL-2's files, with the number of steps since the start of the episode as the time.
Rollouts in the true model that pass half-time redraw targets as the environment does.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.wrappers import positive
from jaxrl.errors import UserError
from jaxrl.types import Array, Box, Env, EnvSpec, PyTree, TimeStep, Transition

PARAMS = {"stiffness": 0.1, "damping": 0.2, "force": 1.5}  # k, c and f, traced
DELTA = 0.2  # Δ
REACH = 1.5  # targets are uniform in [-REACH, REACH]²


class DmsdState(NamedTuple):
    x: Array  # [2] positions
    v: Array  # [2] velocities
    target: Array  # [2] target positions
    t: Array  # [] int32, steps since the start of the episode


def make(max_steps: int = 100) -> Env:
    """The environment. Targets may change after `max_steps` // 2 steps.

    Raises:
      EnvError: max_steps is not a positive whole number.
    """
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
    """Reward [...] of a step with the next observation `obs` [..., 6]."""
    return -jnp.sum(jnp.log(jnp.abs(obs[..., :2] - obs[..., 4:]) + 0.01), -1)


def outcome(obs: Array, action: Array, next_obs: Array, params: PyTree) -> tuple[Array, Array]:
    """Reward [] and termination [] of a step, which never terminates; see `Env`."""
    return reward_at(next_obs), jnp.zeros((), bool)


def with_states(env: str, data: Transition) -> Transition:
    """`data` with simulator states in `extras["state"]`, if they follow from the observations.

    Data of another environment than dmsd, and data that have states already, are returned as they
    are.

    Raises:
      UserError: the data begin in the middle of an episode, so the time is unknown.
    """
    if env != "dmsd" or "state" in data.extras:
        return data
    start = np.asarray(data.start)
    if not start[0]:
        raise UserError("row 0 is in the middle of an episode, so its simulator state is unknown")
    rows = np.arange(len(start))
    t = rows - np.maximum.accumulate(np.where(start, rows, 0))
    x, v, target = np.split(np.asarray(data.obs), 3, axis=1)
    return data._replace(extras=data.extras | {"state": (x, v, target, t.astype(np.int32))})
