"""Study: does the peak of the mean Q of the dataset's actions show the checkpoint to choose?

    python -m jaxrl.experiments.studies.peak --data FILE --trajectories 20 --out DIR

CQL on the first N episodes of a dataset of DMSD, ten seeds as members of one program, twenty
evaluations. For each seed the return at the peak of Q (`jaxrl.diagnosis.peak`), at the end, and at
the best evaluation, which needs the environment; Spearman's rank correlation of Q and return over
evaluations; the fall of Q. `--correction` trains with one of `jaxrl.corrections`.

DIR/peak-N-CORRECTION.json has all values. Settings were chosen on seeds from 100.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from jaxrl import diagnosis, envs
from jaxrl.agents import cql
from jaxrl.envs import datasets
from jaxrl.experiments import jax_setup
from jaxrl.experiments.studies import offline
from jaxrl.ope.metrics import rank_correlation
from jaxrl.runs import files, provenance

SIZES = {"batch_size": 64, "samples": 2, "hidden": (64, 64)}
HYPERS = {"lr": 1e-3, "actor_lr": 3e-4, "weight": 5.0, "reward_shift": -4.0}
STRENGTH = {"none": 0.0, "vib": 1e-2, "dropout": 0.1, "dr3": 1e-3}


def main() -> None:
    parser = argparse.ArgumentParser(description="The checkpoint at the peak of Q against the last")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trajectories", type=int, required=True)
    parser.add_argument("--correction", default="none", choices=list(STRENGTH))
    parser.add_argument("--strength", type=float)
    parser.add_argument("--updates", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    jax_setup.start()
    rows = offline.episodes_of(datasets.load(args.data), 0, args.trajectories)
    cfg = cql.Config(**SIZES, updates=args.updates, correction=args.correction)  # type: ignore[arg-type]
    strength = STRENGTH[args.correction] if args.strength is None else args.strength
    hypers = HYPERS | {"strength": strength}
    keys = offline.keys_of(args.first_seed, args.seeds)
    hp = offline.hypers_of(cql.ALGORITHM, [hypers] * args.seeds)
    run = offline.trainer(cql.ALGORITHM, cfg, envs.make("dmsd"), evals=20)
    result = run(keys, hp, rows)
    q, returns = offline.metric(result, "q"), offline.returns(result)
    at = np.array([diagnosis.peak(x) for x in q])
    each = np.arange(len(at))
    found = {
        "peak": offline.interval(returns[each, at]),
        "last": offline.interval(returns[:, -1]),
        "gain": offline.interval(returns[each, at] - returns[:, -1]),
        "best": offline.interval(returns.max(1)),
        "rank": offline.interval(
            np.array([rank_correlation(a, b) for a, b in zip(q, returns, strict=True)])
        ),
        "fall": offline.interval(np.array([diagnosis.fall(x) for x in q])),
    }
    name = f"peak-{args.trajectories}-{args.correction}"
    print(name, *(f"{key} {offline.told(x)}" for key, x in found.items()), sep="\n  ", flush=True)
    curves = {key: offline.metric(result, key).tolist() for key in ("q", "td_error", "regulariser")}
    settings = {"sizes": SIZES, "hypers": hypers} | {k: str(v) for k, v in vars(args).items()}
    told = {"versions": provenance.versions(), "settings": settings, "at": at.tolist()} | found
    files.write_json(args.out / f"{name}.json", told | curves | {"return": returns.tolist()})


if __name__ == "__main__":
    main()
