"""Evaluation over whole episodes, in the compiled program or on the host.

The host evaluates in environments that cannot run on a device, such as gymnasium's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.contract import checked
from jaxrl.hosted import opened
from jaxrl.inputs import SOURCE
from jaxrl.masks import check_policy
from jaxrl.rollout import RolloutState, limited, scored
from jaxrl.rows import split
from jaxrl.teams import per_agent, team_size, to_rows, to_teams
from jaxrl.types import Array, Env, Episodes, HyperParams, Policy, PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
    """(learner_state, hp, inputs, key, last=True) -> `Episodes`, compiled with the program.

    Attributes:
      play: (explore, count, learner_state, hp, inputs, key) -> `Episodes` [count]; the first two
        are static.
      explore: act as in training instead of greedily.
      episodes: episodes of a stage's last evaluation.
      interim: episodes of other evaluations, a divisor of `episodes`; see `fewer`.
      measure: (learner_state, hp, inputs, key) -> further results [] of an evaluation, by name.
    """

    play: Callable[..., Episodes]
    explore: bool
    episodes: int
    interim: int
    measure: Callable[..., dict[str, Array]] | None = None

    def __call__(
        self,
        state: PyTree,
        hp: HyperParams,
        inputs: PyTree,
        key: Array,
        last: Array | bool = True,
    ) -> Episodes:
        """`Episodes` [episodes]; those of an interim evaluation end with NaN, length 0."""
        if self.measure is None:
            return self._played(state, hp, inputs, key, last)
        key_play, key_measure = jax.random.split(key)
        found = self._played(state, hp, inputs, key_play, last)
        more = self.measure(state, hp, inputs, key_measure)
        return found._replace(measured=found.measured | more)

    def _played(
        self, state: PyTree, hp: HyperParams, inputs: PyTree, key: Array, last: Array | bool
    ) -> Episodes:
        if self.interim == self.episodes:
            return self.play(self.explore, self.episodes, state, hp, inputs, key)
        rounds = self.episodes // self.interim
        played = jnp.where(last, rounds, 1)

        @functools.partial(jax.jit, inline=True)  # one trace for the shapes and for the loop
        def play(key: Array) -> Episodes:
            return self.play(self.explore, self.interim, state, hp, inputs, key)

        def body(i: Array, so_far: Episodes) -> Episodes:
            found = play(jax.random.fold_in(key, i))
            return jax.tree.map(lambda each, new: each.at[i].set(new), so_far, found)

        def empty(x: Array) -> Array:
            nothing = jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 0
            return jnp.full((rounds, *x.shape), nothing, x.dtype)

        found = jax.tree.map(empty, jax.eval_shape(play, key))
        found = jax.lax.fori_loop(0, played, body, found)
        live = jnp.arange(rounds) < played
        mean = lambda x: jnp.sum(jnp.where(live, x, 0.0)) / played
        return Episodes(
            returns=found.returns.reshape(-1),
            lengths=found.lengths.reshape(-1),
            finished=found.finished.reshape(-1),
            measured={name: mean(x) for name, x in found.measured.items()},
        )

    def measuring(self, measure: Callable[..., dict[str, Array]]) -> Evaluator:
        """With the results of `measure`, computed once per evaluation, beside earlier ones."""
        before = self.measure

        def both(state: PyTree, hp: HyperParams, inputs: PyTree, key: Array) -> dict[str, Array]:
            assert before is not None
            keys = jax.random.split(key)
            return before(state, hp, inputs, keys[0]) | measure(state, hp, inputs, keys[1])

        return dataclasses.replace(self, measure=measure if before is None else both)

    def fewer(self, interim: int) -> Evaluator:
        """Plays the smallest divisor of `episodes` that is at least `interim` before the end."""
        return dataclasses.replace(self, interim=divisor(self.episodes, interim))


def evaluator(
    env: Env,
    policy: Policy,
    episodes: int,
    *,
    max_steps: int | None = None,
    explore: bool = False,
) -> Evaluator | HostEvaluator:
    """Function (learner_state, hp, inputs, key, last=True) -> `Episodes`, for `Stage.evaluate`;
    `last` says whether all episodes are played, or those of an interim evaluation.

    Each of `episodes` environments runs one episode, so that short episodes are not
    over-represented. Without a time limit in `env.spec`, episodes are cut after `max_steps` steps
    (default 10,000). State that outlives episodes (`env.persist`) is taken from the training
    environments in `inputs["source"]`, the state of the stage's source. `Episodes.measured` has
    means over the episodes of what the environment measures at their last steps.

    For environments of the host the result is a `HostEvaluator`.

    Args:
      explore: act as in training instead of greedily.
    """
    limit = max_steps or env.spec.max_steps or 10_000
    check_policy(env, policy)
    if env.host is not None:
        obs_dtype = env.spec.obs_dtype
        return HostEvaluator(env.host, policy, episodes, episodes, limit, explore, obs_dtype)
    env, spec = checked(env), env.spec

    def evaluate(
        explore: bool, count: int, state: PyTree, hp: HyperParams, inputs: PyTree, key: Array
    ) -> Episodes:
        params, rows = hp.env_params(env), count * team_size(spec)
        key_reset, key_steps = jax.random.split(key)
        env_state, obs = jax.vmap(env.reset, in_axes=(0, None))(
            jax.random.split(key_reset, count), params
        )
        if env.persist is not None:
            last = running(inputs.get(SOURCE), count)
            if last is not None:
                env_state, obs = jax.vmap(env.persist)(last, env_state, obs)

        env_state, obs = split((env_state, obs))

        def cond(carry: PyTree) -> Array:
            t, _, _, _, _, done = carry
            return (t < limit) & ~jnp.all(done.finished)

        def body(carry: PyTree) -> PyTree:
            t, env_state, obs, memory, start, so_far = carry
            key_noise, key_step = jax.random.split(jax.random.fold_in(key_steps, t))
            noise = policy.noise(key_noise, rows)
            own = (to_rows(obs, spec), per_agent(start, spec), memory)
            action, memory, _ = policy.act(state, hp.agent, *own, noise, explore)
            keys = jax.random.split(key_step, count)
            env_state, ts = jax.vmap(env.step, in_axes=(0, 0, 0, None))(
                keys, env_state, to_teams(action, spec), params
            )
            ts = limited(ts, t + 1, env.spec.max_steps)
            live = ~so_far.finished
            so_far = Episodes(
                so_far.returns + jnp.where(live, scored(ts), 0.0),
                so_far.lengths + live,
                so_far.finished | ts.terminated | ts.truncated,
                {k: jnp.where(live, v, so_far.measured[k]) for k, v in ts.measured.items()},
            )
            return t + 1, env_state, ts.next_obs, memory, jnp.zeros_like(start), so_far

        nothing = Episodes(
            jnp.zeros(count),
            jnp.zeros(count, jnp.int32),
            jnp.zeros(count, bool),
            {name: jnp.zeros(count) for name in env.spec.measures},
        )
        start = jnp.ones(count, bool)
        carry = (jnp.int32(0), env_state, obs, policy.memory(rows), start, nothing)
        done: Episodes = jax.lax.while_loop(cond, body, carry)[-1]
        return done._replace(measured={k: jnp.mean(v) for k, v in done.measured.items()})

    return Evaluator(evaluate, explore, episodes, episodes)


def divisor(episodes: int, least: int) -> int:
    """The smallest divisor of `episodes` that is at least `least`, or `episodes`."""
    return next(n for n in range(min(least, episodes), episodes + 1) if episodes % n == 0)


def running(src: PyTree, n: int) -> PyTree | None:
    """The environment states [n, ...] of the first rollout in a source's state.

    Fewer than n states are repeated. None if the source has no rollout.
    """
    is_rollout = lambda x: isinstance(x, RolloutState)
    found = [x for x in jax.tree.leaves(src, is_leaf=is_rollout) if is_rollout(x)]
    if not found:
        return None
    rows = jnp.arange(n) % found[0].returns.shape[0]
    return jax.tree.map(lambda x: x[rows], found[0].env)


# --- on the host ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class HostEvaluator:
    """(learner_state, hp, inputs, key, last=True) -> `Episodes` of one member; see `evaluator`.

    The policy is compiled and acts in all environments at once; finished ones are not stepped.
    `make()` returns an environment with gymnasium's reset, step and close.
    """

    make: Callable[[], Any]
    policy: Policy
    episodes: int
    interim: int
    max_steps: int
    explore: bool
    obs_dtype: str = "float32"

    def fewer(self, interim: int) -> HostEvaluator:
        """See `Evaluator.fewer`."""
        return dataclasses.replace(self, interim=divisor(self.episodes, interim))

    def __call__(
        self, state: PyTree, hp: HyperParams, inputs: PyTree, key: Array, last: bool = True
    ) -> Episodes:
        """`Episodes` [episodes] as numpy arrays; see `Evaluator`."""
        key_reset, key_steps = jax.random.split(key)
        seeds = jax.random.randint(key_reset, (self.episodes,), 0, np.iinfo(np.int32).max)
        seeds = seeds[: self.episodes if last else self.interim].tolist()
        games = opened(self.make, len(seeds))
        try:
            returns, lengths, finished = self._play(games, seeds, state, hp.agent, key_steps)
            pad = lambda x, value: np.append(x, np.full(self.episodes - x.size, value, x.dtype))
            return Episodes(pad(returns, np.nan), pad(lengths, 0), pad(finished, False))
        finally:
            for game in games:
                game.close()

    def _play(
        self, games: Sequence[Any], seeds: Sequence[int], state: PyTree, hp: PyTree, key: Array
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns, lengths and `finished` of one episode per game."""
        count = len(games)
        seen = [game.reset(seed=seed)[0] for game, seed in zip(games, seeds, strict=True)]
        obs = np.array(seen, self.obs_dtype)
        returns, lengths = np.zeros(count), np.zeros(count, np.int32)
        finished, memory = np.zeros(count, bool), self.policy.memory(count)
        for t in range(self.max_steps):
            start = np.full(count, t == 0)
            action, memory = self._act(state, hp, obs, start, memory, key, t)
            for i in np.flatnonzero(~finished).tolist():
                obs[i], reward, terminated, truncated, _ = games[i].step(action[i])
                returns[i] += reward
                lengths[i] += 1
                finished[i] = terminated or truncated
            if finished.all():
                break
        return returns.astype(np.float32), lengths, finished

    def _act(self, *args: Any) -> tuple[np.ndarray, PyTree]:
        action, memory = self._compiled(*args)
        return np.asarray(action), memory

    @functools.cached_property
    def _compiled(self) -> Callable[..., tuple[Array, PyTree]]:
        """The compiled policy: (state, hp, obs, start, memory, key, t) -> (action, memory)."""

        @jax.jit
        def act(
            state: PyTree,
            hp: PyTree,
            obs: Array,
            start: Array,
            memory: PyTree,
            key: Array,
            t: Array,
        ) -> tuple[Array, PyTree]:
            noise = self.policy.noise(jax.random.fold_in(key, t), start.shape[0])
            return self.policy.act(state, hp, obs, start, memory, noise, self.explore)[:2]

        return act
