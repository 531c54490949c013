"""Toy learners, one for each way an algorithm uses the engine, small enough to compile in a second.

They learn nothing useful. Each touches everything it is handed, so that a wrong key, counter, carry
or input changes its numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.evaluate import evaluator
from jaxrl.program import Program, Stage
from jaxrl.rollout import rollout
from jaxrl.sources import mix, replay, take, uniform
from jaxrl.types import (
    Agent,
    Array,
    Batch,
    Box,
    Env,
    EnvSpec,
    HyperParams,
    Learner,
    Policy,
    PyTree,
    Source,
    TimeStep,
    Transition,
)

LIMIT = 7


def drift() -> Env:
    """A noisy walk on a line: ends beyond |x| = 2, cut after seven steps."""

    def obs(state: PyTree) -> Array:
        x, t = state
        return jnp.stack([x, t / LIMIT])

    def reset(key: Array, params: PyTree) -> tuple[PyTree, Array]:
        state = (jax.random.normal(key), jnp.int32(0))
        return state, obs(state)

    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        x, t = state
        x = x + 0.3 * action[0] + params["noise"] * jax.random.normal(key)
        terminated = jnp.abs(x) > 2
        truncated = (t + 1 >= LIMIT) & ~terminated
        return (x, t + 1), TimeStep(obs((x, t + 1)), -x * x, terminated, truncated)

    spec = EnvSpec("drift", (2,), Box((-1.0,), (1.0,), (1,)), LIMIT)
    return Env(spec, {"noise": jnp.float32(0.3)}, reset, step)


def dataset(key: Array, rows: int = 64) -> Transition:
    keys = jax.random.split(key, 4)
    obs = jax.random.normal(keys[0], (rows, 2))
    end = jnp.arange(rows) % 8 == 7
    return Transition(
        obs,
        jax.random.normal(keys[1], (rows, 1)),
        jax.random.normal(keys[2], (rows,)),
        obs + 0.1 * jax.random.normal(keys[3], (rows, 2)),
        end & (jnp.arange(rows) % 16 == 7),
        end & (jnp.arange(rows) % 16 == 15),
        jnp.roll(end, 1),
    )


# --- learners ------------------------------------------------------------------------------------


class Hypers(NamedTuple):
    lr: Array
    gamma: Array
    model_lr: Array
    weight: Array


def loss(w: Array, hp: Hypers, t: Transition, noise: Array) -> Array:
    ahead = jnp.where(t.terminated, 0.0, jnp.tanh(t.next_obs @ w[:2])[..., 0])
    discount = t.extras.get("discount", hp.gamma)
    target = t.reward + discount * ahead + 0.1 * t.truncated + 0.2 * t.start
    error = (t.obs @ w[:2])[..., 0] + w[2, 0] * t.action[..., 0] - jax.lax.stop_gradient(target)
    return jnp.mean(error**2) + 0.01 * jnp.sum(noise * w)


def agent() -> Agent:
    def init(key, hp, inputs):
        return {"w": 0.3 * jax.random.normal(key, (3, 1)), "count": jnp.int32(0)}

    def update(state, hp, batch, key, step):
        noise = jax.random.normal(key, (3, 1))
        value, grad = jax.value_and_grad(loss)(state["w"], hp, batch.transitions, noise)
        # A decision on the unbatched counter, as target copies and delayed updates are.
        rate = jax.lax.cond(step % 3 == 0, lambda: 2 * hp.lr, lambda: hp.lr)
        state = {"w": state["w"] - rate * jnp.tanh(grad), "count": state["count"] + 1}
        return state, {"loss": value}

    def act(state, hp, obs, start, memory, noise, explore):
        action = jnp.tanh(obs @ state["w"][:2])
        return action + (0.5 * noise if explore else 0.0), memory, {"mean": action[:, 0]}

    noise = lambda key, n: jax.random.normal(key, (n, 1))
    return Agent(init=init, update=update, act=act, noise=noise)


def recurrent_agent() -> Agent:
    base = agent()

    def cell(w: Array, memory: Array, obs: Array, start: Array) -> Array:
        return jnp.tanh(0.9 * jnp.where(start[:, None], 0.0, memory) + obs @ w[:2])

    def update(state, hp, batch, key, step):
        t = batch.transitions

        def unrolled(w: Array) -> Array:
            def one(memory: Array, xs: PyTree) -> tuple[Array, Array]:
                memory = cell(w, memory, *xs)
                return memory, memory

            _, memories = jax.lax.scan(one, batch.memory, (t.obs, t.start))
            return jnp.mean((memories[..., 0] - t.reward) ** 2)

        value, grad = jax.value_and_grad(unrolled)(state["w"])
        return {**state, "w": state["w"] - hp.lr * grad}, {"loss": value}

    def act(state, hp, obs, start, memory, noise, explore):
        memory = cell(state["w"], memory, obs, start)
        return memory + (0.5 * noise if explore else 0.0), memory, {}

    memory = lambda n: jnp.zeros((n, 1))
    return Agent(init=base.init, update=update, act=act, noise=base.noise, memory=memory)


def model() -> Learner:
    """Next observations as a linear function of observation and action."""

    def init(key, hp, inputs):
        return 0.1 * jax.random.normal(key, (3, 2))

    def update(state, hp, batch, key, step):
        t = batch.transitions
        error = lambda m: jnp.mean((jnp.concatenate([t.obs, t.action], -1) @ m - t.next_obs) ** 2)
        value, grad = jax.value_and_grad(error)(state)
        return state - hp.model_lr * grad, {"model_loss": value}

    return Learner(init=init, update=update)


class Imagined(NamedTuple):
    buffer: Transition
    refreshes: Array


def imagined(policy: Policy, every: int) -> Source:
    """One model step from data rows with the current policy, made anew every `every` updates."""

    def init(key, learner_state, hp, inputs):
        rows = jax.tree.map(lambda x: jnp.zeros_like(x[:16]), inputs["data"])
        return Imagined(rows, jnp.int32(0))

    def refresh(src, learner_state, hp, inputs, key, step):
        key_rows, key_noise = jax.random.split(key)
        rows = take(inputs["data"], jax.random.randint(key_rows, (16,), 0, 64))
        noise = policy.noise(key_noise, 16)
        action, _, _ = policy.act(
            learner_state, hp.agent, rows.obs, rows.start, policy.memory(16), noise, True
        )
        next_obs = jnp.concatenate([rows.obs, action], -1) @ inputs["model"]
        return Imagined(rows._replace(action=action, next_obs=next_obs), src.refreshes + 1)

    def next(src, learner_state, hp, inputs, key, step):
        rows = jax.random.randint(key, (8,), 0, 16)
        metrics = {"refreshes": src.refreshes.astype(jnp.float32)}
        return src, Batch(take(src.buffer, rows)), metrics

    return Source(init=init, next=next, refresh=refresh, every=every)


def adjust(base: Policy) -> Policy:
    """A policy around a policy, with state {"base", "model"} and the hyperparameters of both."""

    def act(state, hp, obs, start, memory, noise, explore):
        action, memory, extras = base.act(state["base"], hp, obs, start, memory, noise, explore)
        towards = jnp.concatenate([obs, action], -1) @ state["model"]
        return action - hp.weight * towards[:, :1], memory, extras

    return Policy(act=act, memory=base.memory, noise=base.noise)


# --- one program per row of the table ------------------------------------------------------------


def _agent_stage(source: Source, a: Agent, name: str = "agent", **kw: Any) -> Stage:
    env = drift()
    kw = {"updates": 11, "evals": 3, "evaluate": evaluator(env, a, 3)} | kw
    return Stage(name=name, learner=a, source=source, **kw)


def _model_stage(shared: bool) -> Stage:
    return Stage(
        name="model",
        learner=model(),
        source=uniform(8),
        updates=9,
        evals=3,
        shared=shared,
        reads=("model_lr",),
    )


def row_rollout() -> Program:
    a = agent()
    return Program((_agent_stage(rollout(drift(), a, 4, 10), a),))


def row_recurrent() -> Program:
    a = recurrent_agent()
    return Program((_agent_stage(rollout(drift(), a, 4, 10, resets=5), a),))


def row_replay() -> Program:
    a = agent()
    source = replay(rollout(drift(), a, 2, 3), capacity=40, batch_size=8, warmup=2, n_step=2)
    return Program((_agent_stage(source, a),))


def row_uniform() -> Program:
    return Program((_agent_stage(uniform(8), agent()),))


def row_offline_online() -> Program:
    a = agent()
    # Rollouts record what the policy adds (`extras`), so the data side carries it as well.
    online = mix(_with_mean(uniform(8)), replay(rollout(drift(), a, 2, 3), 40, 8), 0.5, 8)
    return Program(
        (
            _agent_stage(uniform(8), a, "offline"),
            _agent_stage(online, a, "online", start="offline", updates=10),
        )
    )


def row_refreshed() -> Program:
    a = agent()
    source = mix(uniform(8), imagined(a, 2), 0.25, 8)
    return Program((_model_stage(False), _agent_stage(source, a)))


def row_wrapped() -> Program:
    a = agent()
    judge = evaluator(drift(), adjust(a), 3)

    def evaluate(state: PyTree, hp: PyTree, inputs: PyTree, key: Array) -> Any:
        return judge({"base": inputs["agent"], "model": state}, hp, inputs, key)

    score = Stage(
        name="score",
        learner=model(),
        source=uniform(8),
        updates=9,
        evals=3,
        evaluate=evaluate,
    )
    return Program((_agent_stage(uniform(8), a, evaluate=None), score))


def row_shared_model() -> Program:
    a = agent()
    return Program((_model_stage(True), _agent_stage(imagined(a, 2), a)))


def _with_mean(source: Source) -> Source:
    def next(*args: Any) -> Any:
        src, batch, metrics = source.next(*args)
        t = batch.transitions
        return src, Batch(t._replace(extras={"mean": t.action[:, 0]})), metrics

    return Source(init=source.init, next=next)


ROWS: dict[str, Callable[[], Program]] = {
    "rollout": row_rollout,
    "recurrent rollout": row_recurrent,
    "replay": row_replay,
    "uniform data": row_uniform,
    "offline then online": row_offline_online,
    "refreshed source": row_refreshed,
    "policy wrapped by a policy": row_wrapped,
    "shared model": row_shared_model,
}


def hypers(members: int) -> HyperParams:
    """Different hyperparameters and physics for each of [P] members, one model setting for all."""
    spread = jnp.linspace(0.0, 1.0, members)
    same = jnp.ones(members)
    agent = Hypers(0.01 + 0.02 * spread, 0.9 + 0.05 * spread, 0.05 * same, 0.1 * same)
    return HyperParams(agent, {"noise": 0.2 + 0.2 * spread})


def inputs() -> dict[str, PyTree]:
    return {"data": dataset(jax.random.key(7))}
