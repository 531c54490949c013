"""Cost of CDSA's corrections per action, in microseconds.

    python profiling/cdsa_speed.py [--calls 200] [--json FILE]

The base policy is deterministic with two layers of 256 (as in bc and td3bc), in the sizes of
hopper. Score networks have 3 x 256 units, the noise ladder 4 levels with 3 steps each (the
defaults). Reported is the median wall time of a compiled call divided by the batch size, without
compilation.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import scores
from jaxrl.agents import bc, cdsa
from jaxrl.experiments import jax_setup
from jaxrl.policies import Trained
from jaxrl.runs import files, provenance
from jaxrl.spaces import box_scale
from jaxrl.types import Array, Box, EnvSpec, Policy, PyTree, Transition

OBS, ACT, ROWS = 11, 3, 1000
SPEC = EnvSpec("hopper", (OBS,), Box((-1.0,) * ACT, (1.0,) * ACT, (ACT,)), 1000)
CORRECTIONS: tuple[Any, ...] = ("action", "next", "current", "both")


def dataset() -> Transition:
    """Random rows [D]."""
    rng = np.random.default_rng(0)
    number = lambda *shape: jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32)
    never = jnp.zeros(ROWS, bool)
    obs, action, after = number(ROWS, OBS), number(ROWS, ACT), number(ROWS, OBS)
    return Transition(obs, action, number(ROWS), after, never, never, never)


def policies() -> dict[str, tuple[Policy, PyTree, Any]]:
    """(policy, state, hyperparameters) of the base policy and of each correction, by name."""
    inputs, key = {"data": dataset()}, jax.random.key(0)
    agent, own = bc.make(bc.Config(), SPEC), jax.tree.map(jnp.float32, bc.Hypers())
    base = Trained(agent.init(key, own, inputs), own)
    found: dict[str, tuple[Policy, PyTree, Any]] = {"base": (agent, *base)}
    for correction in CORRECTIONS:
        cfg, hp = cdsa.Config(correction=correction), jax.tree.map(jnp.float32, cdsa.Hypers())
        net = cdsa.networks(cfg, SPEC, box_scale("cdsa", SPEC))
        model = scores.trained(net, cdsa.modeller(cfg, SPEC).init(key, hp, inputs))
        policy = cdsa.corrected_policy(agent, cfg, SPEC)
        found[correction] = (policy, cdsa.CorrectedState(base, model), hp)
    return found


def measure(policy: Policy, state: PyTree, hp: Any, batch: int, calls: int) -> float:
    """Microseconds per action, median over calls."""

    @jax.jit
    def act(state: PyTree, hp: Any, obs: Array) -> Array:
        noise = policy.noise(jax.random.key(0), batch)
        start, memory = jnp.zeros(batch, bool), policy.memory(batch)
        return policy.act(state, hp, obs, start, memory, noise, False)[0]

    obs = jax.random.normal(jax.random.key(1), (batch, OBS))
    run = act.lower(state, hp, obs).compile()
    times = []
    for _ in range(calls + 5):
        clock = time.perf_counter()
        jax.block_until_ready(run(state, hp, obs))
        times.append(time.perf_counter() - clock)
    return 1e6 * statistics.median(times[5:]) / batch


def main() -> None:
    parser = argparse.ArgumentParser(description="CDSA's corrections at decision time")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 1024])
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    jax_setup.start()
    batches, rows = args.batches, []
    print(f"microseconds per action\n{'batch':<10}" + "".join(f"{b:>12,}" for b in batches))
    for name, found in policies().items():
        taken = {str(batch): measure(*found, batch, args.calls) for batch in batches}
        rows.append({"policy": name} | taken)
        print(f"{name:<10}" + "".join(f"{t:>12.3g}" for t in taken.values()), flush=True)
    if args.json:
        files.write_json(args.json, {"versions": provenance.versions(), "rows": rows})


if __name__ == "__main__":
    main()
