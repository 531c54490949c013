"""Study: sampling errors of PROPS, ROS and on-policy sampling, with a fixed policy in a grid.

    python -m jaxrl.experiments.studies.sampling_error [--seeds N] [--steps N] [--lr X]

A fixed random policy walks through a grid of 5 x 5 cells: four moves, walls reflect, episodes end
in the last cell and begin in the first. The behaviour policy is a table of logits, updated every
16 steps (`jaxrl.agents.props.improve_sampling`). The table shows the exact sampling error,

    KL = Σ_s d(s) Σ_a p(a|s) log p(a|s) / π(a|s),

p being the frequencies of actions and d those of states in the data so far: mean over seeds, and
the half-width of its 95 % interval. Every seed has a policy of its own, the same for all methods.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.table import Table

from jaxrl.agents import props
from jaxrl.distributions import Categorical
from jaxrl.experiments import jax_setup
from jaxrl.experiments.console import print_line
from jaxrl.types import Array

SIDE, CHUNK = 5, 16
STATES = SIDE * SIDE
MOVES = np.array([(1, 0), (-1, 0), (0, 1), (0, -1)])
Method = Literal["props", "ros", "on_policy"]


def successors() -> np.ndarray:
    """State after each action [STATES, 4]; the last cell leads to the first."""
    cell = np.stack(np.divmod(np.arange(STATES), SIDE), -1)
    after = np.clip(cell[:, None] + MOVES[None], 0, SIDE - 1) @ np.array([SIDE, 1])
    return np.where(after == STATES - 1, 0, after)


def table_policy(logits: Array, state: Array) -> Categorical:
    """The distribution over actions [B] in states [B] int32, of logits [S, A]."""
    return Categorical(logits[state])


def kl_of_counts(counts: Array, logits: Array) -> Array:
    """The sampling error [] of counts [S, A] of the actions that the policy of `logits` took."""
    visits = jnp.sum(counts, 1, keepdims=True)
    share = counts / jnp.maximum(visits, 1)
    log_ratio = jnp.log(jnp.maximum(share, 1e-9)) - jax.nn.log_softmax(logits)
    return jnp.sum(counts * jnp.where(share > 0, log_ratio, 0.0)) / jnp.sum(counts)


@functools.partial(jax.jit, static_argnames=("method", "steps"))
def errors(key: Array, hp: Any, after: Array, *, method: Method, steps: int) -> Array:
    """Sampling errors [steps / CHUNK] of one seed, after each chunk.

    Args:
      hp: `props.Hypers`.
      after: [S, A] int32 successors.
    """
    key_policy, key_run = jax.random.split(key)
    target = jax.random.normal(key_policy, after.shape)
    adam = optax.adam(hp.sampling_lr, eps=1e-5)
    chunks = steps // CHUNK

    def step(carry: tuple[Array, Array], noise: Array) -> tuple[tuple[Array, Array], Any]:
        state, logits = carry
        action = table_policy(logits, state[None]).sample(noise[None])[0]
        return (after[state, action], logits), (state, action)

    def chunk(carry: Any, xs: tuple[Array, Array]) -> tuple[Any, Array]:
        state, logits, opt, rows = carry
        key, i = xs
        key_act, key_learn = jax.random.split(key)
        noise = Categorical.noise(key_act, (CHUNK, after.shape[1]))
        (state, _), new = jax.lax.scan(step, (state, logits), noise)
        put = lambda x, y: jax.lax.dynamic_update_slice(x, y.astype(x.dtype), (i * CHUNK,))
        states, actions = map(put, rows, new)
        held = jnp.arange(steps) < (i + 1) * CHUNK
        log_prob = table_policy(target, states).log_prob(actions)
        counts = jnp.zeros(after.shape).at[states, actions].add(held)
        logits = target
        if method != "on_policy":
            (logits, opt), _ = props.improve_sampling(
                table_policy,
                target,
                opt,
                props.Sampled(states, actions, log_prob, held),
                key_learn,
                hp,
                ros=method == "ros",
                epochs=16,
                count=1,
            )
        return (state, logits, opt, (states, actions)), kl_of_counts(counts, target)

    none = jnp.zeros(steps, jnp.int32)
    begin = (jnp.int32(0), target, adam.init(target.reshape(-1)), (none, none))
    return jax.lax.scan(chunk, begin, (jax.random.split(key_run, chunks), jnp.arange(chunks)))[1]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Sampling errors of PROPS, ROS and PPO")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1024, help="a multiple of 16")
    parser.add_argument("--lr", type=float, default=0.02, help="of the table of logits")
    own = parser.parse_args(words)
    jax_setup.start()
    keys = jax.random.split(jax.random.key(0), own.seeds)
    hp = jax.tree.map(jnp.float32, props.Hypers(sampling_lr=own.lr, sampling_kl=0.1))
    after = jnp.asarray(successors(), jnp.int32)
    shown = [n for n in (64, 128, 256, 512, 1024, 2048, 4096) if n <= own.steps]
    table = Table("steps", *map(str, shown))
    for method in get_args(Method):
        run = functools.partial(errors, method=method, steps=own.steps)
        found = np.asarray(jax.lax.map(lambda key, run=run: run(key, hp, after), keys))
        at = found[:, [n // CHUNK - 1 for n in shown]]
        half = 1.96 * at.std(0, ddof=1) / np.sqrt(own.seeds)
        table.add_row(method, *(f"{m:.4f} ±{h:.4f}" for m, h in zip(at.mean(0), half, strict=True)))
    print_line(table)


if __name__ == "__main__":
    main()
