"""PRDC: neighbours against plain numpy, the loss by hand, and a dataset with a hole."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from logged import BOX, fit, mode, numbers, rows, table

from jaxrl.agents import prdc, td3bc
from jaxrl.errors import UserError
from jaxrl.neighbours import nearest
from jaxrl.types import Box, EnvSpec, HyperParams


@pytest.mark.parametrize("chunk", [1, 7, 50, 64, 1000])
def test_chunks_and_naive_search_agree(chunk: int) -> None:
    """Also with a last chunk that overlaps, and the first of two equal points."""
    rng: Any = np.random.default_rng(0)
    points = rng.normal(size=(100, 3)).astype(np.float32)
    points[60] = points[20]
    query = np.concatenate([rng.normal(size=(16, 3)), points[[20, 99]]]).astype(np.float32)
    distance = np.sum((query[:, None] - points[None]) ** 2, -1)
    index, squared = nearest(jnp.asarray(query), jnp.asarray(points), chunk=chunk)
    np.testing.assert_array_equal(index, np.argmin(distance, 1))
    np.testing.assert_allclose(squared, distance.min(1), rtol=1e-4, atol=1e-5)


def test_neighbours_of_a_batch() -> None:
    """argmin over all rows of β² ‖s - ŝ‖² + ‖π(s) - â‖², standardised and unit, in numpy."""
    t = rows(BOX, 40)
    cfg = prdc.Config(batch_size=16, hidden=(5,), policy_every=2, chunk=9)
    agent = prdc.make(cfg, BOX)
    hp = numbers(prdc.Hypers(beta=0.3))
    state = jax.jit(agent.init)(jax.random.key(0), hp, {"data": t})
    source = prdc.neighbouring(cfg, BOX, agent)
    draw = jax.jit(source.next)
    args = ((), state, HyperParams(hp), {"data": jax.tree.map(jnp.asarray, t)}, jax.random.key(1))
    _, batch, _ = draw(*args, jnp.int32(1))
    assert (draw(*args, jnp.int32(0))[1].transitions.extras["neighbour"] == 0).all()
    unit = lambda action: (np.asarray(action) - [[0.0, 2.0]]) / [[1.0, 2.0]]
    std = t.obs.std(0) + 1e-3
    seen = lambda obs: 0.3 * (np.asarray(obs) - t.obs.mean(0)) / std
    chosen = unit(mode(agent, state, hp, batch.transitions.obs))
    states = np.sum((seen(batch.transitions.obs)[:, None] - seen(t.obs)[None]) ** 2, -1)
    actions = np.sum((chosen[:, None] - unit(t.action)[None]) ** 2, -1)
    found = np.argmin(states + actions, 1)
    assert len(set(found)) > 3
    extras = batch.transitions.extras["neighbour"]
    np.testing.assert_allclose(extras, unit(t.action)[found], atol=1e-6)


def test_a_hole_in_the_data() -> None:
    """State 0 has only the bad action -0.5, its near neighbour 0.1 only the good one, 0.5.

    TD3+BC holds π(0) at the bad action. PRDC lets it go to the good action, and no further.
    """
    count = 32
    good: Any = np.arange(count) % 2 == 1
    obs, yes = np.where(good, 0.1, 0.0), np.ones(count, bool)
    action = np.where(good, 0.5, -0.5)[:, None].astype(np.float32)
    data = table(obs, action, good.astype(np.float32), obs, yes, ~yes)
    spec = EnvSpec("hole", (1,), Box((-1.0,), (1.0,), (1,)), 1)
    cfg = prdc.Config(batch_size=count, hidden=(32,), normalise_obs=False, policy_every=1)
    agent = prdc.make(cfg, spec)
    source = prdc.neighbouring(cfg, spec, agent)
    hp = numbers(prdc.Hypers(lr=0.003, alpha=0.6, beta=0.1, tau=0.05))

    def learn(data: Any) -> Any:
        def step(i: Any, state: Any) -> Any:
            keys, inputs = jax.random.split(jax.random.key(i)), {"data": data}
            _, batch, _ = source.next((), state, HyperParams(hp), inputs, keys[0], i)
            return agent.update(state, hp, batch, keys[1], i)[0]

        return jax.lax.fori_loop(0, 800, step, agent.init(jax.random.key(0), hp, {"data": data}))

    drawn = mode(agent, jax.jit(learn)(data), hp, [[0.0], [0.1]])[:, 0]
    base = td3bc.make(cfg, spec)
    held = mode(base, jax.jit(fit(base, 800))(hp, data), hp, [[0.0]])[0, 0]
    assert held < 0.2 < 0.4 < drawn[0]


def test_no_second_stage() -> None:
    """TD3+BC's settings include those of fine-tuning, which PRDC does not have."""
    with pytest.raises(UserError, match="finetune_steps=100: prdc learns from data alone"):
        prdc.program(prdc.Config(finetune_steps=100), tiny.glide())
