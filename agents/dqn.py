"""DQN: Q-learning with replay and a target network, with double Q-learning and n-step targets.

Human-level control through deep reinforcement learning. Volodymyr Mnih, Koray Kavukcuoglu, David
Silver et al. Nature 518, 2015.
Deep Reinforcement Learning with Double Q-learning. Hado van Hasselt, Arthur Guez, David Silver.
AAAI 2016, arXiv:1509.06461.

An update is a rollout of T steps in N environments, followed by `gradient_steps` gradient steps on
batches of the replay buffer. The target is r + γ Q'(s', argmax_a Q(s', a)) with double Q-learning,
else r + γ max_a Q'(s', a).

Deviations:
- Adam replaces RMSProp.
- The decay of ε is given as a fraction of training.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxrl import nets
from jaxrl.algorithm import Algorithm
from jaxrl.errors import UserError, at_least
from jaxrl.exploration import epsilon_greedy, epsilon_noise
from jaxrl.losses import huber, q_of_action, td_target
from jaxrl.masks import legal_only, unmask
from jaxrl.optim import linear, polyak
from jaxrl.policies import agent_of
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import check_replay, off_policy
from jaxrl.sources import split_batch
from jaxrl.types import Agent, Array, Discrete, Env, EnvSpec, Policy, PyTree, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Static configuration: a new value compiles a new program."""

    total_steps: int = 500_000
    """environment steps of a run after the warm-up, summed over its parallel environments"""
    num_envs: int = 1
    """parallel environments N"""
    num_steps: int = 10
    """steps T per environment and rollout"""
    gradient_steps: int = 1
    """gradient steps per rollout"""
    batch_size: int = 128
    """transitions per gradient step"""
    capacity: int = 10_000
    """transitions in the replay buffer"""
    warmup: int = 10_000
    """environment steps with random actions before the first update"""
    n_step: int = 1
    """number n of rewards in the n-step targets"""
    double: bool = True
    """double Q-learning: the online network selects actions, the target network evaluates them"""
    target_every: int = 50
    """rollouts between updates of the target network"""
    conv: tuple[int, ...] = ()
    """channels of 3x3 convolutions before the dense layers, for image observations"""
    hidden: tuple[int, ...] = (120, 84)
    """widths of the hidden layers"""

    @property
    def window(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def updates(self) -> int:
        return self.total_steps // self.window


@struct.dataclass
class Hypers:
    """Traced hyperparameters: members of one run may differ in each."""

    lr: Any = bounded(2.5e-4, least=0)
    """learning rate of Adam"""
    gamma: Any = bounded(0.99, least=0, most=1)
    """discount factor"""
    tau: Any = bounded(1.0, least=0, most=1)
    """Polyak step size of the target network; 1 copies the online network"""
    eps_start: Any = bounded(1.0, least=0, most=1)
    """epsilon at the start of training"""
    eps_end: Any = bounded(0.05, least=0, most=1)
    """epsilon after the decay"""
    eps_decay: Any = bounded(0.5, least=0, most=1)
    """fraction of training over which epsilon decays"""
    huber: Any = bounded(1e6, above=0, finite=False)
    """threshold of the Huber loss on TD errors, quadratic below and linear above"""
    max_grad_norm: Any = bounded(10.0, above=0, finite=False)
    """global norm to which gradients are clipped"""


class State(NamedTuple):
    params: Array  # [size] flat parameters of the online network
    target: Array  # [size] target network
    opt: optax.OptState
    eps: Array  # [] epsilon of the next rollout


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: the action space is not discrete, or sizes do not fit together.
    """
    if not isinstance(spec.action, Discrete):
        raise UserError(f"dqn needs discrete actions; {spec.name} has {spec.action}")
    check_replay(cfg)
    at_least(1, target_every=cfg.target_every, hidden=cfg.hidden, conv=cfg.conv)
    nets.check_images(spec, cfg.conv)
    num_actions = spec.action.n
    net = nets.flat(nets.from_linen(nets.MLP(cfg.hidden, num_actions, cfg.conv), spec.obs_shape))

    def init(key, hp, inputs):
        params, target = nets.init_twice(net.init, key)
        eps = jnp.asarray(hp.eps_start, jnp.float32)
        return State(params, target, optimiser(hp).init(params), eps)

    def act(state, hp, obs, start, memory, noise, explore):
        obs, legal = unmask(obs)
        q = legal_only(net.apply(state.params, obs), legal)
        return epsilon_greedy(q, state.eps, noise, explore, legal), memory, {}

    def update(state, hp, batch, key, step):
        def gradient_step(carry: PyTree, t: Transition) -> tuple[PyTree, tuple[Array, Array]]:
            params, opt = carry
            (obs, _), (next_obs, legal) = unmask(t.obs), unmask(t.next_obs)
            target = net.apply(state.target, next_obs)
            chooser = net.apply(params, next_obs) if cfg.double else target
            best = jnp.argmax(legal_only(chooser, legal), -1)
            y = td_target(t, hp.gamma, q_of_action(target, best))

            def loss(params: Array) -> tuple[Array, Array]:
                q = q_of_action(net.apply(params, obs), t.action)
                return jnp.mean(huber(q - y, hp.huber)), jnp.mean(q)

            (value, q), grads = jax.value_and_grad(loss, has_aux=True)(params)
            change, opt = optimiser(hp).update(grads, opt, params)
            return (optax.apply_updates(params, change), opt), (value, q)

        (params, opt), (losses, q) = jax.lax.scan(
            gradient_step,
            (state.params, state.opt),
            split_batch(batch.transitions, cfg.gradient_steps),
        )
        target = jax.lax.cond(
            (step + 1) % cfg.target_every == 0,
            lambda: polyak(state.target, params, hp.tau),
            lambda: state.target,
        )
        eps = linear((step + 1) / (hp.eps_decay * cfg.updates), hp.eps_start, hp.eps_end)
        metrics = {"loss": jnp.mean(losses), "q": jnp.mean(q), "eps": state.eps}
        return State(params, target, opt, eps), metrics

    noise = epsilon_noise(num_actions, spec.masked)
    acting = Policy(act=act, noise=noise, masks=True, bytes=True)
    return agent_of(acting, init, update, Hypers())


def optimiser(hp: Hypers) -> optax.GradientTransformation:
    """Gradient clipping by global norm, then Adam."""
    return optax.chain(optax.clip_by_global_norm(hp.max_grad_norm), optax.adam(hp.lr))


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Program of a run with `evals` evaluations of `episodes` greedy episodes."""
    return off_policy(cfg, env, make(cfg, env.spec), evals, episodes)


ALGORITHM = Algorithm(Config, Hypers, make, program)
