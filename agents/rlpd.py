"""RLPD: SAC with a critic ensemble, LayerNorm, and half of each batch from a dataset.

Efficient Online Reinforcement Learning with Offline Data. Philip J. Ball, Laura Smith, Ilya
Kostrikov, Sergey Levine. ICML 2023, arXiv:2302.02948.

The learner is `jaxrl.agents.sac` with N critics with LayerNorm, of which M random ones give the
target (RED-Q), many gradient steps of the critics per environment step, and one of the policy,
which maximises the mean of all critics. Each batch has `data_share` of its rows from the dataset,
the others from the replay buffer of the agent's own steps. Nothing else keeps the policy at the
data.

Deviations from the authors' code:
- The loss is a sum over critics, there their mean; under Adam the steps are the same.
- The warm-up acts uniformly at random, as there; no gradient steps are made in the warm-up.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import struct

from jaxrl.agents import sac
from jaxrl.algorithm import Algorithm
from jaxrl.evaluate import evaluator
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import check_share, mixed, single_stage
from jaxrl.spaces import box_scale
from jaxrl.types import Agent, Box, Env, EnvSpec


@dataclasses.dataclass(frozen=True)
class Config(sac.Config):
    """Static configuration: a new value compiles a new program."""

    total_steps: int = 250_000
    """environment steps of a run after the warm-up, summed over its parallel environments"""
    gradient_steps: int = 20
    """gradient steps of the critics per rollout"""
    warmup: int = 5_000
    """environment steps with random actions before the first update"""
    critics: int = 10
    """number N of critics"""
    mean_critic: bool = True
    """the policy maximises the mean of all critics instead of their minimum"""
    layer_norm: bool = True
    """LayerNorm before the activations of the critics"""
    policy_every: int = 20
    """gradient steps of the critics per gradient step of policy and temperature"""
    data_share: float = 0.5
    """fraction of each batch drawn from the dataset"""


@struct.dataclass
class Hypers(sac.Hypers):
    """Traced hyperparameters: members of one run may differ in each."""

    temperature: Any = bounded(1.0, above=0)
    """weight α of the entropy; the initial value if learned"""
    reward_scale: Any = bounded(1.0)
    """factor on rewards"""


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: the action space is not supported, or sizes do not fit together.
    """
    check_share(cfg)
    if isinstance(spec.action, Box) and cfg.target_entropy is None:
        cfg = dataclasses.replace(cfg, target_entropy=-box_scale("rlpd", spec).size / 2)
    inner = sac.make(cfg, spec)

    def update(state, hp, batch, key, step):
        t = batch.transitions
        scaled = t._replace(reward=hp.reward_scale * t.reward)
        return inner.update(state, hp, batch._replace(transitions=scaled), key, step)

    return dataclasses.replace(inner, update=update, masks=False, views=False, hypers=Hypers())


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Program of a run with `evals` evaluations of `episodes` episodes of the policy's mode."""
    agent = make(cfg, env.spec)
    source, play = mixed(cfg, env, agent), evaluator(env, agent, episodes)
    return single_stage(cfg, agent, source, play, evals)


ALGORITHM = Algorithm(Config, Hypers, make, program, offline=True)
