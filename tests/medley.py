"""Several environments as one, so that one compiled program trains agents in all of them."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxrl.types import Array, Env, EnvSpec, PyTree, TimeStep


def medley(kinds: Sequence[Env]) -> Env:
    """`kinds` have states, observations and actions of one form; the parameter `kind` picks one."""

    def reset(key: Array, params: PyTree) -> tuple[PyTree, Array]:
        return jax.lax.switch(params["kind"], [lambda k, e=e: e.reset(k, {}) for e in kinds], key)

    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        return jax.lax.switch(
            params["kind"],
            [lambda *args, e=e: e.step(*args, {}) for e in kinds],
            *(key, state, action),
        )

    first, limit = kinds[0].spec, max(env.spec.max_steps or 0 for env in kinds)
    spec = EnvSpec("medley", first.obs_shape, first.action, limit)
    return Env(spec, {"kind": jnp.int32(0)}, reset, step)
