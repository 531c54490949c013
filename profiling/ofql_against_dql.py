"""Speed of OFQL in learning and acting, compared with DQL with five denoising steps.

    python profiling/ofql_against_dql.py [--updates 200] [--repeats 5] [--json FILE]

Observations have 17 elements, actions 6; batches of 256, networks of 3 x 256, time embeddings of 64
for both. Without compilation and initialisation; medians of alternating repeats; CPU seconds (all
threads) on CPUs, wall time elsewhere:

    updates     complete updates: sampling, losses, gradients, Adam, EMA networks
    actions     actions of the policy alone, 2,500 per call
    decisions   decisions in single states, 50 per call: 50 candidates, scored by Q, one chosen

The paper (arXiv:2508.13904) reports 1.86 times the updates and 3.55 times the actions of DQL.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.agents import dql, ofql
from jaxrl.experiments import jax_setup
from jaxrl.program import Stage, advance_fn, initialise_fn
from jaxrl.runs import files, provenance
from jaxrl.sources import uniform
from jaxrl.spaces import box_scale
from jaxrl.types import Box, EnvSpec, HyperParams, PyTree, Transition

OBS, ACT, ROWS = 17, 6, 100_000
SPEC = EnvSpec("cheetah", (OBS,), Box((-1.0,) * ACT, (1.0,) * ACT, (ACT,)), 1000)
STATES, CANDIDATES, CALLS = 50, 50, 20
Timed = tuple[Callable[..., PyTree], tuple[Any, ...], int]  # program, arguments, results per call


def dataset() -> Transition:
    """Random rows [D]."""
    rng = np.random.default_rng(0)
    number = lambda *shape: jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32)
    never = jnp.zeros(ROWS, bool)
    obs, action, reward = number(ROWS, OBS), number(ROWS, ACT), number(ROWS)
    return Transition(obs, action, reward, number(ROWS, OBS), never, never, never)


def programs(module: Any, updates: int, data: Transition) -> dict[str, Timed]:
    """The timed programs of one agent, by name."""
    cfg = module.Config(updates=updates, embedding=64, candidates=CANDIDATES)
    agent, hp = module.make(cfg, SPEC), jax.tree.map(jnp.float32, module.Hypers())
    space = box_scale(module.__name__, SPEC)
    policy = module.generator(cfg, SPEC, space)
    source = uniform(cfg.batch_size)
    stage = Stage(name="agent", learner=agent, source=source, updates=updates)
    shared = {"inputs": {"data": data}}
    start = {"key": jax.random.key(0), "hp": HyperParams(hp), "inputs": {}}
    state = jax.jit(initialise_fn(stage))((), start, shared)[1]
    counters = {"step": jnp.int32(0), "n": jnp.int32(updates), "fresh": jnp.array(True)}
    obs = data.obs[: STATES * CANDIDATES]

    def again(make: Callable[[PyTree, jax.Array], jax.Array]) -> Callable[..., PyTree]:
        """CALLS calls of the function, each with new noise."""
        keys = jax.random.split(jax.random.key(1), CALLS)
        return lambda learnt: jax.lax.map(lambda key: make(learnt, key), keys)

    def act(learnt: PyTree, key: jax.Array) -> jax.Array:
        return policy.act(learnt.actor, policy.noise(key, (len(obs),)), obs)

    def decide(learnt: PyTree, key: jax.Array) -> jax.Array:
        noise, begin = agent.noise(key, STATES), jnp.ones(STATES, bool)
        return agent.act(learnt, hp, obs[:STATES], begin, (), noise, True)[0]

    return {
        "updates": (advance_fn(stage), (state, {"inputs": {}}, shared | counters), updates),
        "actions": (again(act), (state.learner,), CALLS * len(obs)),
        "decisions": (again(decide), (state.learner,), CALLS * STATES),
    }


def seconds(run: Callable[..., PyTree], args: tuple[Any, ...]) -> float:
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    start = clock()
    jax.block_until_ready(run(*args))
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of OFQL beside five-step DQL")
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    jax_setup.start()
    data, rows = dataset(), []
    agents = {"ofql": ofql, "dql": dql}
    found = {name: programs(module, args.updates, data) for name, module in agents.items()}
    print("             ofql/s      dql/s  ratio   lowest to highest")
    for what in found["ofql"]:
        runs = {}
        for name, timed in found.items():
            program, given, count = timed[what]
            runs[name] = (jax.jit(program).lower(*given).compile(), given, count)
            seconds(*runs[name][:2])
        taken = {name: [] for name in runs}
        for _ in range(args.repeats):
            for name, (run, given, _) in runs.items():  # alternating, since the load changes
                taken[name].append(seconds(run, given))
        speed = {name: runs[name][2] / statistics.median(taken[name]) for name in runs}
        ratios = [b / a for a, b in zip(taken["ofql"], taken["dql"], strict=True)]
        ratio = statistics.median(ratios)
        rows.append({"what": what, "ratio": ratio, "ratios": ratios} | speed)
        print(
            f"{what:<10} {speed['ofql']:>8.0f} {speed['dql']:>10.0f} {ratio:>6.2f} "
            f"{min(ratios):>8.2f} to {max(ratios):.2f}",
            flush=True,
        )
    if args.json:
        files.write_json(args.json, {"versions": provenance.versions(), "rows": rows})


if __name__ == "__main__":
    main()
