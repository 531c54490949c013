"""Study: claims of papers on language-model RL, on token tasks.

    python -m jaxrl.experiments.studies.token_claims --out DIR

Each claim says that one variant of `token_pg` ends better than others. Every variant is trained in
DIR/CLAIM-VARIANT at three learning rates; finished runs are not repeated. Half of the seeds choose
the rate by the accuracy at the end. The table, printed and written to DIR/token_claims.json, is of
the other half; the file has training metrics of the last part, too. Accuracy is that of the greedy
policy on all prompts, without prefixes, experts or privileged context, mean over seeds with its
95 % interval. `better` is the probability that a seed of the variant ends above one of the first
variant, ties counting half.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrl.experiments import jax_setup
from jaxrl.experiments.sweep import sweep
from jaxrl.runs import files, provenance
from jaxrl.runs.metrics import by_chunk
from jaxrl.runs.records import RunDir, read_metrics
from jaxrl.runs.stats import bootstrap_ci, probability_of_improvement

RATES = (1e-3, 3e-3, 1e-2)
EVALS = 6
METRICS = ("entropy", "drift", "drift_max", "informative")


class Claim(NamedTuple):
    """A claim, its task, and variants by name: options of `token_pg`; the first is the claim's."""

    text: str
    env: str
    variants: dict[str, dict[str, Any]]


# Sums of numbers of two digits in base 3: 81 prompts, of which a random response solves 1 in 27.
SUMS = "tokens:carry-add"
BASE = {SUMS: {"alphabet": 3}}
FEW = {"pool": 40}  # prompts that are trained on, or have an expert trace
TEACHER = {"sft_updates": 40}
CLAIMS = {
    "spo": Claim(
        "A tracker per prompt replaces the group: one response each, at equal numbers of responses",
        "tokens:modsum",
        {
            "spo": {"objective": "spo", "prompts": 128, "group": 1, "pool": 128},
            "grpo": {"objective": "grpo", "pool": 128},
        },
    ),
    "alp": Claim(
        "Noise in the hidden states keeps ratios to a stale behaviour policy small",
        "tokens:modsum",
        {
            "alp": {"objective": "alp", "staleness": 32},
            "grpo": {"objective": "grpo", "staleness": 32},
        },
    ),
    "alp_rounded": Claim(
        "The same where responses come from parameters of one bit of mantissa",
        "tokens:modsum",
        {
            "alp": {"objective": "alp", "rollout_mantissa": 1},
            "alp-0.1": {"objective": "alp", "rollout_mantissa": 1, "sigma": 0.1},
            "grpo": {"objective": "grpo", "rollout_mantissa": 1},
        },
    ),
    "remix": Claim(
        "Old responses make training faster at first",
        "tokens:modsum",
        {"remix": {"objective": "remix"}, "grpo": {"objective": "grpo"}},
    ),
    "chord": Claim(
        "Fading traces in beats fine-tuning, RL, and one after the other, with few traces",
        SUMS,
        {
            "chord": {"objective": "chord", **FEW},
            "sft": {"objective": "sft", **FEW},
            "ppo": {"objective": "ppo", **FEW},
            "sft-ppo": {"objective": "ppo", "sft_updates": 100, **FEW},
        },
    ),
    "otr": Claim(
        "Own tokens against an expert's generalise better than likelihood of the traces",
        SUMS,
        {"otr": {"objective": "otr", **FEW}, "sft": {"objective": "sft", **FEW}},
    ),
    "prefixrl": Claim(
        "RL after an expert's prefixes also solves prompts without prefixes",
        SUMS,
        {"prefixrl": {"objective": "prefixrl"}, "ppo": {"objective": "ppo"}},
    ),
    "scope_step": Claim(
        "Corrections from the first wrong token on help where success is rare",
        SUMS,
        {"scope_step": {"objective": "scope_step"}, "ppo": {"objective": "ppo"}},
    ),
    "pi_distill": Claim(
        "A teacher with privileged context improves the student without it",
        SUMS,
        {
            "pi_distill": {"objective": "pi_distill", **TEACHER},
            "opsd": {"objective": "opsd", **TEACHER},
            "ppo": {"objective": "ppo", **TEACHER},
        },
    ),
    "lightning_opd": Claim(
        "Distillation on fixed responses ends as well as on own ones",
        SUMS,
        {
            "lightning_opd": {"objective": "lightning_opd", **TEACHER},
            "opd": {"objective": "opd", **TEACHER},
        },
    ),
    "scope_opd": Claim(
        "Weights by the student's and the teacher's confidence improve distillation",
        SUMS,
        {
            "scope_opd": {"objective": "scope_opd", **TEACHER},
            "opd": {"objective": "opd", **TEACHER},
        },
    ),
}


def train(name: str, variant: str, seeds: int, updates: int, out: Path) -> RunDir:
    """Trains one variant of a claim with 2 * seeds seeds per rate, or finds it finished."""
    claim, path = CLAIMS[name], out / f"{name}-{variant}"
    options = {"updates": updates} | claim.variants[variant]
    sweep(
        "token_pg",
        env=claim.env,
        env_options=BASE.get(claim.env, {}),
        agent=options,
        sweep={"agent.lr": list(RATES)},
        seeds=2 * seeds,
        evals=EVALS,
        eval_episodes=500,
        out=path,
    )
    return RunDir(path / "000")


def outcome(run: RunDir, seeds: int) -> dict[str, Any]:
    """The rate that the second half of the seeds chooses, and the first half's accuracies."""
    members = run.members()
    rows = by_chunk(read_metrics(run, "agent"), len(members["id"]))
    accuracy = rows["return"].astype(float)  # [C, P]
    own = lambda rate, half: np.isclose(members["agent.lr"], rate) & half
    choosing = members["seed"] >= seeds
    rate = max(RATES, key=lambda rate: accuracy[-1, own(rate, choosing)].mean())
    found = accuracy[:, own(rate, ~choosing)]
    last = {name: float(np.mean(rows[name][-1, own(rate, ~choosing)])) for name in METRICS}
    ends = {"early": found[EVALS // 3 - 1].tolist(), "end": found[-1].tolist()}
    return {"lr": rate, **ends, **last}


def told(found: Sequence[dict[str, Any]]) -> str:
    lines = ["| claim | variant | lr | accuracy, a third | accuracy, end | better |"]
    lines.append("|---" * 6 + "|")
    first: dict[str, Any] = {}
    for row in found:
        if row["claim"] != first.get("claim"):
            first = row
        cells = [
            "{:.2f} ({:.2f} to {:.2f})".format(np.mean(x), *bootstrap_ci(np.asarray(x), np.mean))
            for x in (row["early"], row["end"])
        ]
        better = probability_of_improvement(np.asarray(row["end"]), np.asarray(first["end"]))
        cells.append("" if row is first else f"{better:.2f}")
        name, variant, rate = row["claim"], row["variant"], row["lr"]
        lines.append(f"| {name} | `{variant}` | {rate:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Claims of papers on language-model RL")
    parser.add_argument("--claims", nargs="+", default=list(CLAIMS), choices=list(CLAIMS))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    jax_setup.start()
    found = []
    for name in args.claims:
        for variant in CLAIMS[name].variants:
            run = train(name, variant, args.seeds, args.updates, args.out)
            found.append({"claim": name, "variant": variant, **outcome(run, args.seeds)})
    about = {"versions": provenance.versions(), "rows": found}
    files.write_json(args.out / "token_claims.json", about)
    print(told(found))


if __name__ == "__main__":
    main()
