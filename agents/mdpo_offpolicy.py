"""MDPO, off-policy: SAC whose actor is held near an older policy of its own.

Mirror Descent Policy Optimization. Manan Tomar, Lior Shani, Yonathan Efroni, Mohammad Ghavamzadeh.
ICLR 2022, arXiv:2005.09814.

The actor minimises c KL(π || π_k) - E[Q - λ log π], that is

  E[c log π(a|s) + (λ - c) log π_k(a|s) - Q(s, a)],

whose minimum is π ∝ π_k^{1-λ/c} exp(Q/c). π_k is a copy of the actor, made every `refresh`
environment steps. c = λ, or a uniform π_k, is SAC. The Tsallis form has `log_q` in place of log, in
this loss, with a factor q before the second term, and in the critics' targets; at λ = 0 the loss
then is c times the Bregman divergence of the Tsallis entropy, up to what does not depend on π.

Everything else is SAC's, so that the two differ by this loss alone. Deviations from the authors'
code: there the actor climbs the first critic, targets come from a value network, small means and
log-stds are rewarded, and training acts without noise. Here, as in SAC, the actor climbs the lesser
of both critics, targets come from target critics, nothing is added, and actions are drawn from the
policy. Their log_q floors densities at 1e-6; from log-densities it needs a bound above, no floor.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.agents import sac
from jaxrl.errors import UserError
from jaxrl.evaluate import evaluator
from jaxrl.policies import ActionSamples, expectation, sum_log_probs
from jaxrl.program import Program
from jaxrl.recipes import replayed, single_stage
from jaxrl.types import Agent, Array, Env, EnvSpec


@dataclasses.dataclass(frozen=True)
class Config(sac.Config):
    """Static: a new value is a new program."""

    learn_temperature: bool = False
    """adapt the temperature to the target entropy; else it stays as it is"""
    refresh: int = 1_000
    """environment steps between copies of the actor to π_k; a multiple of num_envs * num_steps"""


@struct.dataclass
class Hypers(sac.Hypers):
    """Traced: members of one population may differ in each."""

    divergence: Any = 1.0
    """weight c of the divergence from π_k, one over the step size t_k"""
    entropic_index: Any = 1.0
    """q of the Tsallis entropy, from 1, where the divergence is KL, to 2"""


LARGEST = 1e6  # of densities in Tsallis terms; the authors' 1e-6 inside tanh's correction


class State(NamedTuple):
    sac: sac.State
    old: Array  # [size] the actor of π_k; set in the first update


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: the agent cannot act in that space, or the sizes do not fit.
    """
    head = sac.head_of(cfg, spec)
    if cfg.refresh < 1 or cfg.refresh % cfg.window:
        raise UserError(
            f"refresh={cfg.refresh} must be a multiple of num_envs * num_steps = {cfg.window}"
        )
    every = cfg.refresh // cfg.window
    inner = sac.make(cfg, spec)

    def init(key, hp, inputs):
        state = inner.init(key, hp, inputs)
        return State(state, jnp.zeros_like(state.actor))

    def act(state, hp, obs, start, memory, noise, explore):
        return inner.act(state.sac, hp, obs, start, memory, noise, explore)

    def update(state, hp, batch, key, step):
        old = jax.lax.cond(step % every == 0, lambda: state.sac.actor, lambda: state.old)

        def objective(now: ActionSamples, obs: Array, q: Array, temperature: Array) -> Array:
            before = head.log_prob(head.policy(old, obs), now.action)
            return actor_loss(now, before, q, temperature, hp.divergence, hp.entropic_index)

        log_pi = lambda log_prob: sum_log_probs(log_q(log_prob, hp.entropic_index))
        new, metrics = sac.learn(cfg, head, state.sac, hp, batch, key, objective, log_pi)
        return State(new, old), metrics

    return Agent(init=init, update=update, act=act, noise=head.noise)


def log_q(log_prob: Array, index: Array) -> Array:
    """log_q x = (x^{q-1} - 1) / (q - 1) of x given as log x; log x at q = 1.

    Of the factors of a policy each by itself, whose sum then is no function of the joint density
    unless q = 1. That is the authors' form, and a sum of Bregman divergences of the factors; the
    joint density of many dimensions would grow like std^-A.

    For q > 1 densities bend towards `LARGEST`: x becomes x / (1 + x / LARGEST). That of a squashed
    normal of large std has no bound at the ends of the box, where its powers soon are infinite.
    """
    power = jnp.asarray(index, jnp.float32) - 1
    plain = power == 0
    bent = log_prob - jax.nn.softplus(log_prob - jnp.log(LARGEST))
    return jnp.where(plain, log_prob, jnp.expm1(power * bent) / jnp.where(plain, 1.0, power))


def actor_loss(
    now: ActionSamples, before: Array, q: Array, lam: Array, c: Array, index: Array
) -> Array:
    """mean over states of E[c log_q π + q (λ - c) log_q π_k - Q].

    before [B, K, F] are the log-probabilities of the considered actions under π_k; q [B, K].
    """
    new, old = (sum_log_probs(log_q(x, index)) for x in (now.log_prob, before))
    return jnp.mean(expectation(now, c * new + index * (lam - c) * old - q))


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """A whole run: `evals` evaluations of `episodes` whole episodes of the policy's mode."""
    agent = make(cfg, env.spec)
    return single_stage(
        cfg, agent, replayed(cfg, env, agent), evaluator(env, agent, episodes), evals
    )
