"""Behavior Retrieval: divergence and scores by hand, known labels, and the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from logged import BOX, rows

from jaxrl import retrieval
from jaxrl.agents import bc
from jaxrl.envs import datasets
from jaxrl.envs.datasets import Dataset
from jaxrl.experiments import cli
from jaxrl.experiments.studies import reaching
from jaxrl.fitting import fit


def test_divergence_and_scores_by_hand() -> None:
    mean, var = np.array([[1.0, -2.0]]), np.array([[0.5, 3.0]])
    expected = 0.5 * np.sum(mean**2 + var - 1 - np.log(var))
    found = retrieval.gaussian_kl(jnp.asarray(mean), jnp.log(jnp.asarray(var)))
    np.testing.assert_allclose(found, [expected], rtol=1e-5)
    prior, expert = jnp.array([[0.0], [3.0], [10.0]]), jnp.array([[0.0], [4.0]])
    np.testing.assert_allclose(retrieval.scores(prior, expert), [1, 5 / 6, 0], atol=1e-3)
    np.testing.assert_array_equal(retrieval.scores(expert, expert), [1, 1])
    kept, wanted = np.array([1, 1, 1, 0], bool), np.array([1, 0, 0, 1], bool)
    assert retrieval.precision_recall(kept, wanted) == (1 / 3, 1 / 2)
    assert np.isnan(retrieval.precision_recall(kept & False, wanted)[0])
    found = retrieval.pairs(np.zeros((2, 1), np.float32), np.array([2, 0], np.int32), 3)
    np.testing.assert_array_equal(found, [[0, 0, 0, 1], [0, 1, 0, 0]])


def test_the_rows_of_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two tasks in separate regions: the rows of the demonstrated one, and no others."""
    other = np.arange(60) % 3 == 0
    prior, expert = rows(BOX, 60), rows(BOX, 12, seed=1)
    shift: Any = np.where(other, 20.0, 0.0)[:, None].astype(np.float32)
    prior = prior._replace(
        obs=prior.obs + shift,
        next_obs=prior.next_obs + shift,
        extras={"label": (~other).astype(np.float32)},  # type: ignore[dict-item]
    )
    paths = [tmp_path / name for name in ("prior.npz", "expert.npz", "both.npz")]
    for path, t in zip(paths, (prior, expert), strict=False):
        datasets.save(path, Dataset(t, {"env": "arm"}))
    words = ["data", "retrieve", *map(str, paths[:2]), "--out", str(paths[2]), "--updates", "300"]
    words += ["--threshold", "0.6", "--hidden", "16", "--latent", "4", "--balance"]
    assert cli.main(words) == 0
    told = capsys.readouterr().out
    assert "40 of 60 rows have a score of 0.6" in told and "precision 1, recall 1" in told
    t = datasets.load(paths[2]).transitions
    assert len(t.reward) == 3 * 12 + 40
    np.testing.assert_array_equal(t.obs[:12], expert.obs)
    np.testing.assert_array_equal(t.obs[36:], prior.obs[~other])
    assert t.start[36] and not (t.terminated & t.truncated).any()
    assert cli.main(["data", "retrieve", str(paths[0])]) == 2
    assert "data retrieve needs two datasets" in capsys.readouterr().err


def test_demonstrations_of_a_goal() -> None:
    """Whole episodes, which end at the goal; a fit continues from a given state."""
    env = reaching.make((0,), told=False)
    t = reaching.demonstrations(env, reaching.walker(0), 4, seed=1)
    assert t.reward.sum() == t.start.sum() == t.terminated.sum() == 4
    assert t.start[0] and t.terminated[-1] and t.obs.shape[1:] == (2,)
    away = np.linalg.norm(t.next_obs[t.terminated] - np.array(reaching.GOALS[:1]), axis=1)
    assert (away < reaching.CLOSE).all()
    cfg = bc.Config(batch_size=4, hidden=(4,), updates=1)
    agent, hp = bc.make(cfg, env.spec), jax.tree.map(jnp.float32, bc.Hypers())
    rows, key = jax.tree.map(jnp.asarray, t), jax.random.key(0)
    run = lambda updates, begin: fit(agent, hp, rows, key, updates, 4, begin)
    state = run(2, None)
    same, other = (jax.tree.leaves(run(updates, state)) for updates in (0, 1))
    for a, b in zip(jax.tree.leaves(state), same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(same, other, strict=True))
