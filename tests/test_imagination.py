"""Rollouts in models: true steps, whole buffers, ends, shares and starts, against plain loops."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import envs
from jaxrl.envs import datasets
from jaxrl.envs.dmsd import with_states
from jaxrl.errors import UserError
from jaxrl.exploration import random_policy
from jaxrl.imagination import Model, Outcome, imagined, penalised, true_model
from jaxrl.sources import labelled, mix, uniform
from jaxrl.types import Box, HyperParams, Policy, PyTree, Transition

FILE = Path(__file__).parent / "data" / "DMSD-high-1000-val.npz"
STARTS, STEPS, EVERY, RETAIN, BATCH = 7, 3, 2, 2, 64


# --- a world that counts -------------------------------------------------------------------------


class Hp(NamedTuple):
    penalty: Any = 0.5


def counting(fatal: float = 0.4) -> Model:
    """Observations [n, 2]: 1000 + the row it began in, and steps since. Some steps end it."""

    def step(
        inputs: PyTree, hp: PyTree, world: PyTree, obs: jax.Array, action: jax.Array, key: jax.Array
    ) -> tuple[PyTree, Outcome]:
        n = obs.shape[0]
        ends = jax.random.uniform(key, (n,)) < fatal
        either = jnp.arange(n) % 2 == 0
        after = obs + jnp.array([[0.0, 1.0]])
        uncertainty = 1 + obs[:, 1]
        return world + 1, Outcome(after, obs[:, 1], ends & either, ends & ~either, uncertainty)

    return Model(start=lambda data: data.obs[:, 1], step=step)


def table(rows: int = 5) -> Transition:
    obs = np.stack([1000.0 + np.arange(rows), np.zeros(rows)], -1).astype(np.float32)
    no: Any = np.zeros(rows, bool)
    reward = np.ones(rows, np.float32)
    return Transition(obs, np.ones((rows, 1), np.float32), reward, obs, no, no, ~no)


# Acts with the number that is the learner's state.
STILL = Policy(act=lambda state, hp, obs, *_: (jnp.full((obs.shape[0], 1), state), (), {}))
HP, INPUTS = HyperParams(Hp()), {"data": jax.tree.map(jnp.asarray, table())}


def imagination_of(model: Model, policy: Policy = STILL) -> Any:
    return imagined(
        model, policy, starts=STARTS, steps=STEPS, every=EVERY, retain=RETAIN, batch_size=BATCH
    )


def played(fatal: float, updates: int = 9) -> Iterator[tuple[int, Any, Transition, Any]]:
    """(update, source's state, batch, metrics), with refreshes when they are due."""
    source = imagination_of(counting(fatal))
    refresh, next = jax.jit(source.refresh or source.next), jax.jit(source.next)
    src = jax.jit(source.init)(jax.random.key(0), 1.0, HP, INPUTS)
    for step in range(updates):
        state = jnp.float32(step + 1)
        if step % EVERY == 0:
            key = jax.random.fold_in(jax.random.key(1), step)
            src = refresh(src, state, HP, INPUTS, key, jnp.int32(step))
        key = jax.random.fold_in(jax.random.key(2), step)
        src, batch, metrics = next(src, state, HP, INPUTS, key, jnp.int32(step))
        yield step, src, jax.device_get(batch.transitions), metrics


@pytest.mark.parametrize("fatal", [0.0, 0.6])
def test_only_rows_that_were_made_are_drawn(fatal: float) -> None:
    """The buffer begins as zeros, and ended rollouts leave room: neither is ever drawn."""
    for step, src, t, _ in played(fatal):
        assert (t.obs[:, 0] >= 1000).all()
        np.testing.assert_array_equal(t.next_obs, t.obs + [[0, 1]])
        np.testing.assert_array_equal(t.reward, t.obs[:, 1])
        np.testing.assert_array_equal(t.start, t.obs[:, 1] == 0)
        np.testing.assert_array_equal(t.extras["rollout_end"], t.obs[:, 1] == STEPS - 1)
        # Actions are the numbers of the policies at the latest two refreshes.
        latest = step // EVERY * EVERY + 1
        assert set(t.action[:, 0]) <= {latest, latest - EVERY} - {1 - EVERY}
        whole = STARTS * STEPS
        filled = np.asarray(src.filled)
        assert (filled > 0).sum() == min(step // EVERY + 1, RETAIN)
        assert (filled[filled > 0] == whole).all() if fatal == 0 else (filled < whole).all()


def test_nothing_follows_an_end_and_nothing_is_lost() -> None:
    """Row by row: the made rows of a slot are those of a loop that stops at each end."""
    ends = 0
    for _, src, _, metrics in played(0.5, 1):
        filled = int(src.filled[0])
        made = jax.tree.map(lambda x, end=filled: np.asarray(x)[0, :end], src.ring)
        first = made.obs[made.obs[:, 1] == 0]
        assert len(first) == STARTS
        for count in range(1, STEPS):
            before = made.obs[:, 1] == count - 1
            alive = before & ~made.done
            assert (made.obs[:, 1] == count).sum() == alive.sum()
            ends += (before & made.done).sum()
            follow = made.obs[made.obs[:, 1] == count][:, 0]
            np.testing.assert_array_equal(np.sort(follow), np.sort(made.obs[alive][:, 0]))
        assert metrics["uncertainty_first"].value == 1
        assert metrics["uncertainty_last"].value == STEPS
    assert ends > 0


def test_rows_of_all_refreshes_are_as_likely() -> None:
    """However many a refresh came to: each row is drawn as often, up to chance."""
    source = imagination_of(counting(0.5))
    *_, (_, src, _, _) = played(0.5, 3)
    assert src.filled[0] != src.filled[1]
    total = int(src.filled.sum())
    draw = jax.jit(lambda key: source.next(src, 1.0, HP, INPUTS, key, jnp.int32(3))[1])
    t = jax.vmap(draw)(jax.random.split(jax.random.key(5), 200)).transitions
    slots = np.asarray(t.action[..., 0]).ravel()
    for slot, policy in ((0, 1.0), (1, 3.0)):
        share = (slots == policy).mean()
        assert abs(share - float(src.filled[slot]) / total) < 0.02


def test_share_of_real_rows() -> None:
    real = labelled(uniform(8), rollout_end=False)
    source = mix(real, imagination_of(counting(0.0)), 0.25, 8)
    assert source.refresh is not None and source.every == EVERY
    src = jax.jit(source.init)(jax.random.key(0), 1.0, HP, INPUTS)
    src = jax.jit(source.refresh)(src, 2.0, HP, INPUTS, jax.random.key(1), jnp.int32(0))
    batch = jax.jit(source.next)(src, 2.0, HP, INPUTS, jax.random.key(2), jnp.int32(0))[1]
    t = batch.transitions
    assert t.action[:, 0].tolist() == [1.0] * 2 + [2.0] * 6  # of the data, and of the policy
    assert not t.extras["rollout_end"][:2].any()


def test_penalty() -> None:
    obs, action = jnp.ones((4, 2)), jnp.ones((4, 1))
    world = jnp.zeros(4)
    plain = counting().step({}, HP, world, obs, action, jax.random.key(0))[1]
    less = penalised(counting()).step({}, HP, world, obs, action, jax.random.key(0))[1]
    np.testing.assert_allclose(less.reward, plain.reward - 0.5 * plain.uncertainty)


# --- the environment as a model ------------------------------------------------------------------


def test_true_model_makes_the_steps_of_dmsd_data() -> None:
    """From all rows of NeoRL-2's file but those in which targets are drawn anew, to 1e-6."""
    env, data = envs.make("dmsd"), datasets.load(FILE).transitions
    data = with_states("dmsd", data)
    model = true_model(env)
    key = jax.random.key(0)
    world, out = jax.jit(
        lambda t: model.step({}, HyperParams((), env.params), model.start(t), t.obs, t.action, key)
    )(data)
    same = (data.next_obs[:, 4:] == data.obs[:, 4:]).all(1)
    assert (~same).sum() <= 10
    np.testing.assert_allclose(out.next_obs[:, :4], data.next_obs[:, :4], atol=1e-6)
    drawn = np.any(np.asarray(out.next_obs)[:, 4:] != data.obs[:, 4:], 1)
    assert set(np.flatnonzero(drawn) % 100) == {49}
    np.testing.assert_allclose(out.next_obs[~drawn & same], data.next_obs[~drawn & same], atol=1e-6)
    np.testing.assert_array_equal(out.truncated, data.truncated)
    np.testing.assert_array_equal(world.t, np.tile(np.arange(1, 101), 10))


def test_states_need_whole_episodes() -> None:
    data = datasets.load(FILE).transitions
    late = jax.tree.map(lambda x: x[30:], data)._replace(start=data.start[30:])
    with pytest.raises(UserError, match="row 0 is in the middle"):
        with_states("dmsd", late)
    assert with_states("maze:umaze", data) is data


def test_true_model_makes_the_steps_of_a_maze() -> None:
    """Bit by bit those of `env.step`, several in a row, from the states that the data store."""
    env = envs.make("maze:umaze")
    steps = 6

    @jax.jit
    @jax.vmap
    def walk(key: jax.Array) -> Any:
        state, obs = env.reset(key, env.params)

        def go(carry: Any, key: jax.Array) -> Any:
            state, obs = carry
            action = jax.random.uniform(key, (2,), minval=-1, maxval=1)
            after, ts = env.step(key, state, action, env.params)
            return (after, ts.next_obs), (state, obs, action, ts)

        return jax.lax.scan(go, (state, obs), jax.random.split(key, steps))[1]

    state, obs, action, ts = jax.device_get(walk(jax.random.split(jax.random.key(0), 20)))
    stored = tuple(np.float32(x[:, 0]) for x in jax.tree.leaves(state))  # as files may have them
    no = np.zeros(20, bool)
    data = Transition(
        obs[:, 0], action[:, 0], ts.reward[:, 0], ts.next_obs[:, 0], no, no, ~no, {"state": stored}
    )
    model = true_model(env)
    world, seen = model.start(jax.tree.map(jnp.asarray, data)), jnp.asarray(data.obs)
    step = jax.jit(model.step)
    for i in range(steps):
        np.testing.assert_array_equal(seen, obs[:, i])
        world, out = step(
            {}, HyperParams(()), world, seen, jnp.asarray(action[:, i]), jax.random.key(9)
        )
        np.testing.assert_array_equal(out.next_obs, ts.next_obs[:, i])
        np.testing.assert_array_equal(out.reward, ts.reward[:, i])
        np.testing.assert_array_equal(out.terminated, ts.terminated[:, i])
        np.testing.assert_array_equal(out.truncated, ts.truncated[:, i])
        seen = out.next_obs


def test_data_without_states() -> None:
    source = imagination_of(true_model(envs.make("reach")), random_policy(Box((-1,), (1,), (1,))))
    with pytest.raises(UserError, match="the true dynamics of reach need data with simulator"):
        source.init(jax.random.key(0), 1.0, HP, INPUTS)


def test_mopo_is_mbpo_in_the_true_dynamics() -> None:
    """They are certain, so there is nothing to lower rewards by: the same bits."""
    env = envs.make("reach")
    state, obs = jax.vmap(env.reset, (0, None))(jax.random.split(jax.random.key(0), 8), env.params)
    keys, hp = jax.random.key(1), HP._replace(env=env.params)
    action = jax.random.uniform(keys, (8, 2), minval=-1, maxval=1)
    plain, less = (
        model.step({}, hp, state, obs, action, keys)[1]
        for model in (true_model(env), penalised(true_model(env)))
    )
    assert (np.asarray(plain.reward) > 0).all()
    np.testing.assert_array_equal(less.reward, plain.reward)
