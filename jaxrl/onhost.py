"""Evaluation on the host, for environments that cannot run on a device, such as gymnasium's."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxrl.types import Array, Episodes, Policy, PyTree


@dataclasses.dataclass(frozen=True)
class HostEvaluator:
    """(learner_state, hp, inputs, key) -> `Episodes` of one member, as `rollout.evaluator` gives.

    The policy's calls are compiled, for all environments at once; what has ended is not stepped.
    `make()` returns an environment with gymnasium's reset, step and close.
    """

    make: Callable[[], Any]
    policy: Policy
    episodes: int
    part: str | None
    max_steps: int
    explore: bool

    def __call__(self, state: PyTree, hp: PyTree, inputs: PyTree, key: Array) -> Episodes:
        """`Episodes` as numpy arrays."""
        key_reset, key_steps = jax.random.split(key)
        seeds = jax.random.randint(key_reset, (self.episodes,), 0, np.iinfo(np.int32).max).tolist()
        games = [self.make() for _ in seeds]
        try:
            return self._play(games, seeds, state, hp, key_steps)
        finally:
            for game in games:
                game.close()

    def _play(
        self, games: Sequence[Any], seeds: Sequence[int], state: PyTree, hp: PyTree, key: Array
    ) -> Episodes:
        count, own = self.episodes, hp if self.part is None else hp[self.part]
        seen = [game.reset(seed=seed)[0] for game, seed in zip(games, seeds, strict=True)]
        obs = np.array(seen, np.float32)
        returns, lengths = np.zeros(count), np.zeros(count, np.int32)
        finished, memory = np.zeros(count, bool), self.policy.memory(count)
        for t in range(self.max_steps):
            start = np.full(count, t == 0)
            action, memory = self._act(state, own, obs, start, memory, key, t)
            for i in np.flatnonzero(~finished).tolist():
                obs[i], reward, terminated, truncated, _ = games[i].step(action[i])
                returns[i] += reward
                lengths[i] += 1
                finished[i] = terminated or truncated
            if finished.all():
                break
        return Episodes(returns.astype(np.float32), lengths, finished)

    def _act(self, *args: Any) -> tuple[np.ndarray, PyTree]:
        action, memory = _act_of(self)(*args)
        return np.asarray(action), memory


@functools.lru_cache(maxsize=8)
def _act_of(evaluator: HostEvaluator) -> Callable[..., tuple[Array, PyTree]]:
    """The compiled policy of `evaluator`: (state, hp, obs, start, memory, key, t) -> ..."""
    policy = evaluator.policy

    @jax.jit
    def act(
        state: PyTree, hp: PyTree, obs: Array, start: Array, memory: PyTree, key: Array, t: Array
    ) -> tuple[Array, PyTree]:
        noise = policy.noise(jax.random.fold_in(key, t), evaluator.episodes)
        return policy.act(state, hp, obs, start, memory, noise, evaluator.explore)[:2]

    return act
