"""PRDC: TD3 with a policy drawn to the nearest state-action pair of the whole dataset.

Policy Regularization with Dataset Constraint for Offline Reinforcement Learning. Yuhang Ran,
Yi-Chen Li, Fuxiang Zhang, Zongzhang Zhang, Yang Yu. ICML 2023, arXiv:2306.06569.

TD3+BC pulls π(s) to the action that the dataset has in s, even where that is a bad one. PRDC pulls
π(s) to the action â of the nearest pair,

  (ŝ, â) = argmin over the dataset of ‖(β s, π(s)) - (β ŝ, â)‖,

and minimises mean (π(s) - â)² - α mean Q_1(s, π(s)) / mean |Q_1|. A small β allows actions of far
states, a large β leaves those of the same state. The search is exact (`jaxrl.neighbours`), by
standardised observations and actions in [-1, 1]; the index has no gradient. The rest is TD3+BC's.

Deviations from the authors' code (LAMDA-RL/PRDC): those of `jaxrl.agents.td3bc`, and a brute-force
search on the device in place of a KD-tree on the host.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.agents import td3bc
from jaxrl.algorithm import Algorithm
from jaxrl.errors import UserError, at_least
from jaxrl.neighbours import CHUNK, nearest
from jaxrl.normalise import standardise_obs
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import offline_program
from jaxrl.sources import expand, uniform
from jaxrl.spaces import box_scale
from jaxrl.types import Agent, Array, Env, EnvSpec, Source, Transition


@dataclasses.dataclass(frozen=True)
class Config(td3bc.Config):
    """Static configuration: a new value compiles a new program."""

    chunk: int = CHUNK
    """rows of the dataset that are searched at a time; changes speed and memory only"""


@struct.dataclass
class Hypers(td3bc.Hypers):
    """Traced hyperparameters: members of one run may differ in each."""

    beta: Any = bounded(2.0, least=0)
    """weight β of states, relative to actions, in the distance to the dataset"""


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`; batches have the extra of `neighbouring`.

    Raises:
      UserError: the action space is not a bounded box of one axis, or a size is below 1.
    """
    at_least(1, chunk=cfg.chunk)

    def loss(q: Array, chosen: Array, t: Transition, hp: Hypers) -> Array:
        return td3bc.actor_loss(q, chosen, t.extras["neighbour"], hp.alpha)

    agent = td3bc.make_variant(cfg, spec, td3bc.Variant("prdc", loss))
    return dataclasses.replace(agent, hypers=Hypers())


def neighbouring(cfg: Config, spec: EnvSpec, agent: Agent) -> Source:
    """`uniform` with extras["neighbour"] [B, A], the unit actions of the pairs nearest to
    (s, π(s)); before updates that leave the policy as it is, 0."""
    inner, space = uniform(cfg.batch_size), box_scale("prdc", spec)

    def next(src, learner_state, hp, inputs, key, step):
        src, batch, seen = inner.next(src, learner_state, hp, inputs, key, step)
        data, t = expand(inputs["data"]), batch.transitions
        seen_as = lambda obs: standardise_obs(cfg, learner_state.obs, obs)

        def pair(obs: Array, action: Array) -> Array:
            states = hp.agent.beta * seen_as(obs).reshape(len(obs), -1)
            return jnp.concatenate([states, space.unit(action)], -1)

        def search() -> Array:
            start, none = jnp.ones(cfg.batch_size, bool), ()
            action, _, _ = agent.act(learner_state, hp.agent, t.obs, start, none, key, False)
            index, _ = nearest(
                pair(t.obs, action), (data.obs, data.action), lambda rows: pair(*rows), cfg.chunk
            )
            return space.unit(data.action[index])

        skip = lambda: jnp.zeros((cfg.batch_size, space.size))
        found = jax.lax.cond((step + 1) % cfg.policy_every == 0, search, skip)
        t = t._replace(extras=t.extras | {"neighbour": found})
        return src, batch._replace(transitions=t), seen

    return dataclasses.replace(inner, next=next)


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Program of a run with `evals` evaluations of `episodes` episodes, the last at the end.

    Raises:
      UserError: as `make`, or `finetune_steps` asks for TD3+BC's second stage.
    """
    if cfg.finetune_steps:
        raise UserError(f"finetune_steps={cfg.finetune_steps}: prdc learns from data alone; use 0")
    agent = make(cfg, env.spec)
    source = neighbouring(cfg, env.spec, agent)
    return offline_program(cfg, env, agent, evals, episodes, source=source)


ALGORITHM = Algorithm(Config, Hypers, make, program, offline=True)
