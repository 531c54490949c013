"""MDPO, on-policy: mirror descent policy optimisation.

Mirror Descent Policy Optimization. Manan Tomar, Lior Shani, Yonathan Efroni, Mohammad Ghavamzadeh.
ICLR 2022, arXiv:2005.09814.

Mirror descent in the space of policies, with the negative entropy as mirror map: each window's
policy is to maximise E[A of π_k] - KL(π || π_k) / t_k, whose exact solution is π_k exp(t_k A) up to
a constant. The step is taken by m gradient steps that start at π_k, where the KL has no gradient
yet: one step alone is the plain policy gradient. Networks, values, advantages and acting are those
of `jaxrl.agents.ppo`; no ratio is clipped, and policy and value are trained apart.

Deviations from the authors' code: step sizes go from 1 to 1 / K in K updates (there from 1 + 1 / K
to 2 / K); the learning rate may be annealed, as in the paper; time limits, statistics and rewards
are those of `jaxrl.agents.ppo`. Tsallis entropies are left out: the code's estimate of their
divergence lacks the importance ratio and, where it is the KL divergence, has the wrong sign.
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
from jaxrl.distributions import Categorical, Normal
from jaxrl.errors import UserError, at_least
from jaxrl.minibatch import sgd_epochs
from jaxrl.optim import linear
from jaxrl.program import Program
from jaxrl.recipes import on_policy
from jaxrl.types import Agent, Array, Env, EnvSpec, PyTree

__all__ = ["Config", "Hypers", "State", "make", "program"]


@dataclasses.dataclass(frozen=True)
class Config(ppo.Config):
    """Static: a new value is a new program."""

    epochs: int = 5
    """passes of the value network over each window"""
    minibatches: int = 16
    """minibatches of each such pass; divides N * T"""
    advantages: Literal["minibatch", "batch", "raw"] = "batch"
    """where advantages are standardised: in each minibatch, in the whole window, or nowhere"""
    policy_epochs: int = 10
    """passes of the policy over each window: m gradient steps, if they are of the whole window"""
    policy_minibatches: int = 1
    """minibatches of each such pass; divides N * T"""
    step_sizes: Literal["linear", "constant"] = "linear"
    """of mirror descent: t_k = step_size * (1 - k / updates), or the same in every update"""
    kl: Literal["new_old", "old_new"] = "new_old"
    """KL(new || old), which makes it mirror descent, or KL(old || new), as in TRPO"""


@struct.dataclass
class Hypers:
    """Traced: members of one population may differ in each."""

    lr: Any = 3e-4
    """learning rate of the policy's Adam at the start"""
    value_lr: Any = 3e-4
    """learning rate of the value network's Adam at the start"""
    lr_end: Any = 0.0
    """learning rates at the end of the linear schedule, as a fraction; 1 keeps them constant"""
    gamma: Any = 0.99
    """discount"""
    lam: Any = 0.95
    """trace decay of the advantages"""
    step_size: Any = 1.0
    """of mirror descent at the start: the KL divergence weighs 1 / t_k"""
    value_clip: Any = 0.2
    """how far values may move in an update, with clip_value"""
    max_grad_norm: Any = 0.5
    """gradients are clipped to this global norm, policy and value apart"""


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: the action space is not discrete or a box of one axis, or sizes do not divide.
    """
    check(cfg, spec)
    model = ppo.networks(cfg, spec)
    policy = ppo.acting(model, spec)

    def init(key, hp, inputs):
        params = model.init(key)
        begin = lambda part: ppo.optimiser(hp.lr, hp.max_grad_norm).init(ravel_pytree(part)[0])
        return State(params, {name: begin(part) for name, part in params.items()})

    def update(state, hp, batch, key, step):
        data = ppo.experience(cfg, spec, model, state.params, hp, batch.transitions)
        old = model.actor.apply(state.params["actor"], data.obs)
        t_k = step_size(cfg, hp, step)

        def policy_loss(params: PyTree, part: PyTree) -> tuple[Array, dict[str, Array]]:
            rows, old = part
            new = model.actor.apply(params, rows.obs)
            advantage = rows.advantage
            if cfg.advantages == "minibatch":
                advantage = ppo.standardised(advantage)
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
        metrics = {
            "kl": jnp.mean(new.kl(old)),
            "entropy": jnp.mean(new.entropy()),
            "step_size": t_k,
        }
        params = {"actor": actor, "critic": critic}
        opt = {"actor": opt_actor, "critic": opt_critic}
        return State(params, opt), of_policy | of_value | metrics

    agent = Agent(init=init, update=update, act=policy.act, noise=policy.noise)
    return ppo.with_statistics(cfg, spec, agent)


Distribution = TypeVar("Distribution", Categorical, Normal)


def mirror_descent_loss(
    new: Distribution,
    old: Distribution,
    sample: Array,
    advantage: Array,
    t_k: Array | float,
    kl: Literal["new_old", "old_new"] = "new_old",
) -> Array:
    """Mean of KL(new || old) / t_k - new(sample) / old(sample) · advantage (on-policy objective).

    Args:
      new, old: distributions [B].
      sample: [B, ...], drawn from `old`.
      advantage: [B], of `old`.
    """
    ratio = jnp.exp(new.log_prob(sample) - old.log_prob(sample))
    divergence = new.kl(old) if kl == "new_old" else old.kl(new)
    return jnp.mean(divergence) / t_k - jnp.mean(ratio * advantage)


def step_size(cfg: Config, hp: Hypers, step: Array) -> Array:
    """t_k of update k: linear from step_size down to step_size / updates, or constant."""
    left = (cfg.updates - step) / cfg.updates if cfg.step_sizes == "linear" else 1.0
    return jnp.asarray(hp.step_size * left, jnp.float32)


def check(cfg: Config, spec: EnvSpec) -> None:
    """Raises UserError where the agent does not fit the environment or itself."""
    ppo.check(cfg, spec)
    at_least(1, policy_epochs=cfg.policy_epochs, policy_minibatches=cfg.policy_minibatches)
    if cfg.num_envs * cfg.num_steps % cfg.policy_minibatches:
        raise UserError(
            f"policy_minibatches={cfg.policy_minibatches} does not divide num_envs * num_steps = "
            f"{cfg.num_envs * cfg.num_steps}"
        )


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """A whole run: `evals` evaluations of `episodes` episodes of the mode, the last at the end."""
    return on_policy(cfg, env, make(cfg, env.spec), evals, episodes)
