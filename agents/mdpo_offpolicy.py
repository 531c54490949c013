"""MDPO, off-policy: SAC with a KL or Tsallis penalty towards an older policy.

Mirror Descent Policy Optimization. Manan Tomar, Lior Shani, Yonathan Efroni, Mohammad Ghavamzadeh.
ICLR 2022, arXiv:2005.09814.

The actor minimises c KL(π || π_k) - E[Q - λ log π], that is

  E[c log π(a|s) + (λ - c) log π_k(a|s) - Q(s, a)],

with the minimum π ∝ π_k^{1-λ/c} exp(Q/c). π_k is a copy of the actor, made every `refresh`
environment steps. c = λ, or a uniform π_k, gives SAC. The Tsallis form replaces log by `log_q` in
this loss, with a factor q before the second term, and in the critics' targets. At λ = 0 the Tsallis
loss is c times the Bregman divergence of the Tsallis entropy minus Q, up to terms independent of π.
All other parts are SAC's.

Deviations from the authors' code:
- The actor maximises the minimum of both critics (there the first critic).
- Targets come from target critics (there from a value network).
- Means and log-stds of the policy are not regularised.
- Training acts with samples of the policy (there without noise).
- `log_q` bounds densities from above (there a floor of 1e-6).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.agents import sac
from jaxrl.algorithm import Algorithm
from jaxrl.errors import UserError
from jaxrl.policies import ActionSamples, expectation, sum_log_probs
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import off_policy
from jaxrl.types import Agent, Array, Env, EnvSpec, PyTree


@dataclasses.dataclass(frozen=True)
class Config(sac.Config):
    """Static configuration: a new value compiles a new program."""

    learn_temperature: bool = False
    """learn the temperature for the target entropy; otherwise it stays constant"""
    refresh: int = 1_000
    """environment steps between copies of the actor to π_k; a multiple of num_envs * num_steps"""


@struct.dataclass
class Hypers(sac.Hypers):
    """Traced hyperparameters: members of one run may differ in each."""

    divergence: Any = bounded(1.0, least=0)
    """weight c = 1 / t_k of the divergence from the old policy π_k"""
    entropic_index: Any = bounded(1.0, least=1, most=2)
    """entropic index q of the Tsallis entropy, from 1 (KL divergence) to 2"""


LARGEST = 1e6  # bound of densities in Tsallis terms, as from the authors' 1e-6 in tanh's correction


class State(NamedTuple):
    sac: sac.State
    old: PyTree  # parameters of π_k, as in `sac.actor`; set in the first update


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: the action space is not supported, or sizes do not fit together.
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
        return State(state, jax.tree.map(jnp.zeros_like, state.actor))

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

    return Agent(init=init, update=update, act=act, noise=head.noise, hypers=Hypers())


def log_q(log_prob: Array, index: Array) -> Array:
    """log_q x = (x^{q-1} - 1) / (q - 1) of x given as log x; log x at q = 1.

    Applied to each factor of a policy separately, as in the authors' code. The sum is a function of
    the joint density only at q = 1; it gives a sum of Bregman divergences of the factors. The joint
    density of A dimensions would grow like std^-A.

    For q > 1 densities saturate at `LARGEST`: x becomes x / (1 + x / LARGEST). The density of a
    squashed normal of large std is unbounded at the ends of the box, and its powers overflow.
    """
    power = jnp.asarray(index, jnp.float32) - 1
    plain = power == 0
    bent = log_prob - jax.nn.softplus(log_prob - jnp.log(LARGEST))
    return jnp.where(plain, log_prob, jnp.expm1(power * bent) / jnp.where(plain, 1.0, power))


def actor_loss(
    now: ActionSamples, before: Array, q: Array, lam: Array, c: Array, index: Array
) -> Array:
    """Mean over states of E[c log_q π + q (λ - c) log_q π_k - Q].

    before [B, K, F]: log-probabilities of the sampled actions under π_k; q [B, K].
    """
    new, old = (sum_log_probs(log_q(x, index)) for x in (now.log_prob, before))
    return jnp.mean(expectation(now, c * new + index * (lam - c) * old - q))


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Program of a run with `evals` evaluations of `episodes` episodes of the policy's mode."""
    return off_policy(cfg, env, make(cfg, env.spec), evals, episodes)


ALGORITHM = Algorithm(Config, Hypers, make, program)
