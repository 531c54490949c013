"""Short forms of the studies in the full settings of `jaxrl reproduce`.

The time of a study is a weighted sum of times: of two forms of different sizes, which give the time
per update or per seed, of parts that the whole study repeats, or of commands that train the same.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxrl.experiments.reproductions.record import DMSD

STUDY = "python -m jaxrl.experiments.studies."


class Short(NamedTuple):
    """A command, and how much its time counts; a command of jaxrl is not run but expected."""

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


# What the studies train, as commands.
GUIDANCE = (
    "jaxrl train pgd_iql --env {} --data {} --seeds 1 --evals 1 --eval-episodes 1 "
    "--agent.hidden 64 64 --agent.updates 3000 --agent.generate-every 500 --agent.trajectories 256 "
    "--agent.model-updates 30000 --agent.model-features 16 --agent.ensemble-hidden 64 64 "
    "--agent.ensemble-epochs 30 --agent.horizon {} --agent.stride {}"
)
TOKENS = (
    "jaxrl sweep token_pg --env tokens:{} --agent.objective {} --agent.updates 600 "
    "--sweep agent.lr=1e-3,3e-3,1e-2 --evals 6 "
)
EXACT = (
    "jaxrl train token_pg --env tokens:carry-add --env-options alphabet=3 --agent.objective opd "
    "--agent.updates 400 --agent.pool 40 --agent.sft-updates 40 --seeds 8 --evals 1 "
    "--eval-episodes 1"
)
STALE = TOKENS + "--seeds 8 --eval-episodes 125 --sweep agent.staleness=0,8,32"
CLAIM = TOKENS + "--seeds 16 --eval-episodes 500"
DIGITS = " --env-options alphabet=3"
MAZE = "data/maze-medium-diverse.npz"
RANKING = "ope_ranking --task {} --level medium --out ope-{}"
TASKS = {"cartpole": 1, "pendulum": 2}
EXTRACTION = f"baselines --task dmsd --data {DMSD} --out extraction --agent "

STUDIES: dict[str, tuple[Short, ...]] = {
    "pqn-stability": once("baird --seeds 20 --updates 200000 --out baird"),
    # Twelve methods of each number of critics.
    "ravl-grid": linear(
        "edge_of_reach --grid --seeds 5 --out reach-{0} --updates {0} "
        "--methods n2-r1-eta0.03 n10-r1-eta0.03 n50-r1-eta0.03",
        (50, 300),
        8_000,
        12,
    ),
    # A model, a policy, and six generations of trajectories; the hopper counts as DMSD.
    "pgd-error": (
        Short(GUIDANCE.format("maze:medium", MAZE, 8, 2), 1),
        Short(GUIDANCE.format("dmsd", DMSD, 32, 8), 2),
    ),
    # Both grids have the same numbers of points.
    "famo2o-balance": linear("balance --grid small --seeds {0} --out balance", (1, 4), 20, 2),
    # 20 objectives in two environments.
    "token-staleness": (
        Short(STALE.format("modsum", "ppo"), 20),
        Short(STALE.format("carry-add", "ppo") + DIGITS, 20),
    ),
    # Nine variants on one task and 17 on the other.
    "token-claims": (
        Short(CLAIM.format("modsum", "grpo"), 9),
        Short(CLAIM.format("carry-add", "ppo") + DIGITS, 17),
    ),
    # Seven rows, each at three rates and with further seeds.
    "token-exact": (Short(EXACT, 7 * 4),),
    "token-signal": once("token_signal --out signal.json"),
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
    "bc-merging": once("merging --seeds 30 --out merging"),
}
