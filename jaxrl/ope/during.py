"""Fitted Q-evaluation as part of each evaluation of an offline run: a column `ope_fqe`.

It is the value of the greedy policy that the run's own dataset predicts, so that searches can
choose hyperparameters without the environment.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxrl.errors import UserError
from jaxrl.evaluate import Evaluator
from jaxrl.fitting import by_pieces, fit
from jaxrl.ope import fqe, targets
from jaxrl.policies import Trained
from jaxrl.program import Program, Stage
from jaxrl.sources import expand
from jaxrl.types import Agent, Array, EnvSpec, HyperParams, PyTree

NAME = "ope_fqe"


def greedy_value(
    cfg: fqe.Config, spec: EnvSpec, agent: Agent, updates: int, hp: fqe.Hypers
) -> PyTree:
    """Function (`Trained`, data [D], key) -> estimated J(π) [] of the greedy policy: the mean of
    V̂ over the first observations of the episodes, after `updates` updates of FQE."""
    target = targets.target(spec)
    learner, critic = fqe.learner(cfg, spec, target), fqe.critic(cfg, spec)

    def value(trained: Trained, data: PyTree, key: Array) -> Array:
        data = expand(data)._replace(extras={})
        data = data._replace(action=target.unit(data.action))
        greedy = lambda obs: targets.greedy_actions(agent, trained, target.unit, obs)
        mode, ahead = greedy(data.obs), greedy(data.next_obs)
        rows = data._replace(extras={"next_mode": ahead})
        lowest, highest = fqe.value_range(data.reward, hp.gamma)
        limited = dataclasses.replace(hp, lowest=lowest, highest=highest)
        key_fit, key_value = jax.random.split(key)
        state = fit(learner, limited, rows, key_fit, updates, cfg.batch_size)
        of_rows = lambda x: fqe.q_and_value(critic, target, state, hp.spread, key_value, x)
        _, v = by_pieces(of_rows, (data.obs, data.action, mode))
        return jnp.sum(jnp.where(data.start, v, 0.0)) / jnp.maximum(jnp.sum(data.start), 1)

    return value


def with_fqe(program: Program, spec: EnvSpec, updates: int) -> Program:
    """`program` whose last stage also estimates J(π) at each evaluation, from inputs["data"].

    The discount factor is the agent's, or 0.99 if it has none.

    Raises:
      UserError: the last stage is evaluated on the host, or its policy has a memory.
    """
    stage = program.stages[-1]
    play, agent = stage.evaluate, stage.learner
    if not isinstance(play, Evaluator) or not isinstance(agent, Agent):
        raise UserError("--ope-updates needs an evaluation on the device: remove it")
    targets.check_memoryless(agent)

    def measure(state: PyTree, hp: HyperParams, inputs: PyTree, key: Array) -> dict[str, Array]:
        gamma = jnp.asarray(getattr(hp.agent, "gamma", 0.99), jnp.float32)
        own = jax.tree.map(jnp.float32, fqe.Hypers(lr=1e-3)).replace(gamma=gamma)
        value = greedy_value(fqe.Config(), spec, agent, updates, own)
        return {NAME: value(Trained(state, hp.agent), inputs["data"], key)}

    last: Stage = dataclasses.replace(stage, evaluate=play.measuring(measure))
    return Program((*program.stages[:-1], last))
