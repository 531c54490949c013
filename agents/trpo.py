"""TRPO: trust region policy optimisation, for discrete and continuous actions.

Trust Region Policy Optimization. John Schulman, Sergey Levine, Philipp Moritz, Michael I. Jordan,
Pieter Abbeel. ICML 2015, arXiv:1502.05477. With GAE (arXiv:1506.02438) for the advantages.

Each rollout gives the policy one step: the natural gradient of E[π(a|s) / π_k(a|s) A] by conjugate
gradients, scaled to KL(π_k || π) = max_kl to second order, and halved until the divergence is at
most max_kl and the objective has increased (`jaxrl.natural`). Networks, values, advantages and
acting are those of `jaxrl.agents.ppo`; the value network is trained by Adam.

Deviations:
- Values are fitted by epochs of Adam, as in public code; the paper's estimates are sums of rewards.
- Fisher's matrix is that of all rows of the rollout; public code takes every fifth.
- A step beyond max_kl is never taken; public code allows 1.5 max_kl.
- Time limits, running statistics and reward scaling are those of `jaxrl.agents.ppo`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
from flax import struct
from jax.flatten_util import ravel_pytree

from jaxrl.agents import ppo
from jaxrl.agents.ppo import State
from jaxrl.algorithm import Algorithm
from jaxrl.errors import at_least
from jaxrl.minibatch import sgd_epochs
from jaxrl.natural import natural_step
from jaxrl.optim import linear
from jaxrl.policies import agent_of
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import on_policy
from jaxrl.types import Agent, Array, Env, EnvSpec, PyTree


@dataclasses.dataclass(frozen=True)
class Config(ppo.Config):
    """Static configuration: a new value compiles a new program."""

    epochs: int = 5
    """passes of the value network over each rollout"""
    minibatches: int = 16
    """minibatches per epoch of the value network; divides N * T"""
    advantages: Literal["batch", "raw"] = "batch"
    """standardise advantages per rollout (batch) or not at all (raw)"""
    cg_steps: int = 10
    """iterations of conjugate gradients"""
    backtracks: int = 10
    """largest number of halvings of a step; after them the policy is kept"""


@struct.dataclass
class Hypers:
    """Traced hyperparameters: members of one run may differ in each."""

    max_kl: Any = bounded(0.01, above=0)
    """largest mean KL divergence of a policy step, in nats"""
    damping: Any = bounded(0.1, least=0)
    """multiple of the identity that is added to Fisher's information matrix"""
    value_lr: Any = bounded(3e-4, least=0)
    """initial learning rate of the value network's Adam"""
    lr_end: Any = bounded(0.0, least=0)
    """final value_lr of the linear schedule, as a fraction of value_lr; 1 keeps it constant"""
    gamma: Any = bounded(0.99, least=0, most=1)
    """discount factor"""
    lam: Any = bounded(0.95, least=0, most=1)
    """λ of generalised advantage estimation (GAE)"""
    value_clip: Any = bounded(0.2, above=0, finite=False)
    """clipping range of value predictions in the value loss; used with clip_value"""
    max_grad_norm: Any = bounded(0.5, above=0, finite=False)
    """global norm to which the value network's gradient is clipped"""


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: the action space is neither discrete nor a box of one axis, or sizes do not
        fit together.
    """
    check(cfg, spec)
    model = ppo.networks(cfg, spec)

    def init(key, hp, inputs):
        params = model.init(key)
        adam = ppo.optimiser(hp.value_lr, hp.max_grad_norm)
        return State(params, adam.init(ravel_pytree(params["critic"])[0]))

    def update(state, hp, batch, key, step):
        data = ppo.experience(cfg, model, state.params, hp, batch.transitions)
        old = model.actor.apply(state.params["actor"], data.obs)

        def objective(actor: PyTree) -> Array:
            new = model.actor.apply(actor, data.obs)
            return jnp.mean(jnp.exp(new.log_prob(data.sample) - data.log_prob) * data.advantage)

        def divergence(actor: PyTree) -> Array:
            return jnp.mean(old.kl(model.actor.apply(actor, data.obs)))

        def value_loss(params: PyTree, rows: ppo.Experience) -> tuple[Array, dict[str, Array]]:
            loss = ppo.value_loss(cfg, hp, model.value(params, rows.obs), rows)
            return loss, {"value_loss": loss}

        moved = natural_step(
            objective,
            divergence,
            state.params["actor"],
            hp.max_kl,
            hp.damping,
            cg_steps=cfg.cg_steps,
            backtracks=cfg.backtracks,
        )
        rate = hp.value_lr * linear(step / cfg.updates, 1.0, hp.lr_end)
        (critic, opt), of_value = sgd_epochs(
            value_loss,
            (state.params["critic"], state.opt),
            ppo.optimiser(rate, hp.max_grad_norm),
            key,
            data,
            cfg.epochs,
            cfg.minibatches,
        )
        metrics = {
            "kl": moved.kl,
            "gain": moved.gain,
            "step_fraction": moved.fraction,
            "entropy": jnp.mean(model.actor.apply(moved.params, data.obs).entropy()),
        }
        return State({"actor": moved.params, "critic": critic}, opt), of_value | metrics

    agent = agent_of(ppo.acting(model, spec), init, update, Hypers())
    return ppo.with_statistics(cfg, spec, agent)


def check(cfg: Config, spec: EnvSpec) -> None:
    """Raises UserError if the environment is not supported or sizes do not fit together."""
    ppo.check(cfg, spec)
    at_least(1, cg_steps=cfg.cg_steps)
    at_least(0, backtracks=cfg.backtracks)
    ppo.check_advantages(cfg, "minibatches", cfg.minibatches)


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Program of a run with `evals` evaluations of `episodes` episodes of the policy's mode."""
    return on_policy(cfg, env, make(cfg, env.spec), evals, episodes)


ALGORITHM = Algorithm(Config, Hypers, make, program)
