"""EDAC: SAC on data, with many critics whose slopes at the data's actions are held apart.

Uncertainty-Based Offline Reinforcement Learning with Diversified Q-Ensemble. Gaon An, Seungyong
Moon, Jang-Hyun Kim, Hyun Oh Song. NeurIPS 2021, arXiv:2110.01548.

Targets and actor take the least of N critics, which is low where the critics disagree: outside of
the data. That takes many critics, fewer if their gradients by the action point apart, which is what
the diversity term asks for. Without it (`diversity` False) this is SAC-N of the same paper.

The target is y = r + γ (min_i Q'_i(s', a') - α log π(a'|s')), the critics' loss

  Σ_i mean (Q_i(s, a) - y)² + η mean 1/(N - 1) Σ_{i≠j} <g_i, g_j>,  g_i = ∇_a Q_i / ‖∇_a Q_i‖.

The first sum grows with the square of rewards and the second does not, so η is relative to them.
With one action dimension g_i is a sign, the second has no gradient, and this is SAC-N whatever η.

An update goes temperature, actor, critics, targets, each with what came before, and weights begin
as in the authors' code. Deviation: time limits bootstrap.

`jaxrl.agents.ravl` trains this agent on rows that a model imagines.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from jaxrl.agents.sac import actor_loss
from jaxrl.errors import at_least
from jaxrl.losses import critic_loss, scaled_rewards, td_target
from jaxrl.optim import adam_step, polyak
from jaxrl.policies import ActionSamples, StochasticHead, expectation, squashed_head, sum_log_probs
from jaxrl.program import Program
from jaxrl.recipes import check_offline, offline_program
from jaxrl.spaces import box_scale
from jaxrl.types import Agent, Array, Env, EnvSpec, Transition, mean_where

OFFLINE = True
DIVERGED = 2.0  # times the largest return that rewards of the data's size could come to


@dataclasses.dataclass(frozen=True)
class Config:
    """Static: a new value is a new program."""

    updates: int = 3_000_000
    """gradient steps of a run"""
    batch_size: int = 256
    """rows in a gradient step"""
    critics: int = 10
    """critics N, of which the least counts"""
    diversity: bool = True
    """hold the critics' slopes apart, with weight eta; without this it is SAC-N"""
    hidden: tuple[int, ...] = (256, 256, 256)
    """widths of the hidden layers of actor and critics"""


@struct.dataclass
class Hypers:
    """Traced: members of one population may differ in each."""

    lr: Any = 3e-4
    """learning rate of all Adam optimisers"""
    gamma: Any = 0.99
    """discount"""
    tau: Any = 0.005
    """share of the way that the target critics move in an update"""
    temperature: Any = 1.0
    """weight α of the entropy at the start; it follows an entropy of -A nats"""
    eta: Any = 1.0
    """weight η of the diversity term"""
    reward_scale: Any = 1.0
    """factor on rewards"""
    reward_shift: Any = 0.0
    """added to rewards, after the factor"""


class State(NamedTuple):
    actor: Array  # [size] parameters, as one vector
    critic: Array  # [N, size]
    target: Array  # [N, size]
    log_temperature: Array  # []
    opt: tuple[optax.OptState, ...]  # of actor, critic and log_temperature
    largest: Array  # [] of |Q| so far
    reward: Array  # [] the largest of the data's, in size


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: actions are not in a bounded box of one axis, or a size is too small.
    """
    check_offline(cfg)
    at_least(2 if cfg.diversity else 1, critics=cfg.critics)
    scale = box_scale("edac", spec).scale
    head = head_of(cfg, spec)
    values = jax.vmap(head.values, (0, None, None))

    def init(key, hp, inputs):
        key_actor, key_critic = jax.random.split(key)
        actor = head.actor(key_actor)
        # A loop, not a vmap: XLA would compute critics and targets apart, with other last bits.
        critic = jax.lax.map(head.critic, jax.random.split(key_critic, cfg.critics))
        log_temperature = jnp.log(jnp.asarray(hp.temperature, jnp.float32))
        opt = tuple(optax.adam(hp.lr).init(x) for x in (actor, critic, log_temperature))
        data: Transition = inputs["data"]
        reward = jnp.max(jnp.abs(scaled_rewards(data, hp).reward))
        return State(actor, critic, critic, log_temperature, opt, jnp.zeros(()), reward)

    def act(state, hp, obs, start, memory, noise, explore):
        return head.act(head.policy(state.actor, obs), noise, explore), memory, {}

    def update(state, hp, batch, key, step):
        t = scaled_rewards(batch.transitions, hp)
        opt_actor, opt_critic, opt_temperature = state.opt
        key_now, key_ahead = jax.random.split(key)
        noise_now, noise_ahead = (head.noise(k, cfg.batch_size) for k in (key_now, key_ahead))

        def of_actor(actor: Array, temperature: Array) -> tuple[Array, ActionSamples]:
            now = head.consider(head.policy(actor, t.obs), noise_now)
            q = jnp.min(values(state.critic, t.obs, now.action), 0)
            return actor_loss(now, q, temperature), now

        now = head.consider(head.policy(state.actor, t.obs), noise_now)
        entropy = -jnp.mean(expectation(now, sum_log_probs(now.log_prob)))
        # d/dlog α of log α (entropy - target)
        log_temperature, opt_temperature = adam_step(
            state.log_temperature, entropy - head.target_entropy, opt_temperature, hp.lr
        )
        temperature = jnp.exp(log_temperature)
        (loss_pi, _), grads = jax.value_and_grad(of_actor, has_aux=True)(state.actor, temperature)
        actor, opt_actor = adam_step(state.actor, grads, opt_actor, hp.lr)

        ahead = head.consider(head.policy(actor, t.next_obs), noise_ahead)
        q_ahead = values(state.target, t.next_obs, ahead.action)  # [N, B, 1]
        value = expectation(
            ahead, jnp.min(q_ahead, 0) - temperature * sum_log_probs(ahead.log_prob)
        )
        y = td_target(t, hp.gamma, value)

        def of_critic(critic: Array) -> tuple[Array, tuple[Array, Array, Array]]:
            if cfg.diversity:
                q, slope = slopes(head, critic, t.obs, t.action)
                alike = similarity(slope * scale[None])
            else:
                q = jax.vmap(head.value, (0, None, None))(critic, t.obs, t.action)
                alike = jnp.zeros(())
            loss = critic_loss(q, y)
            return loss + hp.eta * alike, (q, loss, alike)

        grads, (q, loss_q, alike) = jax.grad(of_critic, has_aux=True)(state.critic)
        critic, opt_critic = adam_step(state.critic, grads, opt_critic, hp.lr)
        target = polyak(state.target, critic, hp.tau)

        largest = jnp.maximum(state.largest, jnp.max(jnp.abs(q)))
        bound = DIVERGED * state.reward / (1 - hp.gamma)
        metrics = {
            "critic_loss": loss_q,
            "actor_loss": loss_pi,
            "q": jnp.mean(q),
            "q_largest": largest,
            "diverged": (largest > bound).astype(jnp.float32),
            "similarity": alike / cfg.critics,
            "td_error": jnp.mean(jnp.abs(q - y[None])),
            "entropy": entropy,
            "temperature": temperature,
            **disagreement(jnp.std(q_ahead[..., 0], 0), t),
        }
        opt = (opt_actor, opt_critic, opt_temperature)
        state = State(actor, critic, target, log_temperature, opt, largest, state.reward)
        return state, metrics

    return Agent(init=init, update=update, act=act, noise=head.noise)


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """A whole run: `evals` evaluations of `episodes` whole episodes of the policy's mode."""
    return offline_program(cfg, env, make(cfg, env.spec), evals, episodes)


# --- networks and losses -------------------------------------------------------------------------


class Layers(nn.Module):
    """ReLU layers that begin as the authors', and an output whose numbers begin within ±`end`."""

    hidden: tuple[int, ...]
    out: int
    end: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.reshape(x.shape[0], -1)
        within = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # ±1 / √inputs
        tenth = nn.initializers.constant(0.1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width, kernel_init=within, bias_init=tenth)(x))

        def near_zero(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
            return jax.random.uniform(key, shape, dtype, -self.end, self.end)

        return nn.Dense(self.out, kernel_init=near_zero, bias_init=near_zero)(x)


def head_of(cfg: Config, spec: EnvSpec) -> StochasticHead:
    """SAC's policy of log-std in [-5, 2]; critics as in the authors' code."""
    ending = lambda end: functools.partial(Layers, end=end)
    return squashed_head(cfg.hidden, spec, -5.0, actor=ending(1e-3), critic=ending(3e-3))


def slopes(head: StochasticHead, critic: Array, obs: Array, action: Array) -> tuple[Array, Array]:
    """Q_i(s, a) [N, B] and its gradients by the action [N, B, A]."""

    def one(params: Array) -> tuple[Array, Array]:
        def total(action: Array) -> tuple[Array, Array]:
            q = head.value(params, obs, action)
            return jnp.sum(q), q

        slope, q = jax.grad(total, has_aux=True)(action)
        return q, slope

    return jax.vmap(one)(critic)


def similarity(slope: Array) -> Array:
    """mean over rows of 1/(N - 1) Σ_{i≠j} <g_i, g_j> [], g_i being slopes [N, B, A] of length 1.

    From -N/(N - 1) to N. As ‖Σ_i g_i‖² - Σ_i ‖g_i‖², which needs no pairs. A slope of 0, as of dead
    units, stays 0, and so does its gradient.
    """
    square = jnp.sum(slope * slope, -1, keepdims=True)
    unit = jnp.where(square > 0, slope * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    together = jnp.sum(jnp.sum(unit, 0) ** 2, -1) - jnp.sum(unit * unit, (0, 2))
    return jnp.mean(together) / (slope.shape[0] - 1)


def disagreement(spread: Array, t: Transition) -> dict[str, Any]:
    """The mean deviation of critics [B] at successors; apart for those that rollouts end in.

    extras["edge"] [B] marks the steps that lead there, see `jaxrl.imagination.imagined`.
    """
    if "edge" not in t.extras:
        return {"q_std": jnp.mean(spread)}
    edge = t.extras["edge"]
    return {"q_std": mean_where(spread, ~edge), "q_std_edge": mean_where(spread, edge)}
