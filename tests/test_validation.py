"""Held-out metrics: whole episodes apart, the same numbers as an update would report."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from logged import BOX, numbers, rows

from jaxrl.agents import bc, pqn
from jaxrl.errors import UserError
from jaxrl.experiments import cli
from jaxrl.program import train
from jaxrl.types import Batch
from jaxrl.validation import split, validated


def test_whole_episodes_are_held_out() -> None:
    t = rows(BOX, 60)
    start = np.arange(60) % 5 == 0
    t = t._replace(start=start, terminated=np.roll(start, -1), truncated=start & False)
    learnt, held = split(t, 0.2)
    again = split(t, 0.2)[1]
    np.testing.assert_array_equal(held.obs, again.obs)
    assert len(held.reward) == 15 and len(learnt.reward) == 45  # the third exceeds 12 rows
    for part in (learnt, held):
        np.testing.assert_array_equal(part.start, np.arange(len(part.reward)) % 5 == 0)
    found = {tuple(x) for x in np.concatenate([learnt.obs, held.obs])}
    assert found == {tuple(x) for x in t.obs}
    with pytest.raises(UserError, match="share of 0.9 leaves none of 2 episodes for training"):
        split(jax.tree.map(lambda x: x[:10], t), 0.9)


def test_metrics_of_held_rows() -> None:
    """Those of an update on held rows, of which all are equal, at the second of every two."""
    cfg, env = bc.Config(updates=4, batch_size=4, hidden=(4,)), tiny.glide()
    program = validated(bc.program(cfg, env, evals=4, episodes=1), every=2)
    t = jax.tree.map(jnp.asarray, rows(env.spec, 12))
    held = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), t)
    hp = numbers(bc.Hypers(lr=0.0))
    inputs = {"data": t, "validation": held}
    result = jax.jit(train(program))(jax.random.key(0), hp, None, inputs)
    found = {name: x.value for name, x in result.metrics["agent"].items()}
    assert np.isnan(found["held_actor_loss"]).tolist() == [True, False, True, False]
    batch = Batch(jax.tree.map(lambda x: x[:4], held))
    state, agent = result.states["agent"], bc.make(cfg, env.spec)
    _, told = jax.jit(agent.update)(state, hp, batch, jax.random.key(1), jnp.int32(0))
    for name in ("actor_loss", "action_distance"):
        np.testing.assert_allclose(found[f"held_{name}"][1], told[name], rtol=1e-5, err_msg=name)
        assert abs(found[name][1] - told[name]) > 1e-3


def test_stages_that_do_not_learn_from_data_alone() -> None:
    cfg = pqn.Config(total_steps=64, num_envs=2, num_steps=4, minibatches=2)
    online = pqn.program(cfg, tiny.walk())
    with pytest.raises(UserError, match="agents that learn from data alone"):
        validated(online)


def test_option(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "pqn", "--env", "CartPole-v1", "--out", str(tmp_path / "run")]
    for option, value in (("--validation-share", "0.1"), ("--ope-updates", "5")):
        assert cli.main([*words, option, value]) == 2
        told = capsys.readouterr().err
        assert f"pqn does not learn from a dataset: remove {option}" in told
