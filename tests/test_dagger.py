"""DAgger: which steps have a label, the loss against numpy, and what the clone ends with."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from logged import rows

from jaxrl.agents import dagger
from jaxrl.errors import UserError
from jaxrl.interventions import EXTRA, TAUGHT, WEIGHT, taught, weighted
from jaxrl.policies import Trained
from jaxrl.program import train
from jaxrl.sources import uniform
from jaxrl.types import Batch, Box, EnvSpec, Policy, Source

SPEC = EnvSpec("push", (3,), Box((-1.0,), (1.0,), (1,)), 10)


def expert(size: int) -> Policy:
    """A policy whose action is 0.2 in `size` dimensions."""
    acts = lambda obs: jnp.full((len(obs), size), 0.2)
    return Policy(act=lambda state, hp, obs, start, memory, *more: (acts(obs), memory, {}))


SIZES: dict[str, Any] = {"hidden": (8,), "batch_size": 16, "warmup": 8, "intervention": "random"}


@pytest.mark.parametrize("every", [True, False])
def test_labels_are_the_experts_actions(every: bool) -> None:
    """At all steps, or at those at which the expert acted; the data's rows all count."""
    t = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), rows(SPEC, 8))
    acted = jnp.array([[True, False]] * 4)
    extras = {EXTRA: acted, TAUGHT: jnp.full((4, 2, 1), 0.2)}
    given = lambda *args: ((), Batch(t._replace(extras=extras)), {})
    source = taught(Source(init=lambda *args: (), next=given), every)
    _, batch, seen = source.next((), (), (), {}, jax.random.key(0), jnp.int32(0))
    found = batch.transitions
    np.testing.assert_array_equal(found.action, np.full((4, 2, 1), np.float32(0.2)))
    np.testing.assert_array_equal(found.extras[WEIGHT], np.maximum(acted, every))
    assert seen["intervention_rate"].value == 0.5
    data = weighted(uniform(5))
    inputs = {"data": jax.tree.map(jnp.asarray, rows(SPEC, 8))}
    _, batch, _ = data.next((), (), (), inputs, jax.random.key(0), jnp.int32(0))
    assert batch.transitions.extras.keys() == {WEIGHT}
    np.testing.assert_array_equal(batch.transitions.extras[WEIGHT], np.ones(5))


def test_loss_of_rows_with_a_label() -> None:
    rng = np.random.default_rng(0)
    chosen, label = rng.normal(size=(2, 6, 3)).astype(np.float32)
    labelled = np.array([1, 0, 1, 1, 0, 0], bool)
    own = np.mean([np.mean((chosen[i] - label[i]) ** 2) for i in (0, 2, 3)])
    np.testing.assert_allclose(dagger.labelled_loss(chosen, label, labelled), own, rtol=1e-6)
    assert dagger.labelled_loss(chosen, label, np.zeros(6, bool)) == 0
    grads = jax.grad(dagger.labelled_loss)(jnp.asarray(chosen), label, labelled)
    assert np.all((np.abs(grads).max(1) > 0) == labelled)


@pytest.mark.slow
@pytest.mark.parametrize(("labels", "probability"), [("all", 0.0), ("interventions", 0.5)])
def test_the_clone_takes_the_experts_action(labels: Any, probability: float) -> None:
    """Without rows of the dataset; DAgger also where the expert never acts."""
    cfg = dagger.Config(**SIZES, labels=labels, data_share=0.0, total_steps=1_000, capacity=1_000)
    env, base = tiny.glide(), expert(2)
    program = dagger.program(cfg, env, evals=1, episodes=2, base=base)
    hp = jax.tree.map(jnp.float32, dagger.Hypers(lr=3e-3, probability=probability))
    data = jax.tree.map(jnp.asarray, rows(env.spec, 8))
    given = {"base": Trained((), ())}
    result = jax.jit(train(program))(jax.random.key(0), hp, data, given)
    agent = dagger.make(cfg, env.spec, base)
    obs = jax.vmap(lambda key: env.reset(key, env.params)[1])(
        jax.random.split(jax.random.key(1), 3)
    )
    action, _, _ = agent.act(result.state, hp, obs, jnp.ones(3, bool), agent.memory(3), (), False)
    np.testing.assert_allclose(action, 0.2, atol=0.02)


def test_what_it_refuses() -> None:
    for base, cfg, told in [
        (None, dagger.Config(), "pass --base runs/NAME"),
        (expert(1), dagger.Config(intervention_steps=0), "intervention_steps"),
        (expert(1), dagger.Config(data_share=-1.0), "data_share"),
        (expert(1), dagger.Config(batch_size=0), "batch_size=0 must be at least 1"),
        (expert(1), dagger.Config(hidden=(0,)), "hidden=0"),
        (expert(1), dagger.Config(capacity=10), "too few for warmup=1000"),
        (expert(1), dagger.Config(total_steps=0), "less than one rollout"),
        (expert(1), dagger.Config(reference_batch=0), "reference_batch=0"),
    ]:
        with pytest.raises(UserError, match=told):
            dagger.make(cfg, SPEC, base)
