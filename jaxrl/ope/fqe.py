"""FQE: fitted Q-evaluation, the Q-values of a fixed policy by temporal differences on a dataset.

Batch Policy Learning under Constraints. Hoang Le, Cameron Voloshin, Yisong Yue. ICML 2019,
arXiv:1903.08708.

Q(s, a) is regressed on r + γ (1 - terminated) Σ_a' π(a'|s') Q'(s', a'), with Q' a slow copy of Q.
Deviations: one gradient step per batch and Polyak averaging instead of complete regressions; time
limits bootstrap, so Q is the value without a time limit; rewards are divided by a typical value, so
that one learning rate serves tasks of different rewards; targets may be limited to a range.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from jaxrl import nets
from jaxrl.losses import critic_loss, q_of_action, td_target
from jaxrl.normalise import Moments, data_moments, standardise_obs
from jaxrl.ope.targets import Target
from jaxrl.optim import Trainable, minimise, polyak
from jaxrl.ranges import bounded
from jaxrl.types import Array, Discrete, EnvSpec, Learner, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
    """Static configuration: a new value compiles a new program."""

    batch_size: int = 256
    """transitions per gradient step"""
    normalise_obs: bool = True
    """standardise observations with the mean and standard deviation of the dataset"""
    hidden: tuple[int, ...] = (128, 128)
    """widths of the hidden layers; () for a linear Q-function"""


@struct.dataclass
class Hypers:
    """Traced hyperparameters: candidates may differ in each."""

    lr: Any = bounded(3e-4, least=0)
    """learning rate of Adam"""
    gamma: Any = bounded(0.99, least=0, most=1)
    """discount factor"""
    tau: Any = bounded(0.1, least=0, most=1)
    """Polyak step size of the target network, which carries rewards 1 / (1 - γ) steps back"""
    spread: Any = bounded(0.0, least=0)
    """ε or σ of the target policy, see `targets`"""
    lowest: Any = -np.inf
    """lower limit of the regression's targets, see `value_range`"""
    highest: Any = np.inf
    """upper limit of the regression's targets"""


class State(NamedTuple):
    params: PyTree  # Q-network (`nets.packed`)
    target: PyTree  # its slow copy
    opt: optax.OptState
    obs: Moments  # [*obs] mean and variance of the dataset's observations
    scale: Array  # [] by which rewards and values are divided


class Critic(NamedTuple):
    """Q-functions of one action space; actions as `targets.Target.unit` gives them.

    value(state, params, obs [n, *obs], action [n, ...]) -> Q [n], divided by `State.scale`
    values(state, params, obs, actions [n, K, ...]) -> Q [n, K] of a target's candidates
    """

    net: nets.Net
    value: Callable[[State, PyTree, Array, Array], Array]
    values: Callable[[State, PyTree, Array, Array], Array]


def critic(cfg: Config, spec: EnvSpec) -> Critic:
    """Discrete spaces: one output per action. Boxes: the action is an input."""
    seen = lambda state, obs: standardise_obs(cfg, state.obs, obs)
    if isinstance(spec.action, Discrete):
        mlp = nets.MLP(cfg.hidden, spec.action.n)
        net = nets.packed(nets.from_linen(mlp, spec.obs_shape))

        def every(state: State, params: PyTree, obs: Array, actions: Array) -> Array:
            return net.apply(params, seen(state, obs))

        def one(state: State, params: PyTree, obs: Array, action: Array) -> Array:
            return q_of_action(every(state, params, obs, action), action)

        return Critic(net, one, every)
    size = spec.obs_size + spec.action.shape[0]
    net = nets.packed(nets.from_linen(nets.MLP(cfg.hidden, 1), (size,)))

    def value(state: State, params: PyTree, obs: Array, action: Array) -> Array:
        flat = seen(state, obs).reshape(len(obs), -1)
        return net.apply(params, jnp.concatenate([flat, action], -1))[:, 0]

    def values(state: State, params: PyTree, obs: Array, actions: Array) -> Array:
        of_one = lambda action: value(state, params, obs, action)
        return jax.vmap(of_one, 1, 1)(actions)

    return Critic(net, value, values)


def learner(cfg: Config, spec: EnvSpec, target: Target) -> Learner:
    """FQE as a learner of batches with unit actions (`Target.unit`) and extras["next_mode"], the
    greedy actions [B, ...] at next_obs."""
    q = critic(cfg, spec)

    def init(key, hp, inputs):
        params = q.net.init(key)
        opt, seen = optax.adam(hp.lr).init(params), data_moments(cfg, spec, inputs)
        return State(params, params, opt, seen, value_scale(inputs["data"].reward, hp.gamma))

    def update(state, hp, batch, key, step):
        t = batch.transitions
        action, weight = target.candidates(t.extras["next_mode"], hp.spread, key)
        ahead = jnp.sum(weight * q.values(state, state.target, t.next_obs, action), -1)
        y = td_target(t._replace(reward=t.reward / state.scale), hp.gamma, ahead)
        y = jnp.clip(y, hp.lowest / state.scale, hp.highest / state.scale)

        def loss(params: PyTree) -> tuple[Array, Array]:
            chosen = q.value(state, params, t.obs, t.action)
            return critic_loss(chosen[None], y), chosen

        at = Trainable(state.params, state.opt)
        (params, opt), value, chosen = minimise(loss, at, hp.lr)
        slow = polyak(state.target, params, hp.tau)
        metrics = {
            "critic_loss": value * state.scale**2,
            "q": jnp.mean(chosen) * state.scale,
            "td_error": jnp.mean(jnp.abs(chosen - y)) * state.scale,
        }
        return State(params, slow, opt, state.obs, state.scale), metrics

    return Learner(init=init, update=update, hypers=Hypers())


def value_scale(reward: Array, gamma: Array) -> Array:
    """mean |r| / (1 - γ) [], with 1 - γ at least 0.01, and 1 where all rewards are 0."""
    mean = jnp.mean(jnp.abs(reward))
    return jnp.where(mean > 0, mean, 1.0) / jnp.maximum(1 - gamma, 0.01)


def value_range(reward: Array, gamma: Array | float) -> tuple[Array, Array]:
    """The lowest and the highest value [] that a policy can have, with rewards like those of data.

    Targets limited to this range keep Q from diverging at actions that the data do not have.
    """
    most = 1 / jnp.maximum(1 - gamma, 1e-6)
    return jnp.minimum(jnp.min(reward), 0.0) * most, jnp.maximum(jnp.max(reward), 0.0) * most


def q_and_value(
    q: Critic, target: Target, state: State, spread: Array, key: Array, rows: tuple[Array, ...]
) -> tuple[Array, Array]:
    """Q(s, a) [n] and V(s) = E_π Q(s, ·) [n], in units of rewards.

    Args:
      rows: (obs [n, *obs], unit actions [n, ...], greedy actions [n, ...]).
    """
    obs, action, mode = rows
    actions, weight = target.candidates(mode, spread, key)
    value = jnp.sum(weight * q.values(state, state.params, obs, actions), -1)
    return state.scale * q.value(state, state.params, obs, action), state.scale * value
