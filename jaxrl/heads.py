"""Actor and critic heads of agents that clone actions, initialised as in IQL's code.

Implicit Q-Learning. Ilya Kostrikov, Ashvin Nair, Sergey Levine. ICLR 2022, arXiv:2110.06169.
The heads of SAC and its variants are in `jaxrl.policies`.
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
from jaxrl.corrections import dropped
from jaxrl.distributions import Categorical, Normal
from jaxrl.losses import action_distance, q_of_action
from jaxrl.products import Dense
from jaxrl.spaces import box_scale
from jaxrl.types import Array, Discrete, EnvSpec, PyTree


class Layers(nn.Module):
    """[Dense -> ReLU (-> dropout, with a key)] per width, Dense to `out`; orthogonal, gain √2."""

    hidden: tuple[int, ...]
    out: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, key: Array | None = None) -> Array:
        init = nets.orthogonal(np.sqrt(2))
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.hidden):
            x = nn.relu(Dense(width, kernel_init=init)(x))
            if self.dropout and key is not None:
                x = dropped(x, jax.random.fold_in(key, i), self.dropout)
        return Dense(self.out, kernel_init=init)(x)


class Gaussian(nn.Module):
    """Observations [B, *obs] to mean [B, A] in (-1, 1) and log-std [A] in [-5, 2]."""

    hidden: tuple[int, ...]
    size: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, key: Array | None = None) -> tuple[Array, Array]:
        mean = jnp.tanh(Layers(self.hidden, self.size, self.dropout)(x, key))
        log_std = self.param("log_std", nn.initializers.zeros, (self.size,))
        return mean, jnp.clip(log_std, -5.0, 2.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """The parts that depend on the action space. Actions are in the environment's units.

    policy(actor, obs [B, *obs], key of dropout or nothing) -> dist
    log_prob(dist, action) -> [B]
    distance(dist, action) -> [] between the policy's mode and the dataset's actions
    critic_in(obs, action) -> input of both critics, [B, ...]
    q_of(outputs [B, ...] of a critic, action) -> [B]
    noise(key, n) -> noise of n actions
    act(dist, noise, explore) -> [n, ...]
    """

    actor: nets.Net
    critic: nets.Net
    policy: Callable[..., Any]
    log_prob: Callable[[Any, Array], Array]
    distance: Callable[[Any, Array], Array]
    critic_in: Callable[[Array, Array], Array]
    q_of: Callable[[Array, Array], Array]
    noise: Callable[[Array, int], Array]
    act: Callable[[Any, Array, bool], Array]

    def twins(self, critic: PyTree, obs: Array, action: Array) -> Array:
        """Q_i(s, a) [2, B] of parameters with leaves [2, ...]."""
        x = self.critic_in(obs, action)
        out = nets.each(self.critic.apply)(critic, x)
        return jax.vmap(self.q_of, (0, None))(out, action)


def box_head(hidden: tuple[int, ...], spec: EnvSpec, dropout: float = 0.0) -> Head:
    """A normal distribution over unit actions; samples are clipped to the box."""
    space = box_scale("a normal policy", spec)
    actor = nets.packed(nets.from_linen(Gaussian(hidden, space.size, dropout), spec.obs_shape))
    inputs = (spec.obs_size + space.size,)

    def policy(params: PyTree, obs: Array, *key: Array) -> Normal:
        mean, log_std = actor.apply(params, obs, *key)
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


def discrete_head(hidden: tuple[int, ...], spec: EnvSpec, dropout: float = 0.0) -> Head:
    """A categorical distribution; critics have one output per action."""
    space = spec.action
    assert isinstance(space, Discrete)
    net = nets.packed(nets.from_linen(Layers(hidden, space.n, dropout), spec.obs_shape))
    return Head(
        actor=net,
        critic=net,
        policy=lambda params, obs, *key: Categorical(net.apply(params, obs, *key)),
        log_prob=lambda dist, action: dist.log_prob(action),
        distance=lambda dist, action: jnp.mean(dist.mode != action, dtype=jnp.float32),
        critic_in=lambda obs, action: obs,
        q_of=q_of_action,
        noise=lambda key, n: Categorical.noise(key, (n, space.n)),
        act=lambda dist, noise, explore: dist.sample(noise) if explore else dist.mode,
    )


def head_of(hidden: tuple[int, ...], spec: EnvSpec, dropout: float = 0.0) -> Head:
    """The head for the action space of `spec`; dropout is the policy's.

    Raises:
      UserError: the action space is a box without bounds or of several axes.
    """
    head_for = discrete_head if isinstance(spec.action, Discrete) else box_head
    return head_for(hidden, spec, dropout)
