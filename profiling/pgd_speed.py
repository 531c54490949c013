"""Speed of PGD's trajectory generation, and its fraction of the time of a run.

    python profiling/pgd_speed.py [--features 16 32 64] [--steps 32] [--json FILE]

Observations have 6 elements, actions 2; trajectories of 32 steps; the guiding and learning agent is
IQL with 2 x 256. Without compilation; CPU seconds (all threads), medians of repeats:

    unguided, guided    trajectories per second
    model               updates of the diffusion model per second, 32 windows each
    agent               updates of IQL per second, 256 rows each
    share               fraction of the agent stage spent on generation, for `--set` trajectories
                        every `--every` updates
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

from jaxrl.agents import iql, pgd, pgd_iql
from jaxrl.experiments import jax_setup
from jaxrl.runs import files, provenance
from jaxrl.trajectories import DiffusionState, diffuser
from jaxrl.types import Array, Batch, Box, EnvSpec, PyTree, Transition

OBS, ACT, UPDATES = 6, 2, 10
SPEC = EnvSpec("dmsd", (OBS,), Box((-1.0,) * ACT, (1.0,) * ACT, (ACT,)), 100)


def dataset(*axes: int) -> Transition:
    """Random rows."""
    rng = np.random.default_rng(0)
    number = lambda *shape: jnp.asarray(rng.uniform(-1, 1, (*axes, *shape)), jnp.float32)
    never = jnp.zeros(axes, bool)
    mark = {"learn": ~never, "look": never}
    return Transition(number(OBS), number(ACT), number(), number(OBS), never, never, never, mark)


def repeated(update: Callable[..., Any], hp: Any, batch: Batch) -> Callable[[PyTree], PyTree]:
    """A program of `UPDATES` updates on one batch."""

    def run(state: PyTree) -> PyTree:
        def one(i: Array, state: PyTree) -> PyTree:
            return update(state, hp, batch, jax.random.fold_in(jax.random.key(0), i), i)[0]

        return jax.lax.fori_loop(0, UPDATES, one, state)

    return run


def seconds(run: Callable[..., PyTree], *args: Any, repeats: int) -> float:
    """Median CPU seconds of a call."""
    compiled = jax.jit(run).lower(*args).compile()
    jax.block_until_ready(compiled(*args))
    found = []
    for _ in range(repeats):
        start = time.process_time()
        jax.block_until_ready(compiled(*args))
        found.append(time.process_time() - start)
    return statistics.median(found)


def measure(cfg: pgd_iql.Config, repeats: int) -> dict[str, float]:
    hp, key = jax.tree.map(jnp.float32, pgd_iql.Hypers()), jax.random.key(0)
    learner, agent = diffuser(cfg, SPEC), iql.make(cfg, SPEC)
    model = jax.jit(learner.init)(key, hp, {"data": dataset(1000)})
    policy = jax.jit(agent.init)(key, hp, {})
    each = {}
    for kind, log_prob in {"unguided": None, "guided": iql.log_prob(cfg, SPEC)}.items():
        sample = pgd.sampler(cfg, SPEC, log_prob)

        def some(model: DiffusionState, policy: iql.State, sample: Any = sample) -> Array:
            return sample(model, policy, hp, key, cfg.sample_batch, jnp.float32(1))

        each[kind] = cfg.sample_batch / seconds(some, model, policy, repeats=repeats)
    windows = Batch(dataset(cfg.model_batch, cfg.horizon))
    learn = repeated(learner.update, hp, windows)
    each["model"] = UPDATES / seconds(learn, model, repeats=repeats)
    rows = Batch(dataset(cfg.batch_size))
    each["agent"] = UPDATES / seconds(repeated(agent.update, hp, rows), policy, repeats=repeats)
    making, learning = cfg.trajectories / each["guided"], cfg.generate_every / each["agent"]
    return each | {"share": making / (making + learning)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of policy-guided diffusion")
    parser.add_argument("--features", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--steps", type=int, default=32, help="of the sampler")
    parser.add_argument("--batch", type=int, default=256, help="trajectories made together")
    parser.add_argument("--set", type=int, default=1024, help="trajectories of a set")
    parser.add_argument("--every", type=int, default=5000, help="updates between sets")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    jax_setup.start()
    columns = ("unguided", "guided", "model", "agent", "share")
    print("features" + "".join(f"{name:>10}" for name in columns))
    rows = []
    for features in args.features:
        cfg = pgd_iql.Config(
            model_features=features,
            sampler_steps=args.steps,
            sample_batch=args.batch,
            trajectories=args.set,
            generate_every=args.every,
        )
        found = measure(cfg, args.repeats)
        rows.append({"features": features} | found)
        print(f"{features:>8}" + "".join(f"{found[name]:>10.3g}" for name in columns), flush=True)
    if args.json:
        files.write_json(args.json, {"versions": provenance.versions(), "rows": rows})


if __name__ == "__main__":
    main()
