"""Cal-QL: CQL with values calibrated by the returns of the data, for online fine-tuning.

Cal-QL: Calibrated Offline RL Pre-Training for Efficient Online Fine-Tuning. Mitsuhiko Nakamoto,
Yuexiang Zhai, Anikait Singh, Max Sobol Mark, Yi Ma, Chelsea Finn, Aviral Kumar, Sergey Levine.
NeurIPS 2023, arXiv:2303.05479.

CQL pushes the values of the policy's actions below those of the behaviour, and online steps then
unlearn the policy. In the regulariser of `jaxrl.agents.cql`, Q(s, a) of the policy's actions
becomes max(Q(s, a), G(s)) with the Monte-Carlo return G(s) of the data from s on (eq. 5.1), so
values below G(s) are not pushed further down. Uniform actions are not bounded, as in the authors'
code. Fine-tuning draws half of each batch from the data, half from the replay buffer.

Deviations from the authors' code:
- An episode that the data cut continues with its last reward for ever, r / (1 - γ); there this
  holds for failed episodes of AntMaze, and other cut episodes end without value.
- Replayed steps are not bounded; there they have the returns of their episodes.
- The target is the value of one action of the policy, there the highest of ten.
- Those of `jaxrl.agents.cql`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import struct

from jaxrl.agents import cql
from jaxrl.algorithm import Algorithm
from jaxrl.errors import UserError
from jaxrl.inputs import VALIDATION
from jaxrl.losses import scaled_rewards
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import fine_tuning, offline_program
from jaxrl.returns import lambda_returns
from jaxrl.sources import labelled, uniform
from jaxrl.types import Agent, Array, Env, EnvSpec, PyTree, Source, Transition


@dataclasses.dataclass(frozen=True)
class Config(cql.Config):
    """Static configuration: a new value compiles a new program."""


@struct.dataclass
class Hypers(cql.Hypers):
    """Traced hyperparameters: members of one run may differ in each."""

    actor_lr: Any = bounded(1e-4, least=0)
    """learning rate of Adam for policy and temperature"""
    gamma: Any = bounded(0.99, least=0, below=1)
    """discount factor"""
    weight: Any = bounded(5.0, least=0)
    """weight of the conservative regulariser, relative to the squared TD error"""


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`; raises as `cql.make`."""

    def calibrate(elsewhere: Array, t: Transition) -> Array:
        return calibrated(elsewhere, t.extras["return"], cfg.samples)

    return dataclasses.replace(cql.make(cfg, spec, calibrate), hypers=Hypers())


def calibrated(elsewhere: Array, floor: Array, samples: int) -> Array:
    """Values [2, K, B], at least `floor` [B] except for the first `samples` actions, which are
    uniform."""
    bounded_below = jnp.maximum(elsewhere[:, samples:], floor[None, None])
    return jnp.concatenate([elsewhere[:, :samples], bounded_below], 1)


def with_returns(batch_size: int) -> Source:
    """`uniform` with extras["return"] [B], the scaled return from the row on, see the module."""
    inner = uniform(batch_size)

    def init(key, learner_state, hp, inputs):
        t = scaled_rewards(inputs["data"], hp.agent)
        rest = t.reward / (1 - hp.agent.gamma)
        return lambda_returns(t.reward, rest, t.terminated, t.truncated, hp.agent.gamma, 1.0)

    def next(src, learner_state, hp, inputs, key, step):
        data: Transition = inputs["data"]
        told = {"data": data._replace(extras=data.extras | {"return": src})}
        return src, *inner.next((), learner_state, hp, inputs | told, key, step)[1:]

    return dataclasses.replace(inner, init=init, next=next)


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Offline training; with `finetune_steps` a second stage fine-tunes online."""
    agent, data = make(cfg, env.spec), with_returns(cfg.batch_size)
    own = lambda replayed: labelled(replayed, **{"return": -jnp.inf})
    online = fine_tuning(cfg, env, agent, evals, episodes, data=with_returns, own=own)
    return offline_program(cfg, env, agent, evals, episodes, source=data, after=online)


def check_request(cfg: Config, hp: Any, inputs: PyTree) -> None:
    """Raises UserError if rows are held out: the returns are those of all rows of the data."""
    if VALIDATION in inputs:
        raise UserError("calql reads the returns of its own rows: remove --validation-share")


ALGORITHM = Algorithm(Config, Hypers, make, program, offline=True, check_request=check_request)
