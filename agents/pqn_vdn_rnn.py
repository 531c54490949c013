"""Recurrent PQN-VDN: teams whose value is the sum of the Q-values of recurrent agents.

Simplifying Deep Temporal Difference Learning. Matteo Gallici, Mattie Fellows, Benjamin Ellis,
Bartomeu Pou, Ivan Masmitja, Jakob Nicolaus Foerster, Mario Martin. ICLR 2025, arXiv:2407.04811.
Value-Decomposition Networks for Cooperative Multi-Agent Learning. Peter Sunehag, Guy Lever et al.
AAMAS 2018, arXiv:1706.05296.

The recurrent network of `jaxrl.agents.pqn_rnn` for every agent of a team, with the loss of
`jaxrl.agents.pqn_vdn`: the sum of the Q-values of the agents' actions is trained to λ-returns of
the team's reward, with Σ_i max Q_i as the value of a state. Minibatches are sets of environments
with their teams; each computes targets with the current parameters.

Deviations from the authors' code: those of `jaxrl.agents.pqn_rnn`, and the team's reward is the
mean of the agents' rewards, as in `jaxrl.agents.pqn_vdn`.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from jaxrl import batchnorm
from jaxrl.agents import pqn, pqn_rnn
from jaxrl.agents.pqn_rnn import Config, Hypers
from jaxrl.algorithm import Algorithm
from jaxrl.errors import UserError
from jaxrl.evaluate import evaluator
from jaxrl.losses import q_of_action
from jaxrl.normalise import normalised
from jaxrl.program import Program
from jaxrl.recipes import single_stage
from jaxrl.returns import lambda_returns
from jaxrl.rollout import rollout
from jaxrl.sources import merge_axes
from jaxrl.teams import to_teams, window_of_teams
from jaxrl.types import Agent, Array, Env, EnvSpec, PyTree


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`; `cfg` counts environments, each with its team.

    Raises:
      UserError: the environment has no team, its actions are not discrete, or sizes are not
        divisible as required.
    """
    if spec.agents is None:
        raise UserError(f"pqn_vdn_rnn learns in teams; {spec.name} has one agent: use pqn_rnn")
    alone = pqn_rnn.make(dataclasses.replace(cfg, normalise_obs=False), spec)
    num_actions = spec.action.n  # type: ignore[union-attr]
    net = pqn_rnn.Network(cfg, num_actions)
    learning = pqn_rnn.Network(cfg, num_actions, train=True)

    def update(state, hp, batch, key, step):
        def loss(params: PyTree, statistics: PyTree, part: PyTree) -> tuple[Array, PyTree]:
            window, memory = part  # [B, T, A, ...] and [B, A, ...]
            rows = jax.tree.map(lambda x: merge_axes(jnp.moveaxis(x, 2, 1)), window)  # [B * A, T]
            window = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), rows)
            team = lambda x: x.reshape(*x.shape[:-1], -1, spec.agents)  # [T, B * A] as [T, B, A]
            numbers = (params, statistics)
            unroll = partial(batchnorm.run_learning, learning, *numbers, method="unroll")
            ahead = partial(batchnorm.run, net, *jax.lax.stop_gradient(numbers))
            q, next_value, statistics = pqn_rnn.window_values(
                unroll, ahead, window, merge_axes(memory)
            )
            targets = lambda_returns(
                hp.reward_scale * jnp.mean(team(window.reward), -1),
                jax.lax.stop_gradient(jnp.sum(team(next_value), -1)),
                team(window.terminated)[..., 0],
                team(window.truncated)[..., 0],
                hp.gamma,
                hp.lam,
            )
            total = jnp.sum(team(q_of_action(q, window.action)), -1)
            value = 0.5 * jnp.mean((total - targets) ** 2)
            return value + pqn.penalty(hp, params["head"]), (jnp.mean(total), statistics)

        window = window_of_teams(batch.transitions, spec)  # [T, N, A, ...]
        by_env = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), window)
        memory = to_teams(batch.memory, spec)
        return pqn.learn(cfg, hp, state, loss, (by_env, memory), key, step)

    agent = dataclasses.replace(alone, update=update)
    return normalised(agent, spec, cfg.num_envs, obs=cfg.normalise_obs)


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Program of a run with `evals` evaluations of `episodes` greedy episodes."""
    agent = make(cfg, env.spec)
    source = rollout(env, agent, cfg.num_envs, cfg.num_steps, keep=cfg.memory_window)
    return single_stage(cfg, agent, source, evaluator(env, agent, episodes), evals)


ALGORITHM = Algorithm(Config, Hypers, make, program)
