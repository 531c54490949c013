"""Experiments with objectives of language-model RL."""

from __future__ import annotations

from jaxrl.experiments.reproductions.record import Reproduction, study

TOKENS = (
    Reproduction(
        "token-staleness",
        "token_pg",
        "Objectives for off-policy responses learn where plain REINFORCE fails.",
        study(
            "staleness --envs modsum --objectives reinforce ppo topr opmd --updates 400 "
            "--out runs/token-staleness"
        ),
        study("staleness --out runs/token-staleness-full"),
        "curves of large models",
        minutes=6.91,
        full_minutes=41.4,
    ),
    Reproduction(
        "token-claims",
        "token_pg",
        "Traces, prefixes, corrections and teachers help in the way that their papers say.",
        study("token_claims --claims prefixrl pi_distill --out runs/token-claims"),
        study("token_claims --updates 600 --out runs/token-claims-full"),
        "benchmarks of large models",
        minutes=2.76,
        full_minutes=11.1,
    ),
    Reproduction(
        "token-exact",
        "token_pg",
        "Two paths keep pass@k; distillation on fixed responses needs the teacher of the start.",
        study("token_exact --parts paths --seeds 3 --updates 100 --out runs/token_exact.json"),
        study("token_exact --out runs/token_exact-full.json"),
        "benchmarks of large models",
        minutes=1.67,
        full_minutes=8.72,
    ),
    Reproduction(
        "token-signal",
        "token_pg",
        "A tracker of success rates gives gradients with less noise than groups of responses.",
        study("token_signal --seeds 3 --updates 20 --out runs/token_signal.json"),
        study("token_signal --out runs/token_signal-full.json"),
        "variances at large models",
        minutes=0.47,
        full_minutes=0.635,
    ),
)
