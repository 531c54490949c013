"""Study: success on old and new goals against the weight of merging (`jaxrl.merging`).

    python -m jaxrl.experiments.studies.merging --out DIR

Behaviour cloning on 300 demonstrations of three goals of `reaching`, then fine-tuning on ten
demonstrations of the fourth goal alone, ten seeds. θ = (1 - α) θ_old + α θ_new is evaluated on the
old goals and on the new one. DIR/merging.json has the success rates of all seeds, their mean
over both tasks, and the gain of each seed in this mean over the better one of the two policies.
Settings were chosen on seeds from 100.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.agents import bc
from jaxrl.experiments import jax_setup
from jaxrl.experiments.studies import offline, reaching
from jaxrl.fitting import fit
from jaxrl.merging import merge
from jaxrl.runs import files, provenance

CFG = bc.Config(batch_size=128, hidden=(64, 64), normalise_obs=False)
BEFORE, AFTER, RATE = 5_000, 1_000, 1e-3
ALPHAS = tuple(np.linspace(0, 1, 11).round(2).tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description="Merging of policies before and after fine-tuning")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=AFTER, help="of fine-tuning")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    jax_setup.start()
    old, new = reaching.make((0, 1, 2)), reaching.make((3,))
    walker, agent = reaching.walker(None), bc.make(CFG, old.spec)
    hp = jax.tree.map(jnp.float32, bc.Hypers(lr=RATE))
    first = reaching.demonstrations(old, walker, 300, 500 + args.first_seed)
    keys = offline.keys_of(args.first_seed, args.seeds)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    learn = lambda key, rows: fit(agent, hp, rows, key, BEFORE, CFG.batch_size)
    before = jax.jit(jax.vmap(learn, (0, None)))(keys, jax.tree.map(jnp.asarray, first))
    second = [reaching.demonstrations(new, walker, 10, 1000 + seed) for seed in seeds]
    size = min(len(t.reward) for t in second)  # rows of one shape for all members
    rows = jax.tree.map(lambda *x: jnp.stack([each[:size] for each in x]), *second)
    tune = lambda key, rows, state: fit(agent, hp, rows, key, args.updates, CFG.batch_size, state)
    after = jax.jit(jax.vmap(tune))(keys, rows, before)
    rates = {
        name: np.array([reaching.success(env, agent, merge(before, after, x), hp) for x in ALPHAS])
        for name, env in (("old", old), ("new", new))
    }
    rates["mean"] = (rates["old"] + rates["new"]) / 2
    rates["gain"] = rates["mean"] - np.maximum(rates["mean"][0], rates["mean"][-1])
    found = []
    for i, alpha in enumerate(ALPHAS):
        row = {name: offline.interval(x[i]) for name, x in rates.items()}
        print(f"{alpha:.1f}", *(f"{name} {offline.told(x)}" for name, x in row.items()), sep="  ")
        found.append({"alpha": alpha} | row)
    settings = {"before": BEFORE, "after": args.updates, "lr": RATE}
    told = {"versions": provenance.versions(), "settings": settings, "rows": found}
    files.write_json(args.out / "merging.json", told)


if __name__ == "__main__":
    main()
