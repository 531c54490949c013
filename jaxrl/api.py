"""A trained policy as a function of observations."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError

from jaxrl.errors import UserError
from jaxrl.masks import unmask
from jaxrl.program import Result
from jaxrl.types import Agent, Array, Policy, PyTree


class TrainedPolicy(NamedTuple):
    """A policy with the state and the hyperparameters that it acts with.

    Called with observations [n, *obs] it returns actions [n, ...]. `policy.act(state, hp, ...)` is
    the same as a pure function.
    """

    policy: Policy
    state: PyTree
    hp: PyTree

    def __call__(self, obs: Array, key: Array | None = None, *, explore: bool = False) -> Array:
        """Actions [n, ...] for observations [n, *obs].

        Args:
          obs: also a list of rows.
          key: a random key; needed only with `explore`.
          explore: act as during training instead of greedily.

        Raises:
          UserError: the policy is recurrent (see `step`), explores without a key, or was trained
            on observations of another shape.
        """
        obs = jnp.asarray(obs) if isinstance(obs, list) else obs
        count = len(unmask(obs)[0])
        memory = self.policy.memory(count)
        if jax.tree.leaves(memory):
            raise UserError("this policy has a memory: use .step(obs, start, memory, key)")
        start = jnp.ones(count, bool)
        return self.step(obs, start, memory, key, explore=explore)[0]

    def step(
        self,
        obs: Array,
        start: Array,
        memory: PyTree,
        key: Array | None = None,
        *,
        explore: bool = False,
    ) -> tuple[Array, PyTree]:
        """Actions [n, ...] and the memory after them, for policies with a memory too.

        Args:
          obs: [n, *obs].
          start: [n] bool, where an episode begins; memory is reset there.
          memory: `policy.memory(n)` at first, then what the last call returned.
        """
        if key is None:
            if explore:
                raise UserError("exploration needs a random key: pass key=jax.random.key(...)")
            key = jax.random.key(0)
        noise = self.policy.noise(key, len(unmask(obs)[0]))
        args = (self.state, self.hp, obs, start, memory, noise, explore)
        try:
            action, memory, _ = self.policy.act(*args)
        except ScopeParamShapeError:
            raise UserError(
                f"this policy was not trained on observations of the shape {unmask(obs)[0].shape}: "
                "pass one row per environment, [n, *obs], such as obs[None]"
            ) from None
        return action, memory


def policy(result: Result, member: int = 0) -> TrainedPolicy:
    """The policy that a run trained: `act = policy(result)`, then `act(obs)` or `act(obs, key)`.

    Args:
      result: of one member, or of a population [P] (a vmapped `train`).
      member: which member of the population.

    Raises:
      UserError: there is no such member, or the last stage trains no policy.
    """
    learner = result.program.stages[-1].learner
    if not isinstance(learner, Agent):
        raise UserError(f"stage {result.program.stages[-1].name!r} trains no policy")
    state, hp = result.state, result.hp.agent
    axes = jax.tree.leaves(hp)[0].ndim
    count = jax.tree.leaves(hp)[0].shape[0] if axes else 1
    if axes > 1 or not 0 <= member < count:
        raise UserError(f"member {member}: the result has members 0 to {count - 1}, on one axis")
    if axes:
        state, hp = jax.tree.map(lambda x: x[member], (state, hp))
    return TrainedPolicy(learner, state, hp)
