"""BC: behaviour cloning by regression of the dataset's actions on its observations.

A Framework for Behavioural Cloning. Michael Bain, Claude Sammut. Machine Intelligence 15, 1995.
As a baseline of offline RL: D4RL, arXiv:2004.07219.

A deterministic policy a = π(s) minimises E‖π(s) - a‖² / A over the dataset, with actions scaled to
[-1, 1]^A. The loss is the negative log-likelihood of a normal distribution of fixed std, up to
constants. Networks and loss are those of TD3+BC: TD3+BC with α = 0 is this agent.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import optax
from flax import struct

from jaxrl.algorithm import Algorithm
from jaxrl.losses import action_distance, cloning_loss
from jaxrl.normalise import Moments, data_moments, standardise_obs
from jaxrl.optim import Trainable, minimise
from jaxrl.policies import deterministic_actor
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import check_offline, offline_program
from jaxrl.spaces import box_scale
from jaxrl.types import Agent, Array, Env, EnvSpec, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
    """Static configuration: a new value compiles a new program."""

    updates: int = 1_000_000
    """gradient steps of a run"""
    batch_size: int = 256
    """transitions per gradient step"""
    normalise_obs: bool = True
    """standardise observations with the mean and standard deviation of the dataset"""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers"""


@struct.dataclass
class Hypers:
    """Traced hyperparameters: members of one run may differ in each."""

    lr: Any = bounded(3e-4, least=0)
    """learning rate of Adam"""


class State(NamedTuple):
    actor: PyTree  # parameters (`nets.packed`)
    opt: optax.OptState
    obs: Moments  # [*obs] mean and variance of the dataset's observations


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: the action space is not a bounded box of one axis, or a size is below 1.
    """
    check_offline(cfg)
    space = box_scale("bc", spec)
    policy = deterministic_actor(cfg.hidden, spec, space)

    def init(key, hp, inputs):
        actor = policy.init(key)
        return State(actor, optax.adam(hp.lr).init(actor), data_moments(cfg, spec, inputs))

    def act(state, hp, obs, start, memory, noise, explore):
        chosen = policy.apply(state.actor, standardise_obs(cfg, state.obs, obs))
        return space.scaled(chosen), memory, {}

    def update(state, hp, batch, key, step):
        t = batch.transitions
        obs, action = standardise_obs(cfg, state.obs, t.obs), space.unit(t.action)

        def loss(actor: PyTree) -> tuple[Array, Array]:
            chosen = policy.apply(actor, obs)
            return cloning_loss(chosen, action), action_distance(chosen, action)

        (actor, opt), value, far = minimise(loss, Trainable(state.actor, state.opt), hp.lr)
        return State(actor, opt, state.obs), {"actor_loss": value, "action_distance": far}

    return Agent(init=init, update=update, act=act, hypers=Hypers())


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Program of a run with `evals` evaluations of `episodes` episodes, the last at the end."""
    return offline_program(cfg, env, make(cfg, env.spec), evals, episodes)


ALGORITHM = Algorithm(Config, Hypers, make, program, offline=True)
