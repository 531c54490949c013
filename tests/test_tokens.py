"""Token tasks: verifiers against plain Python, over all prompts and responses."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import envs
from jaxrl import objectives as ob
from jaxrl.envs import EnvError, names, registry, tokens
from jaxrl.envs.tokens import enumerate_tokens

M = 3
SMALL = {"modsum": {}, "carry-add": {"digits": 2}, "reverse": {}, "lock": {"length": 2}}


def number(digits: np.ndarray) -> int:
    """The value of digits, lowest first."""
    return sum(int(d) * M**i for i, d in enumerate(digits))


def right(name: str, prompt: np.ndarray, response: np.ndarray) -> bool:
    if name == "modsum":
        return response[-1] == prompt.sum() % M
    if name == "carry-add":
        return number(prompt[:2]) + number(prompt[2:]) == number(response)
    return list(response) == list(prompt)[::-1]


@functools.cache
def played(name: str) -> dict[str, Any]:
    """Of all prompts [X] and responses [Y]: rewards of the environment, and the verifiers."""
    env = envs.make(f"tokens:{name}", alphabet=M, **SMALL[name])
    task = tokens.task(name, M, **SMALL[name])
    prompts = enumerate_tokens(M, task.prompt_length)
    responses = enumerate_tokens(M, task.length)
    key = jax.random.key(0)

    def one(prompt: Any, response: Any) -> Any:
        start = tokens.TokenState(prompt, jnp.ones((), bool), jnp.int32(-1), jnp.int32(0))

        def step(state: Any, token: Any) -> Any:
            allowed = env.expert(state, env.params)  # type: ignore[misc]
            state, ts = env.step(key, state, token, env.params)
            return state, (ts.reward, ts.terminated, allowed)

        _, (reward, over, allowed) = jax.lax.scan(step, start, response)
        verifiers = task.verify(prompt, response, env.params), task.step_correct
        return reward, over, allowed, verifiers[0], verifiers[1](prompt, response, env.params)

    every = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
    fields = ("reward", "over", "allowed", "verified", "steps")
    found = dict(zip(fields, jax.device_get(jax.jit(every)(prompts, responses)), strict=True))
    answers = jax.vmap(lambda x: task.answer(x, env.params))(prompts)
    return found | {"prompts": prompts, "responses": responses, "answers": np.asarray(answers)}


@pytest.mark.parametrize("name", SMALL)
def test_verifiers_over_all_prompts_and_responses(name: str) -> None:
    found = played(name)
    prompts, responses = found["prompts"], found["responses"]
    if name == "lock":
        expected = (responses[None] == found["answers"][:, None]).all(-1)
    else:
        expected = np.array([[right(name, x, y) for y in responses] for x in prompts])
    length = responses.shape[-1]
    chance = 1 / M if name == "modsum" else M**-length
    assert expected.mean() == pytest.approx(chance)
    np.testing.assert_array_equal(found["verified"], expected)
    np.testing.assert_array_equal(found["reward"][..., -1], expected)
    assert not found["reward"][..., :-1].any()
    assert found["over"][..., -1].all() and not found["over"][..., :-1].any()


@pytest.mark.parametrize("name", SMALL)
def test_the_expert_names_the_tokens_that_can_still_succeed(name: str) -> None:
    """By enumeration: a token is right where a right continuation of right tokens exists."""
    found = played(name)
    responses, allowed = found["responses"], found["allowed"]
    np.testing.assert_allclose(allowed.sum(-1), 1, rtol=1e-6)
    length = responses.shape[-1]
    for verified, steps, given in zip(found["verified"], found["steps"], allowed, strict=True):
        accepted = responses[verified]
        for t in range(length):
            good = set(accepted[:, t].tolist())
            assert set(np.flatnonzero(given[0, t]).tolist()) == good
            assert (steps[:, t] == np.isin(responses[:, t], list(good))).all()
        assert (verified == steps.all(-1)).all()


def test_observations_hide_the_response_but_for_the_last_token() -> None:
    env = envs.make("tokens:reverse", alphabet=M)
    state, obs = env.reset(jax.random.key(1), env.params)
    np.testing.assert_array_equal(np.asarray(obs[:9]).reshape(3, M).argmax(-1), state.prompt)
    np.testing.assert_array_equal(obs[9:], [0, 0, 0, 1, 0, 0])
    state, ts = env.step(jax.random.key(2), state, jnp.int32(2), env.params)
    np.testing.assert_array_equal(ts.next_obs[9:], [0, 0, 1, 0, 1, 0])
    np.testing.assert_array_equal(ts.next_obs[:9], obs[:9])


def test_the_lock_is_a_traced_parameter() -> None:
    task = tokens.task("lock", 5, length=8)
    answers = jax.vmap(lambda lock: task.answer(jnp.array([1, 2]), {"lock": lock}))(jnp.arange(3))
    assert len(np.unique(answers, axis=0)) == 3
    other = task.answer(jnp.array([2, 1]), {"lock": jnp.int32(0)})
    assert (other != answers[0]).any()
    assert envs.make("tokens:lock", lock=7).params["lock"] == 7


@pytest.mark.parametrize("name", [n for n in names.OWN if n.startswith("tokens:")])
def test_contract(name: str) -> None:
    env = envs.make(name)
    registry.check_env(env)
    assert registry.describe(env.spec) == names.OWN[name] and env.spec.name == name


def test_the_contract_of_experts() -> None:
    """One line for a result of another shape, before anything is compiled."""
    env = envs.make("tokens:reverse")
    wrong = dataclasses.replace(env, expert=lambda state, params: jnp.zeros(4))
    with pytest.raises(EnvError, match="expert's result must be float32 of shape \\(5,\\)"):
        registry.check_env(wrong)
    broken = dataclasses.replace(env, expert=lambda state, params: state.missing)
    with pytest.raises(EnvError, match=r"the form is expert\(state, params\) -> probabilities"):
        registry.check_env(broken)


def test_wrappers_keep_the_expert_where_it_still_is_one() -> None:
    env = envs.make("tokens:reverse", max_steps=2, hide=[0], normalise_reward=0.9)
    state, _ = env.reset(jax.random.key(0), env.params)
    assert env.expert is not None and env.expert(state, env.params).sum() == 1
    assert envs.make("tokens:reverse", sticky=0.5).expert is None
    assert envs.make("CartPole-v1").expert is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tokens:modsums", {}, "did you mean 'tokens:modsum'"),
        ("tokens:modsum", {"alphabet": 1}, "alphabet of tokens:modsum must be at least 2"),
        ("tokens:modsum", {"digits": 0}, "digits of tokens:modsum must be a positive"),
        ("tokens:reverse", {"length": 4}, "tokens:reverse has no option 'length'"),
    ],
)
def test_refusals(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(EnvError, match=message):
        envs.make(name, **options)
    with pytest.raises(EnvError, match="10\\^7 sequences are too many"):
        enumerate_tokens(10, 7)


def test_a_teacher_with_noise() -> None:
    log = tokens.teacher(jnp.array([0.0, 1.0, 0.0, 0.0]), 0.2)
    np.testing.assert_allclose(np.exp(log), [0.05, 0.85, 0.05, 0.05], rtol=1e-6)


# --- expectations by enumeration -----------------------------------------------------------------


def test_expected_gradients_over_all_responses() -> None:
    """Of a policy with one categorical distribution per position, in float64."""
    found = played("carry-add")
    responses, prompt = found["responses"], 40
    reward = found["verified"][prompt].astype(float)
    count, length = responses.shape
    rng = np.random.default_rng(0)
    theta, old = rng.normal(size=(2, length, M))
    mask = np.ones((count, length), bool)

    def log_prob(theta: Any) -> Any:
        table = jax.nn.log_softmax(theta)
        return jnp.sum(table[None] * np.eye(M)[responses], -1)  # [Y, L]

    def expected(coefficients: Callable, advantage: Any, weight: Any, behaviour: Any) -> Any:
        """-∇ of the surrogate, as an expectation with `weight` [Y] over all responses."""
        total = lambda x, mask: jnp.sum(weight[:, None] * x)

        def loss(theta: Any) -> Any:
            log = log_prob(theta)
            c = coefficients(log, behaviour, advantage[:, None], mask)
            return -ob.surrogate(log, c, mask, total)

        return jax.grad(loss)(theta)

    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        table = lambda theta: np.log(np.exp(theta) / np.exp(theta).sum(-1, keepdims=True))
        of = lambda theta: table(theta)[np.arange(length), responses]
        guide = of(rng.normal(size=(length, M)))
        pi_log, mu_log = of(theta), of(old)
        pi, mu = np.exp(pi_log.sum(-1)), np.exp(mu_log.sum(-1))
        np.testing.assert_allclose([mu.sum(), pi.sum()], 1, rtol=1e-12)
        signed = np.where(reward > 0, 1.0, -1.0)
        pairs = np.stack(np.meshgrid(reward, reward, indexing="ij"), -1)
        probability = lambda theta: jnp.exp(jnp.sum(log_prob(theta), -1))

        def topr(theta: Any) -> Any:
            """Σ_{R=1} μ log π - Σ_{R=-1} μ taper(ρ), with taper' = clip(ρ, 0, 1) / ρ."""
            ratio = jnp.exp(jnp.sum(log_prob(theta) - mu_log, -1))
            taper = jnp.where(ratio < 1, ratio, 1 + jnp.log(ratio))
            return jnp.sum(mu * jnp.where(signed > 0, jnp.log(ratio), -taper))

        def divergence(theta: Any) -> Any:
            """KL(π ‖ π_T), which distillation on the policy's own responses descends."""
            return jnp.sum(probability(theta) * jnp.sum(log_prob(theta) - guide, -1))

        @jax.jit
        def every() -> dict[str, tuple[Any, Any]]:
            gain = jax.grad(lambda theta: jnp.sum(probability(theta) * reward))(theta)
            # Of two responses per prompt, the group mean leaves 1 - 1/2 of the gradient.
            first = ob.group_mean(pairs)[..., 0] @ pi
            further = (guide - pi_log).sum(-1)
            return {
                "on-policy": (expected(ob.reinforce, reward, pi, pi_log), gain),
                "baseline": (expected(ob.ppo, reward - 0.4, pi, pi_log), gain),
                "off-policy": (expected(ob.sequence_is, reward, mu, mu_log), gain),
                "groups of two": (expected(ob.reinforce, first, pi, pi_log), gain / 2),
                "topr": (expected(ob.topr, signed, mu, mu_log), jax.grad(topr)(theta)),
                "distillation": (
                    expected(ob.reinforce, further, pi, pi_log),
                    -jax.grad(divergence)(theta),
                ),
            }

        for name, (got, exact) in jax.device_get(every()).items():
            np.testing.assert_allclose(got, exact, rtol=0, atol=1e-14, err_msg=name)
            assert np.abs(exact).max() > 1e-3
