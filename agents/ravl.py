"""RAVL: SAC in a model of the environment, careful where its rollouts end.

The Edge-of-Reach Problem in Offline Model-Based Reinforcement Learning. Anya Sims, Cong Lu, Jakob
Foerster, Yee Whye Teh. NeurIPS 2024, arXiv:2402.12527.

Rollouts of k steps reach states at their ends that no step begins in. Values there are never
learned, but bootstrapped from, and what is overestimated spreads, however good the model is: with
the true dynamics in place of the model, methods that fear the model's errors have nothing to fear
and diverge. RAVL fears these values: EDAC's critics (`jaxrl.agents.edac`) on imagined steps.

An ensemble learns the dynamics from the data (`jaxrl.dynamics`), then the agent learns from batches
of which `real_share` are rows of the data and the others imagined (`jaxrl.imagination`). Settings
make it the two methods it is compared with:

  MBPO  `critics` 2, `diversity` False: SAC in the model. arXiv:1906.08253
  MOPO  the same with `penalty` λ: rewards r - λ max_i ‖σ_i‖. arXiv:2005.13239

Deviations from the authors' code: those of both parts; starts are drawn with replacement; the
ensemble learns which steps terminate, which there is given; `outcomes` "given" does so here, with
rewards too.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
from flax import struct

from jaxrl.agents import edac
from jaxrl.dynamics import Ensemble, ensemble, model
from jaxrl.errors import UserError
from jaxrl.evaluate import evaluator
from jaxrl.imagination import Model, imagined, penalised, true_model
from jaxrl.program import Program, Stage
from jaxrl.sources import labelled, mix, uniform, whole
from jaxrl.types import Agent, Env, EnvSpec, Source

OFFLINE = True
EXTRAS = ("state", "next_known")  # of the data


@dataclasses.dataclass(frozen=True)
class Config(edac.Config):
    """Static: a new value is a new program."""

    dynamics: Literal["learned", "true"] = "learned"
    """imagine with an ensemble, or with the environment, from simulator states in the data"""
    share_dynamics: bool = True
    """one ensemble for all members; else each has its own"""
    outcomes: Literal["learned", "given"] = "learned"
    """whether the ensemble learns rewards and terminations, or the environment says how they
    follow from observations (`Env.outcome`)"""
    models: int = 7
    """networks of the ensemble"""
    elites: int = 5
    """those of them that steps are drawn from"""
    model_hidden: tuple[int, ...] = (200, 200, 200, 200)
    """widths of their hidden layers"""
    model_epochs: int = 2_000
    """passes of the data that they learn from at most"""
    model_patience: int = 5
    """passes without improvement after which they are done"""
    rollout_steps: int = 5
    """steps k of an imagined rollout"""
    rollout_starts: int = 50_000
    """rollouts of a refresh"""
    rollout_every: int = 1_000
    """updates between refreshes"""
    retain: int = 5
    """refreshes whose steps are kept"""
    real_share: float = 0.05
    """share of the rows of a batch that come from the data"""


@struct.dataclass
class Hypers(edac.Hypers):
    """Traced: members of one population may differ in each."""

    penalty: Any = 0.0
    """λ by which uncertainty of the model lowers rewards, in MOPO"""
    model_lr: Any = 1e-3
    """learning rate of the ensemble, the same for all members that share one"""


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: actions are not in a bounded box of one axis, or a size is too small.
    """
    if not 0 <= cfg.real_share <= 1:
        raise UserError(f"real_share={cfg.real_share} must be between 0 and 1")
    return edac.make(cfg, spec)


def networks(cfg: Config, env: Env) -> Ensemble:
    """The ensemble's networks and what they need not learn.

    Raises:
      UserError: outcomes are to be given by an environment that does not tell them.
    """
    found = Ensemble(
        members=cfg.models,
        elites=cfg.elites,
        hidden=cfg.model_hidden,
        patience=cfg.model_patience,
    )
    if cfg.outcomes == "learned":
        return found
    if (rule := env.outcome) is None:
        raise UserError(f"{env.spec.name} does not tell its outcomes: say --agent.outcomes learned")
    rows = jax.vmap(rule, (0, 0, 0, None))
    return dataclasses.replace(
        found,
        reward=lambda obs, action, after: rows(obs, action, after, env.params)[0],
        terminated=lambda obs, action, after: rows(obs, action, after, env.params)[1],
    )


def experience(cfg: Config, agent: Agent, world: Model) -> Source:
    """Batches of real rows and of those imagined in `world`.

    extras["edge"] marks steps that rollouts end with.
    """
    dreams = imagined(
        world,
        agent,
        starts=cfg.rollout_starts,
        steps=cfg.rollout_steps,
        every=cfg.rollout_every,
        retain=cfg.retain,
        batch_size=cfg.batch_size,
    )
    real = labelled(uniform(cfg.batch_size), edge=False)
    return mix(real, dreams, cfg.real_share, cfg.batch_size)


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """The dynamics, where they are learned, then the agent with `evals` evaluations.

    Raises:
      UserError: the true dynamics of an environment that does not run on the device.
    """
    if cfg.dynamics == "true":
        if env.host is not None:
            raise UserError(f"{env.spec.name} runs on the host only: it cannot be imagined with")
        return Program((learning(cfg, env, true_model(env), evals, episodes),))
    own = networks(cfg, env)
    modelling = Stage(
        name="dynamics",
        learner=ensemble(own, env.spec),
        source=whole(),
        updates=cfg.model_epochs,
        evals=evals,
        shared=cfg.share_dynamics,
        reads=("model_lr",),
        unshared="say --agent.no-share-dynamics",
    )
    world = model(own, env.spec)
    return Program((modelling, learning(cfg, env, world, evals, episodes)))


def learning(cfg: Config, env: Env, world: Model, evals: int, episodes: int) -> Stage:
    """The stage of the agent, whatever it imagines in."""
    agent = make(cfg, env.spec)
    return Stage(
        name="agent",
        learner=agent,
        source=experience(cfg, agent, penalised(world)),
        updates=cfg.updates,
        evals=evals,
        evaluate=evaluator(env, agent, episodes),
    )
