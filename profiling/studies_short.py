"""Short forms of the studies in the full settings of `jaxrl reproduce`.

The time of a study is a weighted sum of the times of short forms: of two forms of different sizes,
which give the time per update or per seed, or of parts that the whole study repeats.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxrl.experiments.reproductions.record import DMSD

STUDY = "python -m jaxrl.experiments.studies."


class Short(NamedTuple):
    """A command, and how much its time counts."""

    command: str
    weight: float


def once(words: str, weight: float = 1.0) -> tuple[Short, ...]:
    """A part that the study repeats `weight` times."""
    return (Short(STUDY + words, weight),)


def linear(words: str, sizes: tuple[int, int], full: int, weight: float = 1) -> tuple[Short, ...]:
    """The line through two sizes, {} in `words`, at the size `full`."""
    low, high = sizes
    share = (full - low) / (high - low)
    return (
        Short(STUDY + words.format(low), weight * (1 - share)),
        Short(STUDY + words.format(high), weight * share),
    )


GUIDANCE = "guidance --env {} --data {} --horizon {} --out {} --model-updates {{}}"
MAZE, HOPPER = "data/maze-medium-diverse.npz", "data/brax-hopper-medium.npz"
RANKING = "ope_ranking --task {} --level medium --out ope-{}"
TASKS = {"cartpole": 1, "pendulum": 2}
EXTRACTION = f"baselines --task dmsd --data {DMSD} --out extraction --agent "

STUDIES: dict[str, tuple[Short, ...]] = {
    "pqn-stability": linear(
        "baird --seeds 20 --out baird-{0} --updates {0}", (2_000, 30_000), 200_000
    ),
    # Twelve methods of each number of critics.
    "ravl-grid": linear(
        "edge_of_reach --grid --seeds 5 --out reach-{0} --updates {0} "
        "--methods n2-r1-eta0.03 n10-r1-eta0.03 n50-r1-eta0.03",
        (50, 300),
        8_000,
        12,
    ),
    "pgd-error": (
        *linear(GUIDANCE.format("maze:medium", MAZE, 8, "maze"), (100, 1_000), 30_000),
        *linear(GUIDANCE.format("dmsd", DMSD, 32, "dmsd"), (100, 700), 30_000),
        *linear(GUIDANCE.format("brax:hopper", HOPPER, 32, "hopper"), (100, 700), 30_000),
    ),
    # Both grids have the same numbers of points.
    "famo2o-balance": linear("balance --grid small --seeds {0} --out balance", (1, 4), 20, 2),
    # 20 objectives, of which one is run.
    "token-staleness": tuple(
        short
        for env in ("modsum", "carry-add")
        for short in linear(
            f"staleness --envs {env} --objectives ppo --out {env}-{{0}} --updates {{0}}",
            (10, 40),
            600,
            20,
        )
    ),
    # Nine variants on one task and 17 on the other; two of each are run.
    "token-claims": (
        *linear("token_claims --claims alp --out alp-{0} --updates {0}", (10, 40), 600, 9 / 2),
        *linear(
            "token_claims --claims prefixrl --out pre-{0} --updates {0}", (10, 40), 600, 17 / 2
        ),
    ),
    # Three of seven rows.
    "token-exact": linear(
        "token_exact --parts paths --out exact-{0}.json --updates {0}", (5, 25), 400, 7 / 3
    ),
    "token-signal": linear("token_signal --out signal-{0}.json --seeds {0}", (1, 2), 8),
    # The first of twenty seeds trains the candidates as well; Acrobot counts as Pendulum.
    "ope-ranking": tuple(
        short
        for task, count in TASKS.items()
        for short in (
            *once(RANKING.format(task, task) + " --seeds 0", count),
            *once(RANKING.format(task, task) + " --seeds 1", 19 * count),
            *once(RANKING.format(task, task), 2 * count),
        )
    ),
    "prdc-hole": (
        *once(f"baselines --task dmsd --data {DMSD} --out hole --agent td3bc"),
        *once(f"baselines --task dmsd --data {DMSD} --out hole --agent prdc", 2),
    ),
    "iql-extraction": (
        *once(EXTRACTION + "iql-awr", 2),
        *once(EXTRACTION + "iql-4", 2),
        *once(EXTRACTION + "iql-64", 2),
    ),
    # Only the rows differ between the three.
    "cql-peak": linear(
        f"peak --data {DMSD} --trajectories 100 --out peak-{{0}} --updates {{0}}",
        (200, 1_000),
        10_000,
        3,
    ),
    "bc-retrieval": linear("retrieval --seeds {0} --out retrieval", (1, 3), 20),
    "bc-merging": linear("merging --seeds {0} --out merging", (2, 10), 30),
}
