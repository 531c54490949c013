"""MDPO, on-policy: mirror descent policy optimisation.

Mirror Descent Policy Optimization. Manan Tomar, Lior Shani, Yonathan Efroni, Mohammad Ghavamzadeh.
ICLR 2022, arXiv:2005.09814.

Mirror descent in the space of policies with the negative entropy as mirror map: update k maximises
E[A of π_k] - KL(π || π_k) / t_k, with the exact solution π ∝ π_k exp(t_k A). The objective is
optimised by m gradient steps that start at π_k, where the gradient of the KL divergence is zero: a
single step is the plain policy gradient. Networks, values, advantages and acting are those of
`jaxrl.agents.ppo`. The ratio is not clipped, and policy and value network are trained separately.

Deviations from the authors' code:
- Step sizes go from 1 to 1 / K in K updates (there from 1 + 1 / K to 2 / K).
- The learning rate may be annealed, as in the paper (there it is constant).
- The value network's gradient is clipped to `max_grad_norm` and its Adam has eps 1e-5, as the
  policy's. There neither holds: no clipping, eps 1e-8.
- Value predictions are clipped only with `clip_value`, as the paper's list of details says (there
  in every version), and the value loss has a factor ½, which matters under gradient clipping.
- Time limits, running statistics and reward scaling are those of `jaxrl.agents.ppo`.
- Tsallis entropies are left out (the authors' estimate lacks the importance ratio).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree

from jaxrl.agents import ppo
from jaxrl.agents.ppo import State
from jaxrl.algorithm import Algorithm
from jaxrl.distributions import Categorical, Normal
from jaxrl.errors import at_least
from jaxrl.minibatch import sgd_epochs
from jaxrl.objectives.advantages import batch_normalised
from jaxrl.optim import linear
from jaxrl.policies import agent_of
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import check_minibatches, on_policy
from jaxrl.types import Agent, Array, Env, EnvSpec, PyTree


@dataclasses.dataclass(frozen=True)
class Config(ppo.Config):
    """Static configuration: a new value compiles a new program."""

    epochs: int = 5
    """passes of the value network over each rollout"""
    minibatches: int = 16
    """minibatches per epoch of the value network; divides N * T"""
    advantages: Literal["minibatch", "batch", "raw"] = "batch"
    """standardise advantages per minibatch of the policy, per rollout (batch) or not at all (raw);
    of two rows per minibatch only the order remains: their advantages become 1 and -1"""
    policy_epochs: int = 10
    """passes of the policy over each rollout; m gradient steps with policy_minibatches=1"""
    policy_minibatches: int = 1
    """minibatches per epoch of the policy; divides N * T"""
    step_sizes: Literal["linear", "constant"] = "linear"
    """schedule of the mirror-descent step size: t_k = step_size * (1 - k / updates), or constant"""
    kl: Literal["new_old", "old_new"] = "new_old"
    """direction of the KL divergence: KL(new || old), mirror descent, or KL(old || new), as in
    TRPO"""


@struct.dataclass
class Hypers:
    """Traced hyperparameters: members of one run may differ in each."""

    lr: Any = bounded(3e-4, least=0)
    """initial learning rate of the policy's Adam"""
    value_lr: Any = bounded(3e-4, least=0)
    """initial learning rate of the value network's Adam"""
    lr_end: Any = bounded(0.0, least=0)
    """final learning rates (linear), as a fraction of lr and value_lr; 1 keeps them constant"""
    gamma: Any = bounded(0.99, least=0, most=1)
    """discount factor"""
    lam: Any = bounded(0.95, least=0, most=1)
    """λ of generalised advantage estimation (GAE)"""
    step_size: Any = bounded(1.0, above=0)
    """initial step size t_k of mirror descent; the KL divergence has weight 1 / t_k"""
    value_clip: Any = bounded(0.2, above=0, finite=False)
    """clipping range of value predictions in the value loss; used with clip_value"""
    max_grad_norm: Any = bounded(0.5, above=0, finite=False)
    """global norm to which gradients are clipped, policy and value network separately"""


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: the action space is neither discrete nor a box of one axis, or sizes do not
        fit together.
    """
    check(cfg, spec)
    model = ppo.networks(cfg, spec)
    policy = ppo.acting(model, spec)

    def init(key, hp, inputs):
        params = model.init(key)
        begin = lambda part: ppo.optimiser(hp.lr, hp.max_grad_norm).init(ravel_pytree(part)[0])
        return State(params, {name: begin(part) for name, part in params.items()})

    def update(state, hp, batch, key, step):
        data = ppo.experience(cfg, model, state.params, hp, batch.transitions)
        old = model.actor.apply(state.params["actor"], data.obs)
        t_k = step_size(cfg, hp, step)

        def policy_loss(params: PyTree, part: PyTree) -> tuple[Array, dict[str, Array]]:
            rows, old = part
            new = model.actor.apply(params, rows.obs)
            advantage = rows.advantage
            if cfg.advantages == "minibatch":
                advantage = batch_normalised(advantage)
            loss = mirror_descent_loss(new, old, rows.sample, advantage, t_k, cfg.kl)
            return loss, {"policy_loss": loss}

        def value_loss(params: PyTree, rows: ppo.Experience) -> tuple[Array, dict[str, Array]]:
            loss = ppo.value_loss(cfg, hp, model.value(params, rows.obs), rows)
            return loss, {"value_loss": loss}

        def adam(lr: Any) -> optax.GradientTransformation:
            return ppo.optimiser(lr * linear(step / cfg.updates, 1.0, hp.lr_end), hp.max_grad_norm)

        (params, opt), keys = state, jax.random.split(key)
        (actor, opt_actor), of_policy = sgd_epochs(
            policy_loss,
            (params["actor"], opt["actor"]),
            adam(hp.lr),
            keys[0],
            (data, old),
            cfg.policy_epochs,
            cfg.policy_minibatches,
        )
        (critic, opt_critic), of_value = sgd_epochs(
            value_loss,
            (params["critic"], opt["critic"]),
            adam(hp.value_lr),
            keys[1],
            data,
            cfg.epochs,
            cfg.minibatches,
        )
        new = model.actor.apply(actor, data.obs)
        kl, entropy = jnp.mean(new.kl(old)), jnp.mean(new.entropy())
        metrics = {"kl": kl, "entropy": entropy, "step_size": t_k}
        params = {"actor": actor, "critic": critic}
        opt = {"actor": opt_actor, "critic": opt_critic}
        return State(params, opt), of_policy | of_value | metrics

    return ppo.with_statistics(cfg, spec, agent_of(policy, init, update, Hypers()))


Distribution = TypeVar("Distribution", Categorical, Normal)


def mirror_descent_loss(
    new: Distribution,
    old: Distribution,
    sample: Array,
    advantage: Array,
    t_k: Array | float,
    kl: Literal["new_old", "old_new"] = "new_old",
) -> Array:
    """Mean of KL(new || old) / t_k - new(sample) / old(sample) · advantage, the on-policy loss.

    Args:
      new, old: distributions [B].
      sample: [B, ...] from `old`.
      advantage: [B] under `old`.
    """
    ratio = jnp.exp(new.log_prob(sample) - old.log_prob(sample))
    divergence = new.kl(old) if kl == "new_old" else old.kl(new)
    return jnp.mean(divergence) / t_k - jnp.mean(ratio * advantage)


def step_size(cfg: Config, hp: Hypers, step: Array) -> Array:
    """t_k of update k: linear from step_size down to step_size / updates, or constant."""
    left = (cfg.updates - step) / cfg.updates if cfg.step_sizes == "linear" else 1.0
    return jnp.asarray(hp.step_size * left, jnp.float32)


def check(cfg: Config, spec: EnvSpec) -> None:
    """Raises UserError if the environment is not supported or sizes do not fit together."""
    ppo.check(cfg, spec)
    at_least(1, policy_epochs=cfg.policy_epochs, policy_minibatches=cfg.policy_minibatches)
    check_minibatches(cfg, "policy_minibatches")
    ppo.check_advantages(cfg, "policy_minibatches", cfg.policy_minibatches)


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Program of a run with `evals` evaluations of `episodes` episodes of the policy's mode."""
    return on_policy(cfg, env, make(cfg, env.spec), evals, episodes)


ALGORITHM = Algorithm(Config, Hypers, make, program)
