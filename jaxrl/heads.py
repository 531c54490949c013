"""Heads of agents that learn a policy by weighted regression, with twin critics: an unsquashed
normal distribution in a box, or a categorical one.

Networks and initialisation are those of the authors' code of IQL (arXiv:2110.06169).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxrl import nets
from jaxrl.distributions import Categorical, Normal
from jaxrl.losses import action_distance, q_of_action
from jaxrl.spaces import box_scale
from jaxrl.types import Array, Discrete, EnvSpec, PyTree


class Layers(nn.Module):
    """[Dense -> ReLU] per width, then Dense to `out`; orthogonal weights of gain √2."""

    hidden: tuple[int, ...]
    out: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nets.orthogonal(np.sqrt(2))
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width, kernel_init=init)(x))
        return nn.Dense(self.out, kernel_init=init)(x)


class Gaussian(nn.Module):
    """Observations [B, *obs] to mean [B, A] in (-1, 1) and log-std [A] in [-5, 2]."""

    hidden: tuple[int, ...]
    size: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        mean = jnp.tanh(Layers(self.hidden, self.size)(x))
        log_std = self.param("log_std", nn.initializers.zeros, (self.size,))
        return mean, jnp.clip(log_std, -5.0, 2.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """The parts that depend on the action space. Actions are in the environment's units.

    policy(actor, obs [B, *obs]) -> dist
    log_prob(dist, action) -> [B]
    distance(dist, action) -> [] between the policy's mode and the dataset's actions
    critic_in(obs, action) -> input of both critics, [B, ...]
    q_of(outputs [B, ...] of a critic, action) -> [B]
    noise(key, n) -> noise of n actions
    act(dist, noise, explore) -> [n, ...]
    """

    actor: nets.Net
    critic: nets.Net
    policy: Callable[[Array, Array], Any]
    log_prob: Callable[[Any, Array], Array]
    distance: Callable[[Any, Array], Array]
    critic_in: Callable[[Array, Array], Array]
    q_of: Callable[[Array, Array], Array]
    noise: Callable[[Array, int], Array]
    act: Callable[[Any, Array, bool], Array]

    def twins(self, critic: PyTree, obs: Array, action: Array) -> Array:
        """Q_i(s, a) [2, B] of parameters with leaves [2, ...]."""
        x = self.critic_in(obs, action)
        # Two input copies give batched products; with a single one XLA transposes activations.
        out = jax.vmap(self.critic.apply)(critic, jnp.broadcast_to(x[None], (2, *x.shape)))
        return jax.vmap(self.q_of, (0, None))(out, action)


def head_of(agent: str, hidden: tuple[int, ...], spec: EnvSpec) -> Head:
    """The head for the action space of `spec`.

    Args:
      agent: name of the agent, for error messages.

    Raises:
      UserError: the action space is a box without bounds or of several axes.
    """
    if isinstance(spec.action, Discrete):
        return discrete_head(hidden, spec)
    return box_head(hidden, spec, agent)


def box_head(hidden: tuple[int, ...], spec: EnvSpec, agent: str = "this agent") -> Head:
    """A normal distribution over unit actions; samples are clipped to the box."""
    space = box_scale(agent, spec)
    actor = nets.packed(nets.from_linen(Gaussian(hidden, space.size), spec.obs_shape))
    inputs = (int(np.prod(spec.obs_shape)) + space.size,)

    def policy(params: PyTree, obs: Array) -> Normal:
        mean, log_std = actor.apply(params, obs)
        return Normal(mean, log_std[None])

    def critic_in(obs: Array, action: Array) -> Array:
        return jnp.concatenate([obs.reshape(obs.shape[0], -1), space.unit(action)], -1)

    def act(dist: Normal, noise: Array, explore: bool) -> Array:
        action = dist.sample(noise) if explore else dist.mode
        return space.scaled(jnp.clip(action, -1.0, 1.0))

    return Head(
        actor=actor,
        critic=nets.packed(nets.from_linen(Layers(hidden, 1), inputs)),
        policy=policy,
        log_prob=lambda dist, action: dist.log_prob(space.unit(action)),
        distance=lambda dist, action: action_distance(dist.mode, space.unit(action)),
        critic_in=critic_in,
        q_of=lambda out, action: out[:, 0],
        noise=lambda key, n: Normal.noise(key, (n, space.size)),
        act=act,
    )


def discrete_head(hidden: tuple[int, ...], spec: EnvSpec) -> Head:
    """A categorical distribution; critics have one output per action."""
    space = spec.action
    assert isinstance(space, Discrete)
    net = nets.packed(nets.from_linen(Layers(hidden, space.n), spec.obs_shape))
    return Head(
        actor=net,
        critic=net,
        policy=lambda params, obs: Categorical(net.apply(params, obs)),
        log_prob=lambda dist, action: dist.log_prob(action),
        distance=lambda dist, action: jnp.mean(dist.mode != action, dtype=jnp.float32),
        critic_in=lambda obs, action: obs,
        q_of=q_of_action,
        noise=lambda key, n: Categorical.noise(key, (n, space.n)),
        act=lambda dist, noise, explore: dist.sample(noise) if explore else dist.mode,
    )
