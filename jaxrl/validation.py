"""Metrics of held-out data beside those of training, for agents that learn from data alone.

The held-out metrics are those that an update on a held-out batch reports; the updated state is
discarded. So every agent has them, with the names of its training metrics after `held_`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.errors import UserError
from jaxrl.inputs import DATA, VALIDATION
from jaxrl.optim import update_if
from jaxrl.program import Program, Stage
from jaxrl.types import Agent, Batch, Learner, Source, Transition

EVERY = 10  # updates per held-out batch
PREFIX = "held_"


class Pair(NamedTuple):
    """Batches of training and held-out rows."""

    train: Batch
    held: Batch


def split(t: Transition, share: float) -> tuple[Transition, Transition]:
    """Training and held-out rows of a dataset on the host, by whole episodes.

    Episodes are held out in a random order, always the same, until they have at least `share` of
    all rows.

    Raises:
      UserError: no episode would be left for training.
    """
    first = np.flatnonzero(t.start)
    lengths = np.diff(np.append(first, len(t.reward)))
    order = np.random.default_rng(0).permutation(len(first))
    enough = np.searchsorted(np.cumsum(lengths[order]), share * len(t.reward)) + 1
    held = np.zeros(len(first), bool)
    held[order[:enough]] = True
    if held.all():
        raise UserError(
            f"a validation share of {share:g} leaves none of {len(first)} episodes for training"
        )
    rows: Any = np.repeat(held, lengths)
    return jax.tree.map(lambda x: x[~rows], t), jax.tree.map(lambda x: x[rows], t)


def validated(program: Program, every: int = EVERY) -> Program:
    """`program` with held-out metrics of its offline stages, from inputs["validation"].

    Raises:
      UserError: no stage trains an agent on batches of data alone.
    """
    fits = lambda stage: (
        stage.updates > 0
        and isinstance(stage.learner, Agent)
        and stage.source.env_steps == 0
        and stage.source.refresh is None
    )
    if not any(map(fits, program.stages)):
        raise UserError("--validation-share is for agents that learn from data alone: remove it")
    own = lambda stage: _validated(stage, every) if fits(stage) else stage
    return Program(tuple(map(own, program.stages)))


def _validated(stage: Stage, every: int) -> Stage:
    source, learner = _pairs(stage.source, every), _reporting(stage.learner, every)
    return dataclasses.replace(stage, source=source, learner=learner)


def _due(step: jax.Array, every: int) -> jax.Array:
    """The last of every `every` updates, which is one that updates delayed policies."""
    return (step + 1) % every == 0


def _pairs(source: Source, every: int) -> Source:
    """Batches of `source` with held-out ones; zeros where none is due."""

    def next(src, learner_state, hp, inputs, key, step):
        keys = jax.random.split(key)
        src, train, seen = source.next(src, learner_state, hp, inputs, keys[0], step)
        other = inputs | {DATA: inputs[VALIDATION]}
        draw = lambda: source.next(src, learner_state, hp, other, keys[1], step)[1]
        zero = lambda x: jnp.zeros(x.shape, x.dtype)
        nothing = lambda: jax.tree.map(zero, jax.eval_shape(draw))
        return src, Pair(train, jax.lax.cond(_due(step, every), draw, nothing)), seen

    return dataclasses.replace(source, next=next)


def _reporting(learner: Learner, every: int) -> Learner:
    """Learns from `Pair.train`, and reports held-out metrics of the state before the update."""

    def update(state, hp, batch, key, step):
        def report() -> tuple[tuple[()], dict[str, Any]]:
            told = learner.update(state, hp, batch.held, key, step)[1]
            return (), {f"{PREFIX}{name}": value for name, value in told.items()}

        _, held = update_if(_due(step, every), report)
        state, metrics = learner.update(state, hp, batch.train, key, step)
        return state, metrics | held

    return dataclasses.replace(learner, update=update)
