"""Study: retrieved rows against demonstrations alone, all rows, and an oracle's choice.

    python -m jaxrl.experiments.studies.retrieval --out DIR

`reaching` with hidden goals. One demonstration (`--demonstrations`) walks to one corner. The prior
data have 100 episodes that walk there, label 1, 100 that walk to the opposite corner, and 50 of
random actions, label 0. Behaviour cloning of the demonstrations with: no more rows, all prior rows,
those that `jaxrl data retrieve` keeps at several thresholds, those of label 1 among the ones kept
at the chosen threshold ("right"), and all those of label 1 ("oracle"). Eight seeds, each with its
own demonstrations, prior data and autoencoder. DIR/retrieval.json has all success rates, and
precision and recall of the retrieved rows. Settings were chosen on seeds from 100.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import retrieval
from jaxrl.agents import bc
from jaxrl.evaluate import evaluator
from jaxrl.experiments import jax_setup
from jaxrl.experiments.commands import RetrieveOptions
from jaxrl.experiments.data.retrieve import score
from jaxrl.experiments.studies import offline, reaching
from jaxrl.exploration import random_policy
from jaxrl.fitting import fit
from jaxrl.runs import files, provenance
from jaxrl.types import HyperParams, Transition

CFG = bc.Config(batch_size=128, hidden=(64, 64), normalise_obs=False)
UPDATES, RATE, VAE = 2_000, 1e-3, 2_500
GOAL, OTHER = 0, 2
PRIOR, ROWS = 4_000, 40  # prior rows, and rows per demonstration, whose rows are repeated
THRESHOLDS, CHOSEN = (0.5, 0.6, 0.7, 0.8, 0.9), 0.7
PADDED = 16_384  # rows of all datasets, so that one program serves all


def data_of(seed: int, demonstrations: int) -> tuple[Transition, Transition, np.ndarray]:
    """Demonstrations, prior rows, and the labels [D] of these."""
    env = reaching.make((GOAL,), told=False)
    demos = reaching.demonstrations(env, reaching.walker(GOAL), demonstrations, 1000 + seed)
    away = reaching.make((OTHER,), told=False)
    parts = [
        reaching.demonstrations(env, reaching.walker(GOAL), 100, 2000 + seed),
        reaching.demonstrations(away, reaching.walker(OTHER), 100, 3000 + seed),
        reaching.demonstrations(env, random_policy(env.spec.action), 50, 4000 + seed),
    ]
    useful = np.repeat([True, False, False], [len(t.reward) for t in parts])
    # Equal numbers of rows for all seeds, so that programs are compiled once.
    some = np.random.default_rng(seed).permutation(len(useful))[:PRIOR]
    prior = jax.tree.map(lambda x: x[some], reaching.joined(parts))
    again = np.resize(np.arange(len(demos.reward)), ROWS * demonstrations)
    return jax.tree.map(lambda x: x[again], demos), prior, useful[some]


def main() -> None:
    parser = argparse.ArgumentParser(description="Behavior Retrieval on a task with known labels")
    parser.add_argument("--demonstrations", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    jax_setup.start()
    env = reaching.make((GOAL,), told=False)
    agent = bc.make(CFG, env.spec)
    hp = jax.tree.map(jnp.float32, bc.Hypers(lr=RATE))
    play = evaluator(env, agent, 200)

    @jax.jit
    def learn(key: jax.Array, rows: Transition) -> jax.Array:
        """Success of the clone of rows."""
        state = fit(agent, hp, rows, key, UPDATES, CFG.batch_size)
        found: Any = play(state, HyperParams(hp), {}, jax.random.key(7))
        return jnp.mean(found.returns)

    def clone(seed: int, demos: Transition, more: Transition) -> float:
        """Success of the clone of demonstrations and other rows, half of each in expectation."""
        rng, count = np.random.default_rng(seed), len(more.reward)
        half = PADDED // 2 if count else PADDED

        def drawn(t: Transition, size: int) -> Transition:
            rows = rng.integers(0, len(t.reward), size)
            return jax.tree.map(lambda x: x[rows], t)

        some = drawn(demos, half)
        if count:
            some = reaching.joined([some, drawn(more, PADDED - half)])
        return float(learn(offline.keys_of(seed, 1)[0], jax.tree.map(jnp.asarray, some)))

    rates: dict[str, list[float]] = {}
    quality: dict[str, list[float]] = {}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        demos, prior, useful = data_of(seed, args.demonstrations)
        kept = {"demonstrations": np.zeros(len(useful), bool), "all": np.ones(len(useful), bool)}
        own = score(prior, demos, RetrieveOptions(updates=VAE, seed=seed))
        kept |= {f"retrieved {at}": own >= at for at in THRESHOLDS} | {"oracle": useful}
        kept[f"right {CHOSEN}"] = (own >= CHOSEN) & useful
        for name, rows in kept.items():
            chosen = jax.tree.map(lambda x: x[rows], prior)  # noqa: B023
            rates.setdefault(name, []).append(clone(seed, demos, chosen))
            for key, x in zip(
                ("precision", "recall"), retrieval.precision_recall(rows, useful), strict=True
            ):
                quality.setdefault(f"{name}: {key}", []).append(x)
    found = {name: offline.interval(np.array(x)) for name, x in rates.items()}
    for name, x in found.items():
        two = [np.mean(quality[f"{name}: {key}"]) for key in ("precision", "recall")]
        print(f"{name:<15} {offline.told(x)}  precision {two[0]:.3f} recall {two[1]:.3f}")
    settings = {
        "demonstrations": args.demonstrations,
        "updates": UPDATES,
        "autoencoder": VAE,
        "lr": RATE,
    }
    told = {"versions": provenance.versions(), "settings": settings, "success": found}
    files.write_json(args.out / "retrieval.json", told | {"quality": quality})


if __name__ == "__main__":
    main()
