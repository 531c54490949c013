"""Rollouts in environments of the host, which cannot run on a device.

The policy acts in a compiled function, the environments step on the host, and the compiled update
of the stage learns from the window. `jaxrl.drive` repeats these three for each update and passes
the windows to the stage's source as inputs["windows"].
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.errors import UserError
from jaxrl.inputs import SHAPES, WINDOWS
from jaxrl.masks import check_policy
from jaxrl.types import (
    Array,
    Batch,
    Env,
    HyperParams,
    Policy,
    PyTree,
    Source,
    Transition,
    mean_where,
)

Act = Callable[[np.ndarray, np.ndarray, PyTree, int], PyTree]
"""(obs [P, N, *obs], start [P, N], memory, t) -> (action, memory, extras), leaves [P, N, ...]."""


class HostEnvs(Protocol):
    """N environments of the host that do not reset themselves."""

    def reset(self, seeds: list[int]) -> np.ndarray:
        """The first observations [N, *obs] of all; called once, one seed per environment."""
        ...

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(next_obs [N, *obs], the true successors, reward [N], terminated [N], truncated [N])."""
        ...

    def restart(self, ended: np.ndarray) -> np.ndarray:
        """Begins new episodes where `ended` [N]; observations [N, *obs], others are not read."""
        ...

    def close(self) -> None: ...


def opened(make: Callable[[], Any], count: int) -> list[Any]:
    """`count` environments from `make`; after an error those made before are closed."""
    with contextlib.ExitStack() as stack:
        games = [stack.enter_context(contextlib.closing(make())) for _ in range(count)]
        stack.pop_all()
    return games


class Sequential:
    """N environments with gymnasium's reset, step and close, stepped one after the other."""

    def __init__(self, make: Callable[[], Any], count: int) -> None:
        self.games = opened(make, count)
        self.obs: list[Any] = [None] * count

    def reset(self, seeds: list[int]) -> np.ndarray:
        pairs = zip(self.games, seeds, strict=True)
        self.obs = [game.reset(seed=seed)[0] for game, seed in pairs]
        return np.array(self.obs)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        results = [game.step(a) for game, a in zip(self.games, action, strict=True)]
        self.obs, reward, terminated, truncated, _ = map(list, zip(*results, strict=True))
        return np.array(self.obs), np.array(reward), np.array(terminated), np.array(truncated)

    def restart(self, ended: np.ndarray) -> np.ndarray:
        for i in np.flatnonzero(ended).tolist():
            self.obs[i] = self.games[i].reset()[0]
        return np.array(self.obs)

    def close(self) -> None:
        for game in self.games:
            game.close()


class Window(NamedTuple):
    """What T steps in the N environments of a member gave."""

    transitions: Transition  # [T, N, ...]
    memory: PyTree  # [N, ...] of the policy, before the first step
    returns: Any  # [T, N] float32, sum of rewards in the episode so far
    lengths: Any  # [T, N] float32, steps in the episode so far


@dataclasses.dataclass(frozen=True, eq=False)
class HostRollout:
    """How `jaxrl.drive` makes the windows of a source.

    Attributes:
      warmup: windows before the first update, which the source's `init` reads.
      first: the policy of these windows, without memory; None for `policy`.
    """

    env: Env
    policy: Policy
    num_envs: int
    num_steps: int
    warmup: int = 0
    first: Policy | None = None

    def make(self) -> HostEnvs:
        """The N environments of a member."""
        if self.env.host_envs is not None:
            return self.env.host_envs(self.num_envs)
        assert self.env.host is not None
        return Sequential(self.env.host, self.num_envs)

    def blank(self, learner_state: PyTree, hp: HyperParams) -> Window:
        """A window of zeros."""
        spec = self.env.spec
        obs = jnp.zeros((self.num_envs, *spec.obs_shape), spec.obs_dtype)
        none, memory = jnp.zeros(self.num_envs, bool), self.policy.memory(self.num_envs)

        def act(learner_state: PyTree, hp: HyperParams) -> Transition:
            noise = self.policy.noise(jax.random.key(0), self.num_envs)
            action, _, extras = self.policy.act(
                learner_state, hp.agent, obs, none, memory, noise, True
            )
            reward = jnp.zeros(self.num_envs)
            return Transition(obs, action, reward, obs, none, none, none, extras)

        step = jax.eval_shape(act, learner_state, hp)
        zeros = lambda x: jnp.zeros((self.num_steps, *x.shape), x.dtype)
        transitions: Transition = jax.tree.map(zeros, step)
        return Window(transitions, memory, transitions.reward, transitions.reward)


def host_rollout(env: Env, policy: Policy, num_envs: int, num_steps: int) -> Source:
    """Source of windows [T, N] from N environments of the host, see `jaxrl.rollout.rollout`.

    inputs["windows"] has windows [M, T, N, ...]; that of update `step` is number step modulo M.

    Raises (in `next`):
      UserError: there are no windows, since the program is not run by `jaxrl.drive`.
    """
    check_policy(env, policy)
    host = HostRollout(env, policy, num_envs, num_steps)

    def init(key, learner_state, hp, inputs):
        return ()

    def next(src, learner_state, hp, inputs, key, step):
        if WINDOWS in inputs:
            count = inputs[WINDOWS].returns.shape[0]
            one = lambda x: jax.lax.dynamic_index_in_dim(x, step % count, 0, False)
            window: Window = jax.tree.map(one, inputs[WINDOWS])
        elif SHAPES in inputs:
            window = host.blank(learner_state, hp)
        else:
            raise UserError(
                f"{env.spec.name} runs on the host, which no compiled function can step: train "
                "with jaxrl.run or jaxrl.drive.drive"
            )
        done = window.transitions.done
        metrics = {
            "episode_return": mean_where(window.returns, done),
            "episode_length": mean_where(window.lengths, done),
        }
        return src, Batch(window.transitions, window.memory), metrics

    return Source(init=init, next=next, env_steps=num_envs * num_steps, host=host)


def act_fn(policy: Policy, num_envs: int, keys: Callable[[Array, Array], Array]) -> Callable:
    """members {learner, hp, key, obs, start, memory}, shared {step, t} -> what `policy.act` gives.

    `keys(key, step)` is the key of the window of update `step`. A stage function, see
    `jaxrl.program`.
    """

    def act(carry: PyTree, members: PyTree, shared: PyTree) -> tuple[PyTree, PyTree]:
        key = jax.random.fold_in(keys(members["key"], shared["step"]), shared["t"])
        seen = (members["obs"], members["start"], members["memory"])
        noise = policy.noise(key, num_envs)
        return carry, policy.act(members["learner"], members["hp"].agent, *seen, noise, True)

    return act


class Players:
    """The environments of P members on the host, and what is kept of them between windows."""

    def __init__(self, rollout: HostRollout, seeds: np.ndarray) -> None:
        """`seeds` [P, N], one per environment."""
        self.rollout = rollout
        self.games = opened(rollout.make, len(seeds))
        first = [game.reset(row.tolist()) for game, row in zip(self.games, seeds, strict=True)]
        self.obs = np.array(first, rollout.env.spec.obs_dtype)
        self.start = np.ones(seeds.shape, bool)
        self.returns, self.lengths = np.zeros((2, *seeds.shape), np.float32)
        of_all = lambda x: np.broadcast_to(x, (len(seeds), *x.shape))
        self.memory = jax.tree.map(of_all, rollout.policy.memory(rollout.num_envs))

    def window(self, members: Sequence[int], act: Act) -> Window:
        """The next window, leaves [P, T, N, ...] and memory [P, N, ...].

        Only the environments of `members` are stepped; the rows of others have no meaning.
        """
        before, limit, steps = self.memory, self.rollout.env.spec.max_steps, []
        for t in range(self.rollout.num_steps):
            obs, start = self.obs, self.start
            action, self.memory, extras = act(obs, start, self.memory, t)
            next_obs, reward = obs.copy(), np.zeros(start.shape, np.float32)
            terminated, truncated = np.zeros((2, *start.shape), bool)
            for i in members:
                found = self.games[i].step(action[i])
                next_obs[i], reward[i], terminated[i], truncated[i] = found
            returns, lengths = self.returns + reward, self.lengths + 1
            over = False if limit is None else lengths >= limit
            truncated = (truncated | over) & ~terminated
            done = terminated | truncated
            step: Any = (obs, action, reward, next_obs, terminated, truncated, start, extras)
            steps.append((Transition(*step), returns, lengths))
            self.obs, self.start = next_obs.copy(), done
            for i in members:
                if done[i].any():
                    fresh = self.games[i].restart(done[i])
                    self.obs[i, done[i]] = np.asarray(fresh)[done[i]]
            self.returns, self.lengths = (np.where(done, 0, x) for x in (returns, lengths))
        stack = lambda *leaves: np.stack(leaves, 1)
        transitions, returns, lengths = jax.tree.map(stack, *steps)
        return Window(transitions, before, returns, lengths)

    def close(self) -> None:
        for game in self.games:
            game.close()
