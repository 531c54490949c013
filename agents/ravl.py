"""RAVL: model-based offline RL with pessimistic critics at edge-of-reach states.

The Edge-of-Reach Problem in Offline Model-Based Reinforcement Learning. Anya Sims, Cong Lu, Jakob
Foerster, Yee Whye Teh. NeurIPS 2024, arXiv:2402.12527.

Imagined rollouts of k steps end in states where no step begins (edge-of-reach states). Values of
these states are bootstrapped from but never trained, so overestimation spreads, even with a perfect
model: methods that penalise model error have nothing to penalise in the true dynamics, and diverge.
RAVL makes their values pessimistic with EDAC's critics (`jaxrl.agents.edac`).

An ensemble learns the dynamics from the dataset (`jaxrl.dynamics`). The agent then learns from
batches with a fraction `real_share` of dataset rows and otherwise imagined transitions
(`jaxrl.imagination`). Two baselines are settings of this agent:

  MBPO  `critics` 2, `diversity` False: SAC in the model. arXiv:1906.08253
  MOPO  the same with `penalty` λ: rewards r - λ max_i ‖σ_i‖. arXiv:2005.13239

Deviations from the authors' code:
- The deviations of `jaxrl.agents.edac` and `jaxrl.dynamics`, whose ensemble keeps its learning
  rate (there it is multiplied by 0.3 at the first stall).
- Start states are drawn with replacement.
- The ensemble learns terminations (there they are given); `outcomes` "given" takes terminations
  and rewards from the environment.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from flax import struct

from jaxrl import dynamics
from jaxrl.agents import edac
from jaxrl.algorithm import Algorithm
from jaxrl.dynamics import Ensemble, model
from jaxrl.errors import UserError, at_least
from jaxrl.evaluate import evaluator
from jaxrl.imagination import Model, imagined, known_outcomes, penalised, true_model
from jaxrl.program import Program, Stage
from jaxrl.ranges import bounded
from jaxrl.recipes import check_share
from jaxrl.sources import labelled, mix, uniform
from jaxrl.types import Agent, Env, EnvSpec, Source


@dataclasses.dataclass(frozen=True)
class Config(edac.Config):
    """Static configuration: a new value compiles a new program."""

    dynamics: Literal["learned", "true"] = "learned"
    """imagine with a learned ensemble, or in the true environment (data with simulator states)"""
    share_dynamics: bool = True
    """train one ensemble for all members; otherwise one per member"""
    outcomes: Literal["learned", "given"] = "learned"
    """source of rewards and terminations: the ensemble, or the environment (`Env.outcome`)"""
    models: int = 7
    """networks in the ensemble"""
    elites: int = 5
    """networks with the lowest validation errors, used for imagined steps"""
    model_hidden: tuple[int, ...] = (200, 200, 200, 200)
    """widths of the ensemble's hidden layers"""
    model_epochs: int = bounded(2_000, least=0)
    """maximum passes over the dataset in training the ensemble"""
    model_patience: int = 5
    """passes without improvement before training of the ensemble stops"""
    rollout_steps: int = 5
    """steps k of an imagined rollout"""
    rollout_starts: int = 50_000
    """imagined rollouts per refresh of the imagined data"""
    rollout_every: int = 1_000
    """gradient steps between refreshes of the imagined data"""
    retain: int = 5
    """refreshes whose imagined transitions are kept"""
    real_share: float = 0.05
    """fraction of each batch drawn from the dataset"""


@struct.dataclass
class Hypers(edac.Hypers):
    """Traced hyperparameters: members of one run may differ in each."""

    penalty: Any = bounded(0.0, least=0)
    """weight λ of the model uncertainty subtracted from rewards, as in MOPO; 0 turns it off"""
    model_lr: Any = bounded(1e-3, least=0)
    """learning rate of the ensemble, equal for all members that share one"""


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: the action space is not a bounded box of one axis, or a size is too small.
    """
    at_least(
        1,
        rollout_starts=cfg.rollout_starts,
        rollout_steps=cfg.rollout_steps,
        rollout_every=cfg.rollout_every,
    )
    check_share(cfg, "real_share")
    return dataclasses.replace(edac.make(cfg, spec), hypers=Hypers())


def networks(cfg: Config, env: Env) -> Ensemble:
    """The ensemble, with rewards and terminations of the environment if `outcomes` is "given".

    Raises:
      UserError: `outcomes` is "given" and the environment has no `Env.outcome`.
    """
    found = Ensemble(
        members=cfg.models,
        elites=cfg.elites,
        hidden=cfg.model_hidden,
        patience=cfg.model_patience,
    )
    if cfg.outcomes == "learned":
        return found
    rule = known_outcomes(env, "--agent.outcomes learned")
    return dataclasses.replace(
        found, reward=lambda *rows: rule(*rows)[0], terminated=lambda *rows: rule(*rows)[1]
    )


def experience(cfg: Config, agent: Agent, world: Model) -> Source:
    """Batches of dataset rows and of transitions imagined in `world`.

    extras["rollout_end"] marks the last steps of imagined rollouts.
    """
    imagination = imagined(
        world,
        agent,
        starts=cfg.rollout_starts,
        steps=cfg.rollout_steps,
        every=cfg.rollout_every,
        retain=cfg.retain,
        batch_size=cfg.batch_size,
    )
    real = labelled(uniform(cfg.batch_size), rollout_end=False)
    return mix(real, imagination, cfg.real_share, cfg.batch_size)


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """A stage for the ensemble, if the dynamics are learned, and one for the agent.

    Raises:
      UserError: `dynamics` is "true" and the environment does not run on the device.
    """
    if cfg.dynamics == "true":
        if env.host is not None:
            raise UserError(f"{env.spec.name} runs on the host only: pass --agent.dynamics learned")
        return Program((learning(cfg, env, true_model(env), evals, episodes),))
    own = networks(cfg, env)
    modelling = dynamics.stage(
        own,
        env.spec,
        epochs=cfg.model_epochs,
        evals=evals,
        shared=cfg.share_dynamics,
        unshared="pass --agent.no-share-dynamics",
    )
    world = model(own, env.spec)
    return Program((modelling, learning(cfg, env, world, evals, episodes)))


def learning(cfg: Config, env: Env, world: Model, evals: int, episodes: int) -> Stage:
    """The stage of the agent, with imagination in `world`."""
    agent = make(cfg, env.spec)
    return Stage(
        name="agent",
        learner=agent,
        source=experience(cfg, agent, penalised(world)),
        updates=cfg.updates,
        evals=evals,
        evaluate=evaluator(env, agent, episodes),
    )


ALGORITHM = Algorithm(Config, Hypers, make, program, offline=True, extras=("state", "next_known"))
