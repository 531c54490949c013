"""Recurrent PQN: Q-values of a GRU or LSTM over the episode so far.

Simplifying Deep Temporal Difference Learning. Matteo Gallici, Mattie Fellows, Benjamin Ellis,
Bartomeu Pou, Ivan Masmitja, Jakob Nicolaus Foerster, Mario Martin. ICLR 2025, arXiv:2407.04811.

The PQN of `jaxrl.agents.pqn` with a recurrent cell between the dense layers and the Q-values. The
cell also takes the last action. Training unrolls whole windows from the memory stored at their
start; a window is the rollout and the `memory_window` steps before it. Minibatches are sets of
environments; each computes targets with the current parameters.

Deviations from the authors' code:
- The window's last step is trained too (there it only serves for bootstrapping).
- Time limits bootstrap from the true successor.
- With BatchNorm the values of these successors use running statistics, all others the minibatch's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl import batchnorm, nets, recurrent
from jaxrl.agents import pqn
from jaxrl.agents.pqn import Hypers
from jaxrl.algorithm import Algorithm
from jaxrl.errors import OnHost, UserError, at_least
from jaxrl.evaluate import evaluator
from jaxrl.exploration import epsilon_greedy, epsilon_noise
from jaxrl.losses import q_loss
from jaxrl.masks import legal_only, unmask
from jaxrl.normalise import normalised
from jaxrl.policies import agent_of
from jaxrl.products import Dense
from jaxrl.program import Program
from jaxrl.recipes import single_stage
from jaxrl.returns import lambda_returns, successor_values
from jaxrl.rollout import rollout
from jaxrl.sources import merge_axes
from jaxrl.types import Agent, Array, Env, EnvSpec, Policy, PyTree, Transition


@dataclasses.dataclass(frozen=True)
class Config(pqn.Config):
    """Static configuration: a new value compiles a new program. `minibatches` divides N here."""

    cell: Literal["gru", "lstm"] = "gru"
    """type of the recurrent cell"""
    memory: int = 256
    """units of the recurrent cell"""
    memory_window: int = 4
    """steps of the previous rollout prepended to each rollout"""


class Network(nn.Module):
    """Torso features and the last action to a recurrent cell, then Dense to Q-values."""

    cfg: Config
    num_actions: int
    train: bool = False

    def setup(self) -> None:
        cfg = self.cfg
        self.torso = nets.Torso(cfg.hidden, **pqn.layers(cfg, self.train))
        self.cell = recurrent.Recurrent(cfg.cell, cfg.memory)
        self.head = Dense(self.num_actions)

    def unroll(
        self, carry: PyTree, obs: Array, last_action: Array, start: Array
    ) -> tuple[PyTree, Array]:
        """Carries [T, B, memory] after each step, and Q-values [T, B, A].

        obs [T, B, *obs], last_action [T, B, A] one-hot, start [T, B] bool: resets the carry and
        the last action.
        """
        length, size = start.shape
        last_action = recurrent.forget(merge_axes(last_action), merge_axes(start))
        features = jnp.concatenate([self.torso(merge_axes(obs)), last_action], -1)
        carries, outs = self.cell(carry, features.reshape(length, size, -1), start)
        return carries, self.head(merge_axes(outs)).reshape(length, size, -1)

    def __call__(
        self, carry: PyTree, obs: Array, last_action: Array, start: Array
    ) -> tuple[PyTree, Array]:
        """One step: (carry [B, memory], Q-values [B, A])."""
        carries, q = self.unroll(carry, obs[None], last_action[None], start[None])
        return jax.tree.map(lambda x: x[0], carries), q[0]


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`; its memory is (carry of the cell, last action).

    Raises:
      UserError: the action space is not discrete, or sizes are not divisible as required.
    """
    pqn.check(cfg, spec)
    at_least(1, memory=cfg.memory)
    if not 0 <= cfg.memory_window <= cfg.num_steps:
        raise UserError(
            f"memory_window={cfg.memory_window} is not between 0 and num_steps={cfg.num_steps}"
        )
    if cfg.num_envs % cfg.minibatches:
        raise UserError(
            f"minibatches={cfg.minibatches} does not divide num_envs={cfg.num_envs}; recurrent "
            "minibatches are sets of environments"
        )
    num_actions = spec.action.n  # type: ignore[union-attr]
    net, learning = Network(cfg, num_actions), Network(cfg, num_actions, train=True)

    def memory(n: int) -> tuple[PyTree, Array]:
        carry = recurrent.CELLS[cfg.cell].carry((n, cfg.memory))
        return carry, jnp.zeros((n, num_actions))

    def init(key, hp, inputs):
        carry, last_action = memory(1)
        obs, start = jnp.zeros((1, *spec.obs_shape)), jnp.zeros(1, bool)
        found = net.init(key, carry, obs, last_action, start)
        return pqn.begin(found["params"], found.get(batchnorm.COLLECTION, {}), hp)

    def act(state, hp, obs, start, memory, noise, explore):
        obs, legal = unmask(obs)
        args = (memory[0], obs, memory[1], start)
        carry, q = batchnorm.run(net, state.params, state.statistics, *args)
        action = epsilon_greedy(legal_only(q, legal), state.eps, noise, explore, legal)
        return action, (carry, jax.nn.one_hot(action, num_actions)), {}

    def update(state, hp, batch, key, step):
        def loss(params: PyTree, statistics: PyTree, part: PyTree) -> tuple[Array, PyTree]:
            window, memory = part
            window = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), window)  # [T, B, ...]
            numbers = (params, statistics)
            unroll = partial(batchnorm.run_learning, learning, *numbers, method="unroll")
            step = partial(batchnorm.run, net, *jax.lax.stop_gradient(numbers))
            q, next_value, statistics = window_values(unroll, step, window, memory)
            targets = lambda_returns(
                hp.reward_scale * window.reward,
                jax.lax.stop_gradient(next_value),
                window.terminated,
                window.truncated,
                hp.gamma,
                hp.lam,
            )
            value, mean_q = q_loss(q, window.action, targets)
            return value + pqn.penalty(hp, params["head"]), (mean_q, statistics)

        by_env = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), batch.transitions)  # [N, T, ...]
        return pqn.learn(cfg, hp, state, loss, (by_env, batch.memory), key, step)

    noise = epsilon_noise(num_actions, spec.masked)
    acting = Policy(act=act, memory=memory, noise=noise, masks=True)
    agent = agent_of(acting, init, update, Hypers())
    return normalised(agent, spec, cfg.num_envs, obs=cfg.normalise_obs)


def window_values(
    unroll: Callable[..., Any],
    step: Callable[..., Any],
    window: Transition,
    memory: PyTree,
) -> tuple[Array, Array, PyTree]:
    """Q-values [T, B, A] in a window, values [T, B] of the true successors, and new statistics.

    Args:
      unroll: returns ((carries, Q-values), statistics) of `Network.unroll`.
      step: returns (carry, Q-values) of one step; its parameters are constants to the gradient.
      window: transitions [T, B, ...].
      memory: (carry, last action [B, A]) before the window's first step.
    """
    actions = jax.nn.one_hot(window.action, memory[1].shape[-1])
    last_actions = jnp.concatenate([memory[1][None], actions[:-1]])
    obs, legal = unmask(window.obs)
    (carries, q), statistics = unroll(memory[0], obs, last_actions, window.start)

    def ahead(rows: PyTree) -> Array:
        carry, seen, action = rows
        obs, legal = unmask(seen)
        q = step(carry, obs, action, jnp.zeros(action.shape[0], bool))[1]
        return jnp.max(legal_only(q, legal), -1)

    # Targets are constants: no gradient flows through the code below.
    every, value = jax.lax.stop_gradient(
        ((carries, window.next_obs, actions), jnp.max(legal_only(q, legal), -1))
    )
    return q, successor_values(ahead, every, value, window.truncated), statistics


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Program of a run with `evals` evaluations of `episodes` greedy episodes."""
    if env.host is not None and cfg.memory_window:
        raise OnHost(
            f"{env.spec.name} runs on the host, where windows do not overlap: pass "
            "--agent.memory-window 0"
        )
    agent = make(cfg, env.spec)
    source = rollout(env, agent, cfg.num_envs, cfg.num_steps, keep=cfg.memory_window)
    return single_stage(cfg, agent, source, evaluator(env, agent, episodes), evals)


ALGORITHM = Algorithm(Config, Hypers, make, program)
