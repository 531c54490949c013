"""PQN-VDN: PQN for teams, whose value is the sum of the agents' Q-values.

Simplifying Deep Temporal Difference Learning. Matteo Gallici, Mattie Fellows, Benjamin Ellis,
Bartomeu Pou, Ivan Masmitja, Jakob Nicolaus Foerster, Mario Martin. ICLR 2025, arXiv:2407.04811.
Value-Decomposition Networks for Cooperative Multi-Agent Learning. Peter Sunehag, Guy Lever et al.
AAMAS 2018, arXiv:1706.05296.

The PQN of `jaxrl.agents.pqn` with one network for all agents of a team. Each agent acts by its own
observation, and learning sees the team: Q(s, a) = Σ_i Q(o_i, a_i), whose maximum over joint actions
is Σ_i max Q(o_i, ·), is trained to λ-returns of the team's reward. So an agent learns what its
action is worth to the team, where an independent learner (`pqn`) learns what it earns itself.

Deviations from the authors' code, beside those of `jaxrl.agents.pqn`:
- The team's reward is the mean of the agents' rewards (there that of the first agent): the same
  where all earn the same, as in SMAX.
- Without memory; the authors have a recurrent network.
- A row of a minibatch is a step of a team (there a set of environments, for the recurrent network).
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from jaxrl import batchnorm, nets
from jaxrl.agents import pqn
from jaxrl.agents.pqn import Config, Hypers, State
from jaxrl.algorithm import Algorithm
from jaxrl.errors import UserError
from jaxrl.evaluate import evaluator
from jaxrl.losses import q_of_action
from jaxrl.masks import legal_only, unmask
from jaxrl.normalise import normalised
from jaxrl.program import Program
from jaxrl.recipes import single_stage
from jaxrl.returns import lambda_returns, successor_values
from jaxrl.rollout import rollout
from jaxrl.sources import merge_axes
from jaxrl.teams import window_of_teams
from jaxrl.types import Agent, Array, Env, EnvSpec, PyTree


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`; `cfg` counts environments, each with its team.

    Raises:
      UserError: the environment has no team, its actions are not discrete, or sizes are not
        divisible as required.
    """
    pqn.check(cfg, spec)
    if spec.agents is None:
        raise UserError(f"pqn_vdn learns in teams; {spec.name} has one agent: use pqn")
    alone = pqn.make(dataclasses.replace(cfg, normalise_obs=False), spec)
    num_actions = spec.action.n  # type: ignore[union-attr]
    mlp = lambda train: nets.MLP(cfg.hidden, num_actions, **pqn.layers(cfg, train))
    net = batchnorm.from_linen(mlp, spec.obs_shape)

    def team_value(state: State, seen: PyTree) -> Array:
        """max_a Q [B] of the observations [B, A, *obs] of teams."""
        obs, legal = unmask(merge_axes(seen))
        q = legal_only(net.apply(state.params, state.statistics, obs), legal)
        return jnp.sum(jnp.max(q, -1).reshape(-1, spec.agents), -1)

    def update(state, hp, batch, key, step):
        window = window_of_teams(batch.transitions, spec)  # [T, N, A, ...]
        terminated, truncated = window.terminated[..., 0], window.truncated[..., 0]
        targets = lambda_returns(
            hp.reward_scale * jnp.mean(window.reward, -1),
            successor_values(
                lambda seen: team_value(state, seen),
                window.next_obs,
                jnp.sum(window.extras["value"], -1),
                truncated,
            ),
            terminated,
            truncated,
            hp.gamma,
            hp.lam,
        )
        data = merge_axes((unmask(window.obs)[0], window.action, targets))  # [T * N, ...]

        def loss(params: PyTree, statistics: PyTree, part: PyTree) -> tuple[Array, PyTree]:
            obs, action, target = part
            q, statistics = net.learn(params, statistics, merge_axes(obs))
            chosen = q_of_action(q, action.reshape(-1)).reshape(action.shape)
            total = jnp.sum(chosen, -1)
            value = 0.5 * jnp.mean((total - target) ** 2) + pqn.penalty(hp, params["Dense_0"])
            return value, (jnp.mean(total), statistics)

        return pqn.learn(cfg, hp, state, loss, data, key, step)

    agent = dataclasses.replace(alone, update=update)
    return normalised(agent, spec, cfg.num_envs, obs=cfg.normalise_obs)


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Program of a run with `evals` evaluations of `episodes` greedy episodes."""
    agent = make(cfg, env.spec)
    source = rollout(env, agent, cfg.num_envs, cfg.num_steps)
    return single_stage(cfg, agent, source, evaluator(env, agent, episodes), evals)


ALGORITHM = Algorithm(Config, Hypers, make, program)
