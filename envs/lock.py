"""Combination lock with continuous actions and rotated observations.

After the environment of Zhou, Sekhari, Song and Sun, Offline Data Enhanced On-Policy Policy
Gradient with Provable Guarantees, ICLR 2024, arXiv:2311.08384, and its code; in discrete form it is
the lock of Zhang et al., Efficient Reinforcement Learning in Block MDPs, ICML 2022,
arXiv:2202.00063.

The latent state is one of two good states or the bad one. Each step has one right action per good
state. With it the state remains good, and switches to the other good one with probability 1/2. Any
other action leads to the bad state, which is never left. After H steps the episode terminates with
reward 1 if the last action was right in a good state. If a good state was lost in the last step,
the reward is 0.1 with probability 1/2, a distraction from the goal.

Actions are A logits in [-1, 1]: the executed action is drawn from softmax(logits / 0.1). Uniformly
random actions open a lock of H = 10 with a probability of about 10^-10. Observations are one-hot of
state and step, with Gaussian noise of deviation 0.1 on their first H + 3 elements, padded to a
power of two and multiplied by a Hadamard matrix.

Deviations from the authors' code:
- Actions are bounded, so that agents for boxes can act; there they are any real numbers.
- As there, the distracting reward is paid in the last step only; the discrete lock pays it
  whenever a good state is lost.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.wrappers import positive
from jaxrl.types import Array, Box, Env, EnvSpec, Policy, PyTree, TimeStep

ACTIONS, BAD = 10, 2
LATENT = 3  # states: two good ones and BAD
LEVELS = ("guided", "expert")  # of datasets, see `guide`


class LockState(NamedTuple):
    latent: Array  # [] int32: 0 or 1, good; 2, bad
    t: Array  # [] int32, steps since the start of the episode


def make(horizon: int = 10, seed: int = 0) -> Env:
    """The lock of `horizon` steps whose right actions are drawn with `seed`.

    Parameters: `right` [2, H] int32, the right action of each good state and step; `temperature`,
    `noise`, `switch`, `distraction` and `distraction_rate`.

    Raises:
      EnvError: horizon is not a positive whole number.
    """
    steps = positive(horizon, "horizon of lock")
    size = 2 ** math.ceil(math.log2(steps + LATENT + 1))
    rotation = jnp.asarray(hadamard(size))
    right = np.random.default_rng(int(seed)).integers(0, ACTIONS, (2, steps))
    params = {
        "right": jnp.asarray(right, jnp.int32),
        "temperature": jnp.float32(0.1),
        "noise": jnp.float32(0.1),
        "switch": jnp.float32(0.5),
        "distraction": jnp.float32(0.1),
        "distraction_rate": jnp.float32(0.5),
    }

    def observe(key: Array, latent: Array, t: Array, params: PyTree) -> Array:
        place = jnp.arange(size)
        noisy = jnp.where(place < steps + LATENT, params["noise"], 0.0)
        hot = jnp.where((place == latent) | (place == LATENT + t), 1.0, 0.0)
        return rotation @ (hot + noisy * jax.random.normal(key, (size,)))

    def reset(key: Array, params: PyTree) -> tuple[LockState, Array]:
        key_latent, key_obs = jax.random.split(key)
        latent = (~jax.random.bernoulli(key_latent, params["switch"])).astype(jnp.int32)
        t = jnp.int32(0)
        return LockState(latent, t), observe(key_obs, latent, t, params)

    def step(
        key: Array, state: LockState, action: Array, params: PyTree
    ) -> tuple[LockState, TimeStep]:
        key_action, key_switch, key_reward, key_obs = jax.random.split(key, 4)
        latent, t = state
        executed = jax.random.categorical(key_action, action / params["temperature"])
        good = latent != BAD
        opened = good & (executed == params["right"][jnp.minimum(latent, 1), t])
        switched = jax.random.bernoulli(key_switch, params["switch"])
        after = jnp.where(opened, jnp.where(switched, 1 - latent, latent), BAD)
        last = t + 1 >= steps
        distracted = jax.random.bernoulli(key_reward, params["distraction_rate"])
        lost = jnp.where(distracted & good, params["distraction"], 0.0)
        reward = jnp.where(last, jnp.where(opened, 1.0, lost), 0.0)
        obs = observe(key_obs, after, t + 1, params)
        return LockState(after, t + 1), TimeStep(obs, reward, last, jnp.zeros((), bool))

    space = Box((-1.0,) * ACTIONS, (1.0,) * ACTIONS, (ACTIONS,))
    return Env(EnvSpec("lock", (size,), space, steps), params, reset, step)


def hadamard(size: int) -> np.ndarray:
    """Hadamard matrix [size, size] of Sylvester's construction, float32; `size` is a power of two.

    As `scipy.linalg.hadamard`, whose import costs a quarter of a second.
    """
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def guide(env: Env, level: str) -> Policy:
    """Policy that knows the right actions. Its `obs` are `LockState` [n].

    At the level guided, actions are uniformly random with probability 1 / H when exploring, as in
    the authors' data; at the level expert, never.
    """
    right, steps = env.params["right"], env.spec.max_steps or 1
    epsilon = 1 / steps if level == "guided" else 0.0

    def act(state, hp, obs, start, memory, noise, explore):
        coin, drawn = noise
        best = right[jnp.minimum(obs.latent, 1), jnp.minimum(obs.t, steps - 1)]
        action = 2 * jax.nn.one_hot(best, ACTIONS) - 1
        stray = explore & (coin < epsilon)
        return jnp.where(stray[:, None], drawn, action), memory, {}

    def noise(key: Array, n: int) -> tuple[Array, Array]:
        key_coin, key_action = jax.random.split(key)
        drawn = jax.random.uniform(key_action, (n, ACTIONS), minval=-1.0)
        return jax.random.uniform(key_coin, (n,)), drawn

    return Policy(act=act, noise=noise)
