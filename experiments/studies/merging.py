"""Study: do means of the weights before and after fine-tuning keep both tasks?

    python -m jaxrl.experiments.studies.merging --new l=1.5 --seeds 5 --out DIR

PPO learns Pendulum-v1 and is then fine-tuned on the same task with another physical parameter, its
learning rate multiplied by `--lr-factor`. The policies between both, θ = (1 - α) θ_old + α θ_new
(`jaxrl.merging`, as in `jaxrl merge`), are played greedily in both tasks, for eleven α. One program
trains all seeds.

DIR/merging.json has, for each α, the returns of both tasks, their sum, and the gain of each seed in
the sum over the better one of the two policies. Settings were chosen on seeds from 100.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import envs
from jaxrl.agents import ppo
from jaxrl.evaluate import evaluator
from jaxrl.experiments import jax_setup
from jaxrl.experiments.studies import offline
from jaxrl.merging import merge
from jaxrl.program import Program, Stage, train
from jaxrl.rollout import rollout
from jaxrl.runs import files, provenance
from jaxrl.types import Array, Env, HyperParams

ALPHAS = np.linspace(0, 1, 11)
SIZES: dict[str, Any] = {"num_envs": 4, "num_steps": 1024, "minibatches": 64, "epochs": 10}
HYPERS = {"lr": 1e-3, "lr_end": 1.0, "gamma": 0.9}
EPISODES = 200


def program(steps: tuple[int, int], changed: dict[str, float], factor: float) -> Program:
    """The stages "old" and "new", the second from the state of the first."""
    stages = []
    for name, total, options in zip(("old", "new"), steps, ({}, changed), strict=True):
        env = envs.make("Pendulum-v1", **options)
        cfg = ppo.Config(total_steps=total, **SIZES)
        agent = ppo.make(cfg, env.spec)
        if name == "new":
            agent = dataclasses.replace(agent, update=slower(agent.update, factor))
        stages.append(
            Stage(
                name=name,
                learner=agent,
                source=rollout(env, agent, cfg.num_envs, cfg.num_steps),
                updates=cfg.updates,
                start="old" if name == "new" else None,
                evaluate=evaluator(env, agent, EPISODES),
            )
        )
    return Program(tuple(stages))


def slower(update: Any, factor: float) -> Any:
    """`update` with a learning rate `factor` times as large."""

    def changed(state, hp, batch, key, step):
        return update(state, dataclasses.replace(hp, lr=factor * hp.lr), batch, key, step)

    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description="Returns of merged policies on both tasks")
    parser.add_argument("--new", nargs="+", default=["l=1.5"], help="NAME=VALUE of Pendulum-v1")
    parser.add_argument("--steps", type=int, nargs=2, default=(200_000, 50_000))
    parser.add_argument("--lr-factor", type=float, default=0.3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    jax_setup.start()
    changed = {name: float(value) for name, value in (word.split("=") for word in args.new)}
    made = program(tuple(args.steps), changed, args.lr_factor)
    keys = offline.keys_of(args.first_seed, args.seeds)
    hp = offline.hypers_of(ppo.ALGORITHM, [HYPERS] * args.seeds)
    result = jax.jit(jax.vmap(train(made)))(keys, hp)
    states = [result.states[name] for name in ("old", "new")]
    found = {}
    for name, options in (("old", {}), ("new", changed)):
        env = envs.make("Pendulum-v1", **options)
        found[name] = played(env, made.stages[0].learner, states, hp)
    write(args, found)


def played(env: Env, agent: Any, states: list[Any], hp: Any) -> np.ndarray:
    """Mean returns [W, P] of the merged greedy policies of P members, for all α."""
    play = evaluator(env, agent, EPISODES)

    def of_one(old: Any, new: Any, hp: Any, alpha: Array) -> Array:
        state = merge(old, new, alpha)
        found: Any = play(state, HyperParams(hp), {}, jax.random.key(1))
        return jnp.mean(found.returns)

    members = jax.vmap(of_one, (0, 0, 0, None))
    every = jax.jit(jax.vmap(members, (None, None, None, 0)))
    return np.asarray(every(*states, hp, jnp.float32(ALPHAS)))


def write(args: argparse.Namespace, found: dict[str, np.ndarray]) -> None:
    """Prints and writes intervals of the returns [W, P] of both tasks."""
    both = found["old"] + found["new"]
    ends = np.maximum(both[0], both[-1])
    rows = []
    for i, alpha in enumerate(ALPHAS):
        row = {name: offline.interval(x[i]) for name, x in found.items()}
        row |= {"sum": offline.interval(both[i]), "gain": offline.interval(both[i] - ends)}
        print(f"{alpha:.1f}", *(f"{name} {offline.told(x)}" for name, x in row.items()), sep="  ")
        rows.append({"alpha": float(alpha)} | row)
    settings = {"sizes": SIZES, "hypers": HYPERS, "episodes": EPISODES}
    settings |= {name: str(value) for name, value in vars(args).items()}
    told = {"versions": provenance.versions(), "settings": settings, "rows": rows}
    args.out.mkdir(parents=True, exist_ok=True)
    files.write_json(args.out / "merging.json", told)


if __name__ == "__main__":
    main()
