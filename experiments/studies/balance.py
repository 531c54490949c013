"""Study: does FamO2O's balance β(s) follow the quality of the data (`jaxrl.agents.famo2o`)?

    python -m jaxrl.experiments.studies.balance --grid small --out DIR

The plane `reach`, with data whose quality depends on the state: above the diagonal the actions are
those of the controller with a little noise, below they are uniformly random, so that there is more
to improve. FamO2O with three ranges of β, and IQL with four fixed ones, on the seeds 100 and 101;
the best range on six other seeds, and all fixed β of IQL beside it. `--grid` has large values of β
(`large`), or values so small that the worst ones hardly improve on the data (`small`). Training on
the data is followed by fine-tuning in the environment.

DIR/balance_GRID.json has the returns after both stages, and for FamO2O the mean of β(s) over the
dataset's states of both regions, as a fraction of its range.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.agents import famo2o, iql
from jaxrl.algorithm import Algorithm
from jaxrl.envs import reach
from jaxrl.experiments import jax_setup
from jaxrl.experiments.studies import offline
from jaxrl.rollout import rollout
from jaxrl.runs import files, provenance
from jaxrl.types import Array, HyperParams, Policy, Transition

EPISODES, STEPS, NOISE = 300, 30, 0.2
SIZES: dict[str, Any] = {
    "updates": 5_000,
    "batch_size": 128,
    "hidden": (64, 64),
    "finetune_steps": 2_000,
    "capacity": 2_000,
}
RATES = {"lr": 1e-3, "gamma": 0.95, "tau": 0.01}
RANGES = {
    "large": ((1.0, 10.0), (1.0, 30.0), (3.0, 30.0)),
    "small": ((0.0, 0.3), (0.0, 1.0), (0.0, 3.0)),
}
FIXED = {"large": (1.0, 3.0, 10.0, 30.0), "small": (0.03, 0.1, 0.3, 1.0)}
ALGORITHMS: dict[str, Algorithm] = {"famo2o": famo2o.ALGORITHM, "iql": iql.ALGORITHM}
TUNED = (100, 101)


def good(obs: Array) -> Array:
    """[...] bool: the region of positions [..., 2] with the controller's actions."""
    return obs[..., 1] > obs[..., 0]


def behaviour() -> Policy:
    """The controller with noise above the diagonal, uniformly random actions below."""
    expert = reach.controller()

    def act(state, hp, obs, start, memory, noise, explore):
        best, memory, extras = expert.act(state, hp, obs, start, memory, (), explore)
        near = jnp.clip(best + NOISE * noise[0], -1.0, 1.0)
        return jnp.where(good(obs)[:, None], near, noise[1]), memory, extras

    def noise(key: jax.Array, n: int) -> tuple[Array, Array]:
        keys = jax.random.split(key)
        return jax.random.normal(keys[0], (n, 2)), jax.random.uniform(keys[1], (n, 2), minval=-1.0)

    return Policy(act=act, noise=noise)


def rows() -> Transition:
    """The dataset [D], episode after episode."""
    env = reach.make(STEPS)
    source, hp = rollout(env, behaviour(), EPISODES, STEPS, resets=1), HyperParams(())
    begin = jax.jit(source.init)(jax.random.key(5), (), hp, {})
    window = jax.jit(source.next)(begin, (), hp, {}, jax.random.key(6), jnp.int32(0))[1].transitions
    flat = lambda x: np.swapaxes(np.asarray(x), 0, 1).reshape(-1, *x.shape[2:])
    return jax.tree.map(flat, window._replace(extras={}))


def regions(cfg: famo2o.Config, state: Any, hp: Any, data: Transition) -> dict[str, np.ndarray]:
    """Mean of β(s) [P] over the states of each region, as a fraction of the range."""
    head = famo2o.balance_head(cfg.hidden, reach.make().spec)

    def fractions(params: Any) -> Array:
        return 0.5 * (1 + jnp.tanh(head.policy(params, jnp.asarray(data.obs)).mode[:, 0]))

    beta = np.asarray(jax.jit(jax.vmap(fractions))(state.balance))  # [P, D]
    above = np.asarray(good(data.obs))
    return {"beta_good": beta[:, above].mean(1), "beta_poor": beta[:, ~above].mean(1)}


def learn(agent: str, points: list[dict[str, float]], seeds: tuple[int, ...]) -> dict[str, Any]:
    """Returns offline and online [points, seeds], and for FamO2O β of both regions."""
    algorithm, data, env = ALGORITHMS[agent], rows(), reach.make(STEPS)
    members = [RATES | point for point in points for _ in seeds]
    hp = offline.hypers_of(algorithm, members)
    keys = jnp.concatenate([offline.keys_of(seed, 1) for _ in points for seed in seeds])
    cfg = algorithm.Config(**SIZES)
    result = offline.trainer(algorithm, cfg, env)(keys, hp, data)
    shape = (len(points), len(seeds))
    found = {
        stage.name: np.asarray(result.evals[stage.name].returns).mean(-1)[:, -1].reshape(shape)
        for stage in result.program.stages
    }
    if agent == "famo2o":
        # The balance model at the end of training on the data.
        alone = algorithm.Config(**SIZES | {"finetune_steps": 0})
        state = offline.trainer(algorithm, alone, env)(keys, hp, data).state
        beta = regions(alone, state, hp, data)
        found |= {name: x.reshape(shape) for name, x in beta.items()}
    return found


def points_of(grid: str) -> dict[str, list[dict[str, float]]]:
    """The points of both agents."""
    return {
        "famo2o": [{"beta_low": low, "beta_high": high} for low, high in RANGES[grid]],
        "iql": [{"beta": beta} for beta in FIXED[grid]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="FamO2O's balance per state")
    parser.add_argument("--grid", choices=list(RANGES), default="small")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    jax_setup.start()
    told: dict[str, Any] = {"versions": provenance.versions(), "rates": RATES, "sizes": SIZES}
    for agent, points in points_of(args.grid).items():
        tuned = learn(agent, points, TUNED)
        means = {name: x.mean(1).tolist() for name, x in tuned.items()}
        # The agents are chosen by what fine-tuning ends with.
        best = int(np.argmax(tuned["online"].mean(1)))
        shown = points if agent == "iql" else [points[best]]
        found = learn(agent, shown, tuple(range(args.seeds)))
        told[agent] = {"points": points, "tuned": means, "best": points[best], "reported": []}
        for i, point in enumerate(shown):
            row = {name: offline.interval(x[i]) for name, x in found.items()}
            print(agent, point, *(f"{k} {offline.told(x)}" for k, x in row.items()), flush=True)
            told[agent]["reported"].append({"point": point} | row)
    files.write_json(args.out / f"balance_{args.grid}.json", told)


if __name__ == "__main__":
    main()
