"""PPO: proximal policy optimisation with clipped ratios, for discrete and continuous actions.

Proximal Policy Optimization Algorithms. John Schulman, Filip Wolski, Prafulla Dhariwal, Alec
Radford, Oleg Klimov. 2017, arXiv:1707.06347. Details as in Engstrom et al., Implementation Matters
in Deep Policy Gradients, ICLR 2020, arXiv:2005.12729. Each detail can be turned off.

Each rollout is used for several epochs of the clipped objective min(r A, clip(r, 1 ± ε) A) of the
probability ratio r (eq. 7), with GAE advantages. Policy and value network share no layers.
Continuous actions are normal with a state-independent std, in units of half the width of the action
box around its centre (actions without two finite bounds are in units of the box itself). Samples
are clipped to the bounds before the environment steps; probabilities are of the unclipped sample.

Deviations:
- Time limits bootstrap from the true successor.
- Running statistics of observations take effect in the next rollout, so that a rollout is learned
  with the statistics it was collected with.
- Scaled rewards are not clipped.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jax.flatten_util import ravel_pytree

from jaxrl import nets
from jaxrl.algorithm import Algorithm
from jaxrl.distributions import Categorical, Normal
from jaxrl.errors import UserError
from jaxrl.masks import ILLEGAL_LOGIT, critic_shape, critic_view, legal_only, unmask
from jaxrl.minibatch import sgd_epochs
from jaxrl.normalise import normalised
from jaxrl.objectives.advantages import batch_normalised
from jaxrl.optim import linear
from jaxrl.policies import agent_of
from jaxrl.products import Dense
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import check_rollouts, on_policy
from jaxrl.returns import gae, successor_values
from jaxrl.sources import merge_axes
from jaxrl.spaces import clip_to_box, from_units
from jaxrl.types import Agent, Array, Box, Discrete, Env, EnvSpec, Policy, PyTree, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Static configuration: a new value compiles a new program."""

    total_steps: int = 1_000_000
    """environment steps of a run, summed over its parallel environments"""
    num_envs: int = 16
    """parallel environments N"""
    num_steps: int = 128
    """steps T per environment and rollout"""
    minibatches: int = 32
    """minibatches per epoch; divides N * T"""
    epochs: int = 10
    """passes over each rollout"""
    conv: tuple[int, ...] = ()
    """channels of 3x3 convolutions before the dense layers, for image observations"""
    actor: tuple[int, ...] = (64, 64)
    """widths of the policy's hidden layers"""
    critic: tuple[int, ...] = (64, 64)
    """widths of the value network's hidden layers"""
    activation: Literal["tanh", "relu"] = "tanh"
    """activation function of the hidden layers"""
    orthogonal: bool = True
    """orthogonal initialisation, gain 0.01 in the policy's output layer; otherwise LeCun normal"""
    advantages: Literal["minibatch", "batch", "raw"] = "minibatch"
    """standardise advantages per minibatch, per rollout (batch) or not at all (raw); of two rows
    per minibatch only the order remains: their advantages become 1 and -1"""
    clip_value: bool = False
    """clip value predictions to value_clip around the rollout's in the value loss"""
    normalise_obs: bool = False
    """standardise observations with running statistics"""
    normalise_reward: bool = False
    """divide rewards by the running standard deviation of discounted returns"""
    resets: int = 0
    """initial states drawn per environment and rollout; divides num_steps; 0 draws one per step"""

    @property
    def updates(self) -> int:
        return self.total_steps // (self.num_envs * self.num_steps)


@struct.dataclass
class Hypers:
    """Traced hyperparameters: members of one run may differ in each."""

    lr: Any = bounded(3e-4, least=0)
    """initial learning rate of Adam"""
    lr_end: Any = bounded(0.0, least=0)
    """final learning rate of the linear schedule, as a fraction of lr; 1 keeps it constant"""
    gamma: Any = bounded(0.99, least=0, most=1)
    """discount factor"""
    lam: Any = bounded(0.95, least=0, most=1)
    """λ of generalised advantage estimation (GAE)"""
    clip: Any = bounded(0.2, above=0, finite=False)
    """clipping range of the probability ratio"""
    value_clip: Any = bounded(0.2, above=0, finite=False)
    """clipping range of value predictions in the value loss; used with clip_value"""
    value_weight: Any = bounded(0.5, least=0)
    """weight of the value loss"""
    entropy_weight: Any = bounded(0.0, least=0)
    """weight of the entropy bonus"""
    max_grad_norm: Any = bounded(0.5, above=0, finite=False)
    """global norm to which gradients are clipped"""


class State(NamedTuple):
    params: dict[str, PyTree]  # parameters of "actor" and "critic"
    opt: Any  # Adam's state on the flat parameters


class Experience(NamedTuple):
    """A rollout as rows [B]."""

    obs: Array  # [B, *obs]
    sample: Array  # [B, ...] action before scaling and clipping
    log_prob: Array  # [B] of the sample under the rollout's policy
    value: Array  # [B] of obs under the rollout's parameters
    advantage: Array  # [B]
    target: Array  # [B] λ-returns, the value network's targets


# --- networks ------------------------------------------------------------------------------------


class Network(nn.Module):
    """[Conv -> activation] per channel count of `cfg.conv`, [Dense -> activation] per entry of
    `hidden`, then Dense to `out` with gain `gain` if weights are orthogonal."""

    cfg: Config
    hidden: tuple[int, ...]
    out: int
    gain: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        activation = {"tanh": nn.tanh, "relu": nn.relu}[self.cfg.activation]
        for features in self.cfg.conv:
            x = activation(nets.Conv(features, kernel_init=self._init(np.sqrt(2)))(x))
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = activation(Dense(width, kernel_init=self._init(np.sqrt(2)))(x))
        return Dense(self.out, kernel_init=self._init(self.gain))(x)

    def _init(self, gain: float) -> nn.initializers.Initializer:
        orthogonal = self.cfg.orthogonal
        return nets.orthogonal(gain) if orthogonal else nn.initializers.lecun_normal()


class Actor(nn.Module):
    """obs [B, *obs] to a distribution over actions [B]."""

    cfg: Config
    action: Discrete | Box

    @nn.compact
    def __call__(self, obs: Array) -> Categorical | Normal:
        size = self.action.n if isinstance(self.action, Discrete) else self.action.shape[0]
        out = Network(self.cfg, self.cfg.actor, size, 0.01)(obs)
        if isinstance(self.action, Discrete):
            return Categorical(out)
        log_std = self.param("log_std", nn.initializers.zeros, (size,))
        return Normal(out, jnp.broadcast_to(log_std[None], out.shape))


class Networks(NamedTuple):
    actor: nets.Net  # apply(params, obs [B, *obs]) -> distribution over actions [B]
    critic: nets.Net  # apply(params, obs [B, *obs]) -> values [B, 1]

    def init(self, key: Array) -> dict[str, PyTree]:
        key_actor, key_critic = jax.random.split(key)
        return {"actor": self.actor.init(key_actor), "critic": self.critic.init(key_critic)}

    def value(self, critic: PyTree, obs: Array) -> Array:
        """[B]."""
        return self.critic.apply(critic, obs)[..., 0]


def networks(cfg: Config, spec: EnvSpec) -> Networks:
    """Networks of observations; with action masks, illegal actions have probability 0."""
    actor = nets.from_linen(Actor(cfg, spec.action), spec.obs_shape)
    critic = nets.from_linen(Network(cfg, cfg.critic, 1, 1.0), critic_shape(spec))

    def policy(params: PyTree, seen: Any) -> Categorical | Normal:
        obs, legal = unmask(seen)
        found = actor.apply(params, obs)
        return (
            found if legal is None else Categorical(legal_only(found.logits, legal, ILLEGAL_LOGIT))
        )

    value = lambda params, seen: critic.apply(params, critic_view(seen))
    return Networks(nets.Net(actor.init, policy), nets.Net(critic.init, value))


# --- the agent -----------------------------------------------------------------------------------


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: the action space is neither discrete nor a box of one axis, or sizes do not
        fit together.
    """
    check(cfg, spec)
    check_advantages(cfg, "minibatches", cfg.minibatches)
    model = networks(cfg, spec)
    policy = acting(model, spec)

    def init(key, hp, inputs):
        params = model.init(key)
        return State(params, optimiser(hp.lr, hp.max_grad_norm).init(ravel_pytree(params)[0]))

    def update(state, hp, batch, key, step):
        data = experience(cfg, model, state.params, hp, batch.transitions)
        adam = optimiser(hp.lr * linear(step / cfg.updates, 1.0, hp.lr_end), hp.max_grad_norm)

        loss = functools.partial(clipped_loss, cfg, model, hp)
        (params, opt), metrics = sgd_epochs(
            loss, (state.params, state.opt), adam, key, data, cfg.epochs, cfg.minibatches
        )
        return State(params, opt), metrics

    return with_statistics(cfg, spec, agent_of(policy, init, update, Hypers()))


def acting(model: Networks, spec: EnvSpec) -> Policy:
    """Samples when exploring, else takes the mode; records the extras for `experience`."""
    space, scaled = spec.action, from_units(spec.action)

    def noise(key: Array, n: int) -> Array:
        if isinstance(space, Discrete):
            return Categorical.noise(key, (n, space.n))
        return Normal.noise(key, (n, *space.shape))

    def act(state, hp, obs, start, memory, noise, explore):
        policy = model.actor.apply(state.params["actor"], obs)
        if not explore:
            return clip_to_box(space, scaled(policy.mode)), memory, {}
        sample = policy.sample(noise)
        extras = {"sample": sample, "log_prob": policy.log_prob(sample)}
        return clip_to_box(space, scaled(sample)), memory, extras

    return Policy(act=act, noise=noise, masks=True, bytes=True, views=True)


def with_statistics(cfg: Config, spec: EnvSpec, agent: Agent) -> Agent:
    """The agent with normalised observations and rewards, as set in `cfg`."""
    return normalised(agent, spec, cfg.num_envs, obs=cfg.normalise_obs, reward=cfg.normalise_reward)


# --- learning ------------------------------------------------------------------------------------


def experience(
    cfg: Config,
    model: Networks,
    params: dict[str, PyTree],
    hp: Any,
    window: Transition,
) -> Experience:
    """The rows [T * N], with advantages, of a rollout [T, N] collected with `params`."""
    value_of = lambda obs: model.value(params["critic"], obs)
    value = value_of(merge_axes(window.obs)).reshape(window.reward.shape)
    advantage = gae(
        window.reward,
        value,
        successor_values(value_of, window.next_obs, value, window.truncated),
        window.terminated,
        window.truncated,
        hp.gamma,
        hp.lam,
    )
    rows = Experience(
        obs=window.obs,
        sample=window.extras["sample"],
        log_prob=window.extras["log_prob"],
        value=value,
        advantage=batch_normalised(advantage) if cfg.advantages == "batch" else advantage,
        target=advantage + value,
    )
    return merge_axes(rows)


def clipped_gain(ratio: Array, advantage: Array, clip: Array | float) -> Array:
    """min(r A, clip(r, 1 - ε, 1 + ε) A) [B], the objective to maximise (eq. 7)."""
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)


def clipped_loss(
    cfg: Config, model: Networks, hp: Any, params: dict[str, PyTree], part: Experience
) -> tuple[Array, dict[str, Array]]:
    """(loss [] of policy and value network, metrics) on rows [B]."""
    new = model.actor.apply(params["actor"], part.obs)
    log_ratio = new.log_prob(part.sample) - part.log_prob
    advantage = part.advantage
    if cfg.advantages == "minibatch":
        advantage = batch_normalised(advantage)
    gain = jnp.mean(clipped_gain(jnp.exp(log_ratio), advantage, hp.clip))
    error = value_loss(cfg, hp, model.value(params["critic"], part.obs), part)
    entropy = jnp.mean(new.entropy())
    total = hp.value_weight * error - gain - hp.entropy_weight * entropy
    return total, {
        "policy_loss": -gain,
        "value_loss": error,
        "entropy": entropy,
        # E[r - 1 - log r] is a low-variance estimate of KL(old || new).
        "kl": jnp.mean(jnp.expm1(log_ratio) - log_ratio),
        "clipped": jnp.mean(jnp.abs(jnp.expm1(log_ratio)) > hp.clip),
    }


def value_loss(cfg: Config, hp: Any, value: Array, part: Experience) -> Array:
    """Mean of ½ (V - target)² over values [B]. With `clip_value`, the maximum of this error and of
    the error with V clipped to ±`value_clip` around the rollout's value."""
    error = (value - part.target) ** 2
    if cfg.clip_value:
        near = part.value + jnp.clip(value - part.value, -hp.value_clip, hp.value_clip)
        error = jnp.maximum(error, (near - part.target) ** 2)
    return 0.5 * jnp.mean(error)


def optimiser(lr: Array, max_grad_norm: Array) -> optax.GradientTransformation:
    """Gradient clipping by global norm, then Adam."""
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.adam(lr, eps=1e-5))


# --- runs ----------------------------------------------------------------------------------------


def check(cfg: Config, spec: EnvSpec) -> None:
    """Raises UserError if the environment is not supported or sizes do not fit together."""
    if isinstance(spec.action, Box) and len(spec.action.shape) != 1:
        raise UserError(f"box actions must have one axis; {spec.name} has {spec.action.shape}")
    if cfg.conv and spec.critic_shape is not None:
        raise UserError(
            f"conv takes one observation for all networks; {spec.name} has one for critics too: "
            "leave out hide_from or critic_obs"
        )
    nets.check_images(spec, cfg.conv)
    check_rollouts(cfg, "actor", "critic", "conv", resets=cfg.resets)


def check_advantages(cfg: Config, name: str, parts: int) -> None:
    """Raises UserError if single rows are standardised, which makes all advantages 0.

    Args:
      name: option that sets `parts`, the policy's minibatches per epoch.
    """
    rows = cfg.num_envs * cfg.num_steps
    if cfg.advantages == "minibatch" and rows < 2 * parts:
        raise UserError(
            f"advantages=minibatch needs two rows per minibatch, so {name} of at most {rows // 2}, "
            f"not {parts}; or use advantages=batch"
        )
    if cfg.advantages == "batch" and rows < 2:
        raise UserError(f"advantages=batch needs two rows per rollout, got {rows}; use raw")


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Program of a run with `evals` evaluations of `episodes` episodes of the policy's mode."""
    return on_policy(cfg, env, make(cfg, env.spec), evals, episodes)


ALGORITHM = Algorithm(Config, Hypers, make, program)
