"""AM-Q: values of policies from Q along rollouts in a learned model.

After Lei et al., Uni-O4, ICLR 2024, arXiv:2311.03351, which chooses policies by it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl.imagination import Model
from jaxrl.types import Array, HyperParams, PyTree


def imagined_q(
    world: Model,
    inputs: PyTree,
    act: Callable[[Array], Array],
    q_of: Callable[[Array, Array], Array],
    obs: Array,
    key: Array,
    steps: int,
) -> Array:
    """AM-Q [] of a policy: mean of Q(s, π(s)) along rollouts in a model from `obs` [n, *obs].

    Rollouts end at terminations.

    Args:
      act: obs [n, *obs] -> actions [n, A] of the environment.
      q_of: (obs, actions) -> Q [n].
    """

    def step(carry: PyTree, key: Array) -> tuple[PyTree, tuple[Array, Array]]:
        obs, alive = carry
        action = act(obs)
        _, out = world.step(inputs, HyperParams(()), (), obs, action, key)
        after = (out.next_obs, alive & ~out.terminated)
        return after, (jnp.sum(jnp.where(alive, q_of(obs, action), 0.0)), jnp.sum(alive))

    begin = (obs, jnp.ones(obs.shape[0], bool))
    _, (total, count) = jax.lax.scan(step, begin, jax.random.split(key, steps))
    return jnp.sum(total) / jnp.sum(count)
