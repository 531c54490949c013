"""Target policies: the greedy actions of a trained policy with noise of known density.

Importance sampling needs π(a|s), which many trained policies do not give. A target policy is
therefore the greedy policy with noise of one parameter, its `spread`:

    discrete actions   ε-greedy: a uniformly random action with probability ε
    boxes              a normal distribution of std σ around the greedy action, truncated to the box

Spread 0 is the greedy policy itself. In a box it has no density, so only estimators without
importance weights apply. Actions of boxes are in half action ranges ("unit actions"), and so are σ
and all densities.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl.distributions import TruncatedNormal
from jaxrl.errors import UserError
from jaxrl.fitting import by_pieces
from jaxrl.policies import Trained, greedy
from jaxrl.spaces import box_scale
from jaxrl.types import Array, Discrete, EnvSpec, Policy, PyTree

LEAST_STD = 1e-4  # std of actions, in half action ranges, where the spread is 0


@dataclasses.dataclass(frozen=True)
class Target:
    """Target policies in one action space.

    unit(action) -> actions as below: unit actions [n, A] of boxes, [n] int32 of discrete spaces
    log_prob(mode, action, spread) -> log π(a|s) [n]
    candidates(mode, spread, key) -> (actions [n, K, ...], weights [n, K] that sum to 1), whose
        weighted sum is E_π; all actions of a discrete space, samples in a box
    policy(agent) -> `Policy` that plays the target policy; its state is (`Trained`, spread)

    `mode` are the greedy actions; `spread` [] is ε or σ.
    """

    unit: Callable[[Array], Array]
    log_prob: Callable[[Array, Array, Array], Array]
    candidates: Callable[[Array, Array, Array], tuple[Array, Array]]
    policy: Callable[[Policy], Policy]


def target(spec: EnvSpec, samples: int = 16) -> Target:
    """The target policies of `spec`'s action space.

    Args:
      samples: K, the actions per state from which expectations in a box are estimated.

    Raises:
      UserError: the action space is an unbounded box, or one of several axes.
    """
    return _discrete(spec.action.n) if isinstance(spec.action, Discrete) else _box(spec, samples)


def _discrete(count: int) -> Target:
    def probs(mode: Array, spread: Array) -> Array:
        return (1 - spread) * jax.nn.one_hot(mode, count) + spread / count

    def log_prob(mode: Array, action: Array, spread: Array) -> Array:
        return jnp.log((1 - spread) * (mode == action) + spread / count)

    def candidates(mode: Array, spread: Array, key: Array) -> tuple[Array, Array]:
        every = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32)[None], (len(mode), count))
        return every, probs(mode, spread)

    def sample(mode: Array, spread: Array, key: Array) -> Array:
        chosen = jax.random.categorical(key, jnp.log(probs(mode, spread)))
        return chosen.astype(jnp.int32)

    same = lambda action: action
    return Target(same, log_prob, candidates, _player(same, same, sample))


def _box(spec: EnvSpec, samples: int) -> Target:
    space = box_scale("off-policy evaluation", spec)

    def around(mode: Array, spread: Array) -> TruncatedNormal:
        std = jnp.maximum(spread, LEAST_STD)
        return TruncatedNormal(jnp.clip(mode, -1, 1), jnp.broadcast_to(jnp.log(std), mode.shape))

    def log_prob(mode: Array, action: Array, spread: Array) -> Array:
        return around(mode, spread).log_prob(action)

    def candidates(mode: Array, spread: Array, key: Array) -> tuple[Array, Array]:
        wide = jnp.broadcast_to(mode[:, None], (len(mode), samples, space.size))
        action = around(wide, spread).sample(TruncatedNormal.noise(key, wide.shape))
        return action, jnp.full((len(mode), samples), 1 / samples)

    def sample(mode: Array, spread: Array, key: Array) -> Array:
        return around(mode, spread).sample(TruncatedNormal.noise(key, mode.shape))

    return Target(space.unit, log_prob, candidates, _player(space.unit, space.scaled, sample))


def _player(
    unit: Callable[[Array], Array],
    scaled: Callable[[Array], Array],
    sample: Callable[[Array, Array, Array], Array],
) -> Callable[[Policy], Policy]:
    def policy(agent: Policy) -> Policy:
        def act(state, hp, obs, start, memory, noise, explore):
            trained, spread = state
            own, key = noise
            mode, memory, _ = agent.act(trained.state, trained.hp, obs, start, memory, own, False)
            return scaled(sample(unit(mode), spread, key)), memory, {}

        def noise(key: Array, n: int) -> PyTree:
            keys = jax.random.split(key)
            return agent.noise(keys[0], n), keys[1]

        return Policy(act=act, memory=agent.memory, noise=noise)

    return policy


def check_memoryless(agent: Policy) -> None:
    """Raises UserError for a recurrent policy, whose actions are no function of one observation."""
    if jax.tree.leaves(jax.eval_shape(lambda: agent.memory(1))):
        raise UserError("off-policy evaluation needs a policy without memory: evaluate another run")


def greedy_actions(
    agent: Policy, trained: Trained, unit: Callable[[Array], Array], obs: Array
) -> Array:
    """Greedy actions [D, ...] at observations [D, *obs], as `Target.unit` gives them."""

    return by_pieces(lambda obs: unit(greedy(agent, trained, obs)), obs)
