"""RAVL: the probe in both kinds of dynamics, what its modes share, and what its stages are."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from logged import BOX, mode, numbers

from jaxrl import envs
from jaxrl.agents import edac, ravl
from jaxrl.errors import UserError
from jaxrl.program import Result, check_shared, train
from jaxrl.types import HyperParams, Transition

AIM = envs.make("probe:aim")
SIZES: dict[str, Any] = {
    "updates": 1000,
    "batch_size": 64,
    "hidden": (16,),
    "critics": 2,
    "diversity": False,
    "models": 3,
    "elites": 2,
    "model_hidden": (16,),
    "model_epochs": 40,
    "rollout_steps": 2,
    "rollout_starts": 64,
    "rollout_every": 50,
    "real_share": 0.25,
}
HP = ravl.Hypers(lr=0.005, temperature=0.1, model_lr=0.01)


def aimed(widest: float, rows: int = 1024) -> Transition:
    """One-step episodes of `probe:aim` with actions up to `widest` from 0, and simulator states."""

    @jax.jit
    @jax.vmap
    def play(key: jax.Array) -> Transition:
        key_reset, key_action = jax.random.split(key)
        state, obs = AIM.reset(key_reset, AIM.params)
        action = jax.random.uniform(key_action, (1,), minval=-widest, maxval=widest)
        _, ts = AIM.step(key_action, state, action, AIM.params)
        extras: Any = {"state": tuple(jax.tree.leaves(state))}
        first = jnp.array(True)
        return Transition(
            obs, action, ts.reward, ts.next_obs, ts.terminated, ts.truncated, first, extras
        )

    return play(jax.random.split(jax.random.key(0), rows))


def trained(dynamics: str, data: Transition) -> tuple[Result, np.ndarray]:
    """The result of a run, and the actions at -1 and 1; the best ones are half of these."""
    cfg = ravl.Config(**SIZES, dynamics=dynamics)  # pyright: ignore[reportArgumentType]
    run = jax.jit(train(ravl.program(cfg, AIM, evals=2, episodes=8)))
    hp = HyperParams(numbers(HP), AIM.params)
    result = run(jax.random.key(1), hp, data)
    agent = ravl.make(cfg, AIM.spec)
    return result, mode(agent, result.states["agent"], HP, [[-1.0], [1.0]])[:, 0]


def test_imagines_what_the_data_do_not_have() -> None:
    """Actions of the data stay below 0.1, the best ones are ±0.5: found in the true dynamics."""
    result, actions = trained("true", aimed(0.1))
    np.testing.assert_allclose(actions, [-0.5, 0.5], atol=0.1)
    metrics = result.metrics["agent"]
    assert (metrics["uncertainty_last"].total == 0).all()  # the environment is certain
    assert (metrics["diverged"].value == 0).all()
    assert metrics["q_std"].weight[0] + metrics["q_std_edge"].weight[0] == 500 * 64


@pytest.mark.slow
def test_learns_in_a_model_that_it_has_learned() -> None:
    result, actions = trained("learned", aimed(1.0))
    np.testing.assert_allclose(actions, [-0.5, 0.5], atol=0.15)
    assert result.states["dynamics"].elites.shape == (2,)
    # The first step of every rollout terminates: no second one is ever made, so none is certain.
    metrics = result.metrics["agent"]
    assert np.isfinite(metrics["uncertainty_first"].value).all()
    assert (metrics["uncertainty_last"].weight < 0.1 * metrics["uncertainty_first"].weight).all()


def test_stages() -> None:
    """A shared ensemble by default, one per member if asked for, none with the true dynamics."""
    told = [
        [(stage.name, stage.shared) for stage in ravl.program(cfg, AIM).stages]
        for cfg in (
            ravl.Config(),
            ravl.Config(share_dynamics=False),
            ravl.Config(dynamics="true"),
        )
    ]
    agent = ("agent", False)
    assert told == [[("dynamics", True), agent], [("dynamics", False), agent], [agent]]


def test_outcomes_that_are_given() -> None:
    """The functions of the ensemble are the environment's; one that tells nothing is refused."""
    env, cfg = envs.make("maze:umaze"), ravl.Config(outcomes="given")
    world = ravl.networks(cfg, env)
    assert world.reward and world.terminated
    along = jnp.linspace(-2.0, 2.0, 200)
    obs = jnp.stack([along, -along], 1)  # through the goal's cell
    cell = np.floor(np.asarray(obs) + 2.5)  # of 5 x 5
    goal = np.all(cell == [3, 1], 1)
    assert 0 < goal.sum() < 200
    np.testing.assert_array_equal(world.terminated(obs, obs, obs), goal)
    np.testing.assert_array_equal(world.reward(obs, obs, obs), goal.astype(np.float32))
    assert ravl.networks(ravl.Config(), env).reward is None
    with pytest.raises(UserError, match="probe:aim has no Env.outcome: pass"):
        ravl.program(cfg, AIM)


def test_one_ensemble_has_one_learning_rate() -> None:
    """Members that share it would all get the first one's; the true dynamics have none."""
    swept = numbers(HP).replace(model_lr=jnp.float32([1e-3, 1e-2]))
    check = lambda cfg, hp: check_shared(ravl.program(cfg, AIM), hp)
    with pytest.raises(
        UserError, match="model_lr differs between members, .* share their dynamics"
    ):
        check(ravl.Config(), swept)
    check(ravl.Config(), swept.replace(model_lr=jnp.float32([1e-3] * 2)))
    check(ravl.Config(share_dynamics=False), swept)
    check(ravl.Config(dynamics="true"), swept)


def test_options_are_those_of_edac_and_more() -> None:
    """Settings of EDAC mean the same here: MBPO and MOPO are settings, too."""
    ours, theirs = ravl.Config(), edac.Config()
    for name in vars(theirs):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ravl.Hypers().penalty == 0  # RAVL and MBPO have none
    with pytest.raises(UserError, match="real_share=2 must be between 0 and 1"):
        ravl.make(ravl.Config(real_share=2), BOX)
