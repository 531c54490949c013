"""`jaxrl data retrieve`: demonstrations with the rows of a larger dataset that resemble them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import retrieval
from jaxrl.envs.datasets import Dataset
from jaxrl.envs.datasets.episodes import split
from jaxrl.errors import UserError
from jaxrl.experiments.commands import RetrieveOptions
from jaxrl.experiments.console import print_line
from jaxrl.fitting import fit
from jaxrl.types import Transition

LABEL = "label"  # name of the extra that tells whether a prior row is useful


def retrieve(prior: Dataset, expert: Dataset, options: RetrieveOptions) -> Dataset:
    """The expert rows, and behind them the prior rows with a score of at least the threshold.

    If the prior data have extras["label"], 1 for useful rows, precision and recall are printed.

    Raises:
      UserError: observations or actions of other shapes, or images.
    """
    a, b = prior.transitions, expert.transitions
    for name in ("obs", "action"):
        x, y = getattr(a, name), getattr(b, name)
        if x.shape[1:] != y.shape[1:] or x.dtype != y.dtype:
            raise UserError(
                f"{name} of the datasets differ: {x.dtype} {x.shape[1:]} and {y.dtype} "
                f"{y.shape[1:]}"
            )
    if a.obs.dtype == np.uint8:
        raise UserError("data retrieve needs observations of numbers, not images")
    found = score(a, b, options)
    kept = found >= options.threshold
    print_line(f"{int(kept.sum()):,} of {len(kept):,} rows have a score of {options.threshold:g}")
    if LABEL in a.extras:
        precision, recall = retrieval.precision_recall(kept, np.asarray(a.extras[LABEL]) > 0)
        print_line(f"precision {precision:.4g}, recall {recall:.4g}")
    plain = lambda t: t._replace(extras={})
    # Rows that lost their successor end an episode.
    chosen, _ = split(jax.tree.map(lambda x: x[kept], plain(a)))
    repeats = max(round(kept.sum() / len(b.reward)), 1) if options.balance else 1
    rows = jax.tree.map(lambda x, y: np.concatenate([*[y] * repeats, x]), chosen, plain(b))
    cut: Any = np.append(rows.start[1:], False) & ~rows.terminated
    known = ("env", "reference", "action_low", "action_high", "action_count")
    meta = {name: x for name, x in expert.meta.items() if name in known}
    source = {"source": "jaxrl data retrieve", "threshold": options.threshold}
    return Dataset(rows._replace(truncated=rows.truncated | cut), meta | source)


def score(prior: Transition, expert: Transition, options: RetrieveOptions) -> np.ndarray:
    """Scores [D] of the prior rows, see `jaxrl.retrieval`."""
    actions = int(max(np.max(prior.action), np.max(expert.action))) + 1
    a, b = (retrieval.pairs(t.obs, t.action, actions) for t in (prior, expert))  # type: ignore[arg-type]
    cfg = retrieval.Config(hidden=options.hidden, latent=options.latent)
    hp = jax.tree.map(jnp.float32, retrieval.Hypers())
    learner = retrieval.autoencoder(cfg, a.shape[1])

    @jax.jit
    def run(a: jax.Array, b: jax.Array, key: jax.Array) -> jax.Array:
        data: Any = prior._replace(obs=a, next_obs=a, extras={})
        state = fit(learner, hp, jax.tree.map(jnp.asarray, data), key, options.updates, 100)
        return retrieval.scores(retrieval.embed(cfg, state, a), retrieval.embed(cfg, state, b))

    return np.asarray(run(jnp.asarray(a), jnp.asarray(b), jax.random.key(options.seed)))
