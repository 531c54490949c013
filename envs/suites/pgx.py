"""Adapter of Pgx (pip install -e ".[pgx]"): board games, cards and MinAtar, "pgx:connect_four".

Pgx: Hardware-Accelerated Parallel Game Simulators for Reinforcement Learning. Sotetsu Koyamada,
Shinri Okano, Soichiro Nishimori et al. NeurIPS 2023, arXiv:2303.17503.

The agent is one player of a game, first or second at random; the other players follow a given
policy, by default uniformly random legal actions, and move within `step`. Observations have masks
of legal actions. Without them (`masks=false`) an illegal action loses the game, as in Pgx.
Differences from the suite: the agent's reward includes what the other players' moves bring, and
episodes are truncated only by `max_steps`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.envs.names import EnvError
from jaxrl.envs.suites.common import (
    allowances,
    check_task,
    each_step,
    lenient,
    load,
    svg_page,
)
from jaxrl.envs.wrappers import strong
from jaxrl.masks import Masked, random_legal
from jaxrl.types import Array, Discrete, Env, EnvSpec, PyTree, TimeStep

Opponent = Callable[[Array, Array, Array], Array]
"""(key, obs [*obs] as its player sees the game, legal [A] bool) -> action []."""

AGENT = 0  # Pgx's id of the player that is the agent; which one moves first is random


def random_opponent(key: Array, obs: Array, legal: Array) -> Array:
    """Uniformly random legal actions."""
    return random_legal(jax.random.uniform(key, (1,)), legal[None])[0]


def make(task: str, *, opponent: Opponent | str = "random") -> Env:
    """A game of Pgx.

    Args:
      opponent: "random", or from Python a function, see `Opponent`. An illegal action of it loses.

    Raises:
      EnvError: the suite is not installed, the game is unknown, or there is no such opponent.
    """
    module = load("pgx", "pgx")
    check_task("pgx", task, module.available_envs())
    if not callable(opponent) and opponent != "random":
        raise EnvError(
            f"opponent of pgx:{task} must be random, or a function in an environment of your own "
            f"that calls jaxrl.make('pgx:{task}', opponent=function), not {opponent!r}"
        )
    other = opponent if callable(opponent) else random_opponent
    with allowances():
        game = module.make(task)
        players, actions = int(game.num_players), int(game.num_actions)

    def reply(key: Array, state: Any) -> tuple[Any, Array]:
        """The others' moves until it is the agent's turn or the end, and the agent's reward."""

        def waiting(carry: PyTree) -> Array:
            state = carry[1]
            return (state.current_player != AGENT) & ~(state.terminated | state.truncated)

        def move(carry: PyTree) -> PyTree:
            key, state, total = carry
            key, key_act, key_step = jax.random.split(key, 3)
            action = other(key_act, _floats(state.observation), state.legal_action_mask)
            state = advance(state, action, key_step)
            return key, state, total + state.rewards[AGENT]

        return jax.lax.while_loop(waiting, move, (key, state, jnp.zeros(())))[1:]

    def advance(state: Any, action: Array, key: Array) -> Any:
        after = game.step(state, action.astype(jnp.int32), jax.random.key_data(key))
        return strong(after)

    def observe(state: Any) -> Any:
        return Masked(_floats(state.observation), state.legal_action_mask)

    @lenient
    def reset(key: Array, params: PyTree) -> tuple[PyTree, Masked]:
        key_init, key_reply = jax.random.split(key)
        state = strong(game.init(jax.random.key_data(key_init)))
        if players > 1:
            state, _ = reply(key_reply, state)
        return state, observe(state)

    @lenient
    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        key_step, key_reply = jax.random.split(key)
        state = advance(state, action, key_step)
        reward = state.rewards[AGENT]
        if players > 1:
            state, more = reply(key_reply, state)
            reward = reward + more
        ended = state.terminated
        return state, TimeStep(observe(state), reward, ended, state.truncated & ~ended)

    def render(states: PyTree, params: PyTree) -> str:
        visualiser = load("pgx._src.visualizer", "pgx").Visualizer
        with allowances():
            drawn = [visualiser().get_dwg(state).tostring() for state in each_step(states)]
        return svg_page(drawn)

    _, seen = jax.eval_shape(reset, jax.random.key(0), {})
    spec = EnvSpec(f"pgx:{task}", seen.obs.shape, Discrete(actions), masked=True)
    own = None if task.startswith("minatar") else render
    return Env(spec, {}, reset, step, render=own)  # type: ignore[arg-type]


def _floats(obs: Any) -> Array:
    return jnp.asarray(obs, jnp.float32)
