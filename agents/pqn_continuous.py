"""PQN for continuous actions: a deterministic actor and a critic, without replay or target network.

Simplifying Deep Temporal Difference Learning. Matteo Gallici, Mattie Fellows, Benjamin Ellis,
Bartomeu Pou, Ivan Masmitja, Jakob Nicolaus Foerster, Mario Martin. ICLR 2025, arXiv:2407.04811.
The algorithm follows the authors' code for MuJoCo Playground; the paper does not describe it.

Parallel environments act with Gaussian exploration noise. The critic learns λ-returns of the noisy
policy, as SARSA(λ) does. The actor maximises Q(s, π(s)) with a penalty on changes of its actions
since the rollout.

Deviations from the authors' code:
- Time limits bootstrap from the true successor, valued at an action with fresh noise.
- The λ-recursion is exact at every step (see `jaxrl.agents.pqn`).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from jaxrl import nets
from jaxrl.algorithm import Algorithm
from jaxrl.errors import UserError, at_least
from jaxrl.losses import huber
from jaxrl.minibatch import scan_epochs
from jaxrl.normalise import normalised
from jaxrl.optim import clipped_radam, linear
from jaxrl.products import Dense
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import check_rollouts, on_policy
from jaxrl.returns import lambda_returns, successor_values
from jaxrl.sources import merge_axes
from jaxrl.spaces import box_scale, clip_to_box
from jaxrl.types import Agent, Array, Env, EnvSpec, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
    """Static configuration: a new value compiles a new program."""

    total_steps: int = 5_000_000
    """environment steps of a run, summed over its parallel environments"""
    num_envs: int = 1024
    """parallel environments N"""
    num_steps: int = 32
    """steps T per environment and rollout"""
    minibatches: int = 32
    """minibatches per epoch; divides N * T"""
    epochs: int = 4
    """passes over each rollout"""
    actor: tuple[int, ...] = (256, 128)
    """widths of the policy's hidden layers"""
    critic: tuple[int, ...] = (512, 256)
    """widths of each critic's hidden layers"""
    critics: int = 1
    """critics in the ensemble; targets and actor use their mean"""
    normalise_obs: bool = True
    """standardise observations with running statistics"""
    normalise_reward: bool = False
    """divide rewards by the running standard deviation of discounted returns"""
    resets: int = 1
    """initial states drawn per environment and rollout; divides num_steps"""

    @property
    def updates(self) -> int:
        return self.total_steps // (self.num_envs * self.num_steps)


@struct.dataclass
class Hypers:
    """Traced hyperparameters: members of one run may differ in each."""

    lr: Any = bounded(5e-4, least=0)
    """initial learning rate of RAdam"""
    lr_end: Any = bounded(0.01, least=0)
    """final learning rate of the linear schedule, as a fraction of lr; 1 keeps it constant"""
    gamma: Any = bounded(0.97, least=0, most=1)
    """discount factor"""
    lam: Any = bounded(0.99, least=0, most=1)
    """λ of the λ-returns"""
    noise_start: Any = bounded(1.0, least=0)
    """std of the exploration noise at the start of training, in half action ranges"""
    noise_end: Any = bounded(0.2, least=0)
    """std of the exploration noise after the decay, in half action ranges"""
    noise_decay: Any = bounded(0.9, least=0, most=1)
    """fraction of training over which the std of the exploration noise decays"""
    penalty: Any = bounded(50.0, least=0)
    """weight of the penalty on changes of the actor's actions since the rollout"""
    threshold: Any = bounded(0.15, least=0)
    """mean absolute change of an action, in half action ranges, above which the penalty applies"""
    max_grad_norm: Any = bounded(1.0, above=0, finite=False)
    """global norm to which gradients are clipped, actor and critics separately"""


class State(NamedTuple):
    actor: PyTree
    critic: PyTree
    opt: tuple[optax.OptState, optax.OptState]  # RAdam of actor and critics
    std: Array  # [] std of the exploration noise in the next rollout


class Blocks(nn.Module):
    """[Dense -> LayerNorm -> ReLU] per width, then Dense to `out`; orthogonal weights."""

    hidden: tuple[int, ...]
    out: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for width in self.hidden:
            x = nn.relu(nets.LayerNorm()(Dense(width, kernel_init=nets.orthogonal())(x)))
        return Dense(self.out, kernel_init=nets.orthogonal())(x)


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: the action space is not a bounded box of one axis, or sizes do not fit together.
    """
    space = box_scale("pqn_continuous", spec)
    if len(spec.obs_shape) != 1:
        raise UserError(f"pqn_continuous needs flat observations; {spec.name} has {spec.obs_shape}")
    at_least(1, critics=cfg.critics, resets=cfg.resets)
    check_rollouts(cfg, "actor", "critic", resets=cfg.resets)
    actor_net = nets.from_linen(Blocks(cfg.actor, space.size), spec.obs_shape)
    one_critic = nets.from_linen(Blocks(cfg.critic, 1), (spec.obs_shape[0] + space.size,))

    def policy(params: PyTree, obs: Array) -> Array:
        return space.scaled(jnp.tanh(actor_net.apply(params, obs)))

    def q_values(params: PyTree, obs: Array, action: Array) -> Array:
        """[critics, B] of obs [B, *obs] and action [B, A] in half ranges."""
        x = jnp.concatenate([obs, space.unit(action)], -1)
        return nets.each(one_critic.apply)(params, x)[..., 0]

    def noisy(action: Array, std: Array, normal: Array) -> Array:
        return clip_to_box(spec.action, action + std * space.scale * normal)

    def init(key, hp, inputs):
        key_actor, key_critic = jax.random.split(key)
        actor = actor_net.init(key_actor)
        critic = jax.vmap(one_critic.init)(jax.random.split(key_critic, cfg.critics))
        begin = optax.flatten(clipped_radam(hp.lr, hp.max_grad_norm)).init
        std = jnp.asarray(hp.noise_start, jnp.float32)
        return State(actor, critic, (begin(actor), begin(critic)), std)

    def noise(key: Array, n: int) -> Array:
        return jax.random.normal(key, (n, space.size))

    def act(state, hp, obs, start, memory, noise, explore):
        mean = policy(state.actor, obs)
        if not explore:
            return mean, memory, {}
        action = noisy(mean, state.std, noise)
        value = jnp.mean(q_values(state.critic, obs, action), 0)
        return action, memory, {"mean": mean, "value": value}

    def update(state, hp, batch, key, step):
        window = batch.transitions
        key_noise, key_epochs = jax.random.split(key)

        def value_of(obs: Array) -> Array:
            normal = noise(key_noise, obs.shape[0])
            action = noisy(policy(state.actor, obs), state.std, normal)
            return jnp.mean(q_values(state.critic, obs, action), 0)

        targets = lambda_returns(
            window.reward,
            successor_values(value_of, window.next_obs, window.extras["value"], window.truncated),
            window.terminated,
            window.truncated,
            hp.gamma,
            hp.lam,
        )
        data = merge_axes((window.obs, window.action, targets, window.extras["mean"]))

        def critic_loss(params: PyTree, obs: Array, action: Array, target: Array) -> Array:
            error = q_values(params, obs, action) - target[None]
            return jnp.sum(jnp.mean(huber(error, 1.0), -1))

        def actor_loss(params: PyTree, critic: PyTree, obs: Array, before: Array) -> Any:
            action = policy(params, obs)
            gain = jnp.mean(q_values(critic, obs, action), 0)
            pull, far = trust_penalty((action - before) / space.scale, hp.threshold)
            return jnp.mean(hp.penalty * pull - gain), jnp.mean(far)

        def minibatch(carry: PyTree, part: PyTree) -> tuple[PyTree, dict[str, Array]]:
            actor, critic, (opt_actor, opt_critic), count = carry
            obs, action, target, before = part
            total = cfg.updates * cfg.epochs * cfg.minibatches
            lr = hp.lr * linear(count / total, 1.0, hp.lr_end)
            step = optax.flatten(clipped_radam(lr, hp.max_grad_norm)).update
            loss_q, grads = jax.value_and_grad(critic_loss)(critic, obs, action, target)
            change, opt_critic = step(grads, opt_critic, critic)
            critic = optax.apply_updates(critic, change)
            (loss_pi, far), grads = jax.value_and_grad(actor_loss, has_aux=True)(
                actor, critic, obs, before
            )
            change, opt_actor = step(grads, opt_actor, actor)
            actor = optax.apply_updates(actor, change)
            metrics = {"critic_loss": loss_q, "actor_loss": loss_pi, "beyond_threshold": far}
            return (actor, critic, (opt_actor, opt_critic), count + 1), metrics

        carry = (state.actor, state.critic, state.opt, step * (cfg.epochs * cfg.minibatches))
        (actor, critic, opt, _), metrics = scan_epochs(
            minibatch, carry, key_epochs, data, cfg.epochs, cfg.minibatches
        )
        progress = (step + 1) / (hp.noise_decay * cfg.updates)
        std = linear(progress, hp.noise_start, hp.noise_end)
        metrics = jax.tree.map(jnp.mean, metrics) | {"target": jnp.mean(targets), "std": state.std}
        return State(actor, critic, opt, std), metrics

    agent = Agent(init=init, update=update, act=act, noise=noise, hypers=Hypers())
    return normalised(agent, spec, cfg.num_envs, obs=cfg.normalise_obs, reward=cfg.normalise_reward)


def trust_penalty(change: Array, threshold: Array | float) -> tuple[Array, Array]:
    """Mean Huber loss [B] of action changes [B, A] with mean |change| above the threshold, else 0,
    and whether the threshold is exceeded [B]."""
    far = jnp.mean(jnp.abs(change), -1) > threshold
    return jnp.where(far, jnp.mean(huber(change, 1.0), -1), 0.0), far


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Program of a run with `evals` evaluations of `episodes` noise-free episodes."""
    return on_policy(cfg, env, make(cfg, env.spec), evals, episodes)


ALGORITHM = Algorithm(Config, Hypers, make, program)
