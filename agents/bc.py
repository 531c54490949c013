"""BC: behaviour cloning. The policy is a regression of the data's actions on its observations.

A Framework for Behavioural Cloning. Michael Bain, Claude Sammut. Machine Intelligence 15, 1995; as
the baseline of offline learning in D4RL, arXiv:2004.07219.

A deterministic policy a = π(s) minimises E‖π(s) - a‖² / A over rows of the data, with actions in
units of half the box. That is the likelihood of a normal distribution of fixed width, and the term
that keeps TD3+BC near the data, whose networks these are: TD3+BC with α = 0 is this agent.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import optax
from flax import struct

from jaxrl.losses import action_distance, cloning_loss
from jaxrl.normalise import Moments, data_moments, standardise_obs
from jaxrl.optim import adam_step
from jaxrl.policies import deterministic_actor
from jaxrl.program import Program
from jaxrl.recipes import check_offline, offline_program
from jaxrl.spaces import box_scale
from jaxrl.types import Agent, Array, Env, EnvSpec

OFFLINE = True


@dataclasses.dataclass(frozen=True)
class Config:
    """Static: a new value is a new program."""

    updates: int = 1_000_000
    """gradient steps of a run"""
    batch_size: int = 256
    """rows of the data in a gradient step"""
    normalise_obs: bool = True
    """standardise observations by the mean and deviation of the data's"""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers"""


@struct.dataclass
class Hypers:
    """Traced: members of one population may differ in each."""

    lr: Any = 3e-4
    """learning rate of Adam"""


class State(NamedTuple):
    actor: Array  # [size] parameters, as one vector
    opt: optax.OptState
    obs: Moments  # [*obs] of the data's observations


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: actions are not in a bounded box of one axis, or a size is below one.
    """
    check_offline(cfg)
    space = box_scale("bc", spec)
    policy = deterministic_actor(cfg.hidden, spec, space)

    def init(key, hp, inputs):
        actor = policy.init(key)
        return State(actor, optax.adam(hp.lr).init(actor), data_moments(cfg, spec, inputs))

    def act(state, hp, obs, start, memory, noise, explore):
        return (
            space.scaled(policy.apply(state.actor, standardise_obs(cfg, state.obs, obs))),
            memory,
            {},
        )

    def update(state, hp, batch, key, step):
        t = batch.transitions
        obs, action = standardise_obs(cfg, state.obs, t.obs), space.unit(t.action)

        def loss(actor: Array) -> tuple[Array, Array]:
            chosen = policy.apply(actor, obs)
            return cloning_loss(chosen, action), action_distance(chosen, action)

        (value, far), grads = jax.value_and_grad(loss, has_aux=True)(state.actor)
        actor, opt = adam_step(state.actor, grads, state.opt, hp.lr)
        return State(actor, opt, state.obs), {"actor_loss": value, "action_distance": far}

    return Agent(init=init, update=update, act=act)


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """A whole run: `evals` evaluations of `episodes` whole episodes, the last at the end."""
    return offline_program(cfg, env, make(cfg, env.spec), evals, episodes)
