"""Study: claims on distillation whose measures are expectations, by enumeration.

    python -m jaxrl.experiments.studies.token_exact --out FILE

`token_pg` is fine-tuned on an expert's traces of 40 of the 81 sums of two numbers in base 3, then
trained with an objective on the same prompts. Exact measures over all prompts and responses:

    pass@k   probability that one of k responses is accepted
    KL       Σ_t KL(π ‖ π_T) along responses of π, in nats; π_T is the teacher of the objective

Parts:

    paths      pass@k of SCOPE's two paths, distillation and GRPO, against the fine-tuned policy
    teachers   OPD and Lightning OPD with the teacher of the fine-tuning, which hardly errs, and
               with one that errs with probability 1/2

Further seeds choose the learning rate, by pass@1 and by the KL.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxrl
from jaxrl import envs
from jaxrl.agents import token_pg
from jaxrl.envs import tokens
from jaxrl.experiments import jax_setup
from jaxrl.experiments.studies.enumerated import (
    divergence,
    every_log_prob,
    listed,
    pass_at,
    success,
)
from jaxrl.experiments.studies.offline import keys_of
from jaxrl.objectives.table import OBJECTIVES
from jaxrl.runs import files, provenance
from jaxrl.runs.stats import bootstrap_ci
from jaxrl.sequence import SequenceParams, sequence_model
from jaxrl.types import Array

ALPHABET, LEARNED = 3, 40  # digits, and prompts that are trained on
RATES = (1e-3, 3e-3, 1e-2)
KS = (1, 8, 32)
PARTS: dict[str, tuple[str, list[tuple[str, float]]]] = {  # measure, (objective, noise) per row
    "paths": ("pass@1", [(name, 0.05) for name in ("scope_opd", "opd", "grpo")]),
    "teachers": (
        "kl",
        [(name, noise) for noise in (0.01, 0.5) for name in ("opd", "lightning_opd")],
    ),
}


def measures(
    objective: str, noise: float, lr: float, updates: int, seeds: range
) -> list[dict[str, np.ndarray]]:
    """Measures [P] of the policies of the seeds, after fine-tuning and at the end."""
    env = envs.make("tokens:carry-add", alphabet=ALPHABET)
    cfg = token_pg.Config(objective=objective, updates=updates, pool=LEARNED, sft_updates=40)
    run = jaxrl.train(token_pg.program(cfg, env, evals=1, episodes=1))
    keys = keys_of(seeds.start, len(seeds))
    taught = "teacher_noise" in OBJECTIVES[objective].uses
    hp = token_pg.Hypers(lr=lr, teacher_noise=noise) if taught else token_pg.Hypers(lr=lr)
    state = jax.jit(jax.vmap(run, (0, None)))(keys, hp).state
    model = sequence_model(cfg.embedding, cfg.memory, env.spec)
    task = listed(tokens.task("carry-add", ALPHABET))

    def measured(params: SequenceParams) -> dict[str, Array]:
        log_probs = every_log_prob(model, params, task)
        p = success(log_probs, task)
        found = {f"pass@{k}": pass_at(k, p) for k in KS}
        return found | {"kl": divergence(log_probs, task, noise)}

    each = jax.jit(jax.vmap(measured))
    return [jax.device_get(each(params)) for params in (state.reference, state.params)]


def row(objective: str, noise: float, measure: str, seeds: int, updates: int) -> dict[str, Any]:
    """Measures of the first `seeds` seeds, with the rate that as many further ones choose."""
    sign = -1 if measure == "kl" else 1
    others = range(seeds, 2 * seeds)
    mean = lambda lr: measures(objective, noise, lr, updates, others)[1][measure].mean()
    lr = max(RATES, key=lambda lr: sign * mean(lr))
    found = measures(objective, noise, lr, updates, range(seeds))
    before, after = ({name: x.tolist() for name, x in one.items()} for one in found)
    return {
        "objective": objective,
        "teacher_noise": noise,
        "lr": lr,
        "fine-tuned": before,
        "end": after,
    }


def told(rows: list[dict[str, Any]]) -> str:
    """A markdown table: means over seeds, with 95 % intervals."""
    names = list(rows[0]["end"])
    lines = ["| objective | teacher errs | lr | policy | " + " | ".join(names) + " |"]
    lines.append("|---" * (4 + len(names)) + "|")
    for one in rows:
        for policy in ("fine-tuned", "end"):
            each = [np.asarray(one[policy][name]) for name in names]
            cells = ["{:.3f} ({:.3f} to {:.3f})".format(x.mean(), *interval(x)) for x in each]
            head = f"| `{one['objective']}` | {one['teacher_noise']:g} | {one['lr']:g} | {policy} "
            lines.append(head + "| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def interval(x: np.ndarray) -> tuple[float, float]:
    return bootstrap_ci(x, np.mean)


def main() -> None:
    parser = argparse.ArgumentParser(description="Exact measures of distillation")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    jax_setup.start()
    found = {}
    for part in args.parts:
        measure, kinds = PARTS[part]
        found[part] = [row(*kind, measure, args.seeds, args.updates) for kind in kinds]
        print(f"{part}\n{told(found[part])}\n", flush=True)
    files.write_json(args.out, {"versions": provenance.versions(), "parts": found})


if __name__ == "__main__":
    main()
