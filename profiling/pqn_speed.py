"""Speed of PQN, compared with the bounds set by the environment alone and the network alone.

    python profiling/pqn_speed.py [--members 1 32 256] [--hidden 64 64] [--json FILE]

Environment steps per CPU second (all threads) without compilation, medians of repeats:

    pqn          complete updates: rollout, targets, shuffling, learning
    environment  the same rollouts with precomputed actions: steps and resets only
    network      the same forward passes (acting) and backward passes (learning) only; parameters
                 change a little, so that XLA cannot remove any pass
    ceiling      1 / (1 / environment + 1 / network)
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import envs, nets, population
from jaxrl.agents import pqn
from jaxrl.experiments import jax_setup
from jaxrl.experiments.plan import hyper_table
from jaxrl.losses import q_loss
from jaxrl.program import Program, Source, Stage
from jaxrl.rollout import rollout
from jaxrl.runs import files, provenance
from jaxrl.types import Array, Batch, Env, HyperParams, Learner, Policy, PyTree


def program(learner: Learner, env: Env, policy: Policy, cfg: pqn.Config) -> Program:
    source = rollout(env, policy, cfg.num_envs, cfg.num_steps)
    return Program((Stage(name="agent", learner=learner, source=source, updates=cfg.updates),))


def idle(num_actions: int) -> tuple[Learner, Policy]:
    """An agent with random actions, all drawn in advance, that does not learn."""

    def act(state, hp, obs, start, memory, noise, explore):
        return noise, memory, {}

    def update(state, hp, batch, key, step):
        return state + jnp.sum(batch.transitions.reward), {}

    learner = Learner(init=lambda key, hp, inputs: jnp.float32(0), update=update)
    noise = lambda key, n: jax.random.randint(key, (n,), 0, num_actions)
    return learner, Policy(act=act, noise=noise)


def passes(cfg: pqn.Config, env: Env) -> Program:
    """The network passes of PQN: T forward passes [N], then epochs x minibatches of gradients."""
    net = nets.from_linen(nets.MLP(cfg.hidden, 2, norm=True), env.spec.obs_shape)
    size = cfg.num_envs * cfg.num_steps // cfg.minibatches
    obs = jnp.ones((cfg.num_envs, *env.spec.obs_shape))
    batch = (
        jnp.ones((size, *env.spec.obs_shape)), jnp.zeros(size, jnp.int32), jnp.ones(size)
    )  # fmt: skip

    def update(params: PyTree, hp: PyTree, _: Batch, key: Array, step: Array) -> Any:
        def act(x: Array, _: None) -> tuple[Array, None]:
            return x + 1e-6 * jnp.max(net.apply(params, obs + x)), None

        def learn(params: PyTree, _: None) -> tuple[PyTree, None]:
            obs, action, target = batch
            loss = lambda p: q_loss(net.apply(p, obs), action, target)[0]
            grads = jax.grad(loss)(params)
            return jax.tree.map(lambda p, g: p - 1e-6 * g, params, grads), None

        acted, _ = jax.lax.scan(act, jnp.float32(0), None, length=cfg.num_steps)
        params, _ = jax.lax.scan(learn, params, None, length=cfg.epochs * cfg.minibatches)
        return params, {"acted": acted}

    def nothing(*args: Any) -> Any:
        return (), Batch(()), {}  # type: ignore[arg-type]

    source = Source(init=lambda *args: (), next=nothing)
    learner = Learner(init=lambda key, hp, inputs: net.init(key), update=update)
    return Program((Stage(name="agent", learner=learner, source=source, updates=cfg.updates),))


def measure(run: Program, env: Env, members: int, steps: int, repeats: int) -> dict[str, float]:
    """{"steps_per_cpu_s", "steps_per_s", "compile_s"} of the complete training of `members`."""
    plan = population.layout(members)
    hp = plan.split(plan.pad(hyper_table(HyperParams(pqn.Hypers(), env.params), members), members))
    ids = plan.split(plan.pad(jnp.arange(members), members))
    args = (jax.random.key(0), ids, hp, {})
    clock = time.perf_counter()
    compiled = jax.jit(population.train(run, plan)).lower(*args).compile()
    compile_s = time.perf_counter() - clock
    jax.block_until_ready(compiled(*args))
    cpu, wall = [], []
    for _ in range(repeats):
        start, clock = time.process_time(), time.perf_counter()
        jax.block_until_ready(compiled(*args))
        cpu.append(time.process_time() - start)
        wall.append(time.perf_counter() - clock)
    total = steps * plan.padded(members)
    return {
        "steps_per_cpu_s": total / statistics.median(cpu),
        "steps_per_s": total / statistics.median(wall),
        "compile_s": compile_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of PQN beside two ceilings")
    parser.add_argument("--members", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 64])
    parser.add_argument("--steps", type=int, default=4_000_000, help="steps in one measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    jax_setup.start()
    env = envs.make("CartPole-v1")
    rows = []
    print("members  tile         pqn  environment     network     ceiling  share")
    for members in args.members:
        window = pqn.Config.num_envs * pqn.Config.num_steps
        updates = max(args.steps // (members * window), 3)
        cfg = pqn.Config(hidden=tuple(args.hidden), total_steps=updates * window)
        agent = pqn.make(cfg, env.spec)
        learner, policy = idle(2)
        runs = {
            "pqn": program(agent, env, agent, cfg),
            "environment": program(learner, env, policy, cfg),
            "network": passes(cfg, env),
        }
        found = {
            n: measure(r, env, members, cfg.total_steps, args.repeats) for n, r in runs.items()
        }
        speed = {name: numbers["steps_per_cpu_s"] for name, numbers in found.items()}
        ceiling = 1 / (1 / speed["environment"] + 1 / speed["network"])
        share, width = speed["pqn"] / ceiling, population.layout(members).width
        rows.append({"members": members, "width": width, "share_of_ceiling": share} | found)
        numbers = [speed["pqn"], speed["environment"], speed["network"], ceiling]
        columns = " ".join(f"{x:>11,.0f}" for x in numbers)
        print(f"{members:>7} {width:>5} {columns} {share:>6.2f}", flush=True)
    if args.json:
        about = {"hidden": args.hidden, "devices": jax.device_count()}
        files.write_json(args.json, about | {"versions": provenance.versions(), "rows": rows})


if __name__ == "__main__":
    main()
