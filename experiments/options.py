"""Options of training runs and sweeps, in addition to the settings of the agent."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from jaxrl.ranges import bounded


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of every training run, in addition to the settings of the agent."""

    env: str
    """environment: a name from `jaxrl list envs`, or module:attribute or file.py:attribute for a
    custom environment"""
    env_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """settings of the environment, for example gravity=1.6; all environments accept max_steps=200,
    hide=[1,3] (indices of hidden observation elements; with hide_from=policy critics see them),
    sticky=0.25, normalise_obs=true, normalise_reward=0.99"""
    data: Path | None = None
    """dataset for an offline agent: .npz, D4RL's .hdf5, or a Minari folder"""
    validation_share: float = bounded(0.0, least=0, below=1)
    """share of the dataset, in whole episodes, that is held out for metrics named held_..., for
    agents that learn from data alone"""
    ope_updates: int = bounded(0, least=0)
    """updates of fitted Q-evaluation at each evaluation of an offline agent, for a column ope_fqe:
    the value of the policy estimated from the dataset; 0 turns it off"""
    normalise_returns: bool = False
    """multiply agent.reward_scale by 1000 / (highest - lowest return of the dataset's episodes), as
    IQL's and CORL's authors do for MuJoCo tasks; `jaxrl data info` prints the factor"""
    base: tuple[Path, ...] = ()
    """run with trained policies to build on, for agents that need base policies; may be repeated"""
    from_run: Path | None = None
    """run with finished models to reuse instead of training them again; short form: --from"""
    preset: str = "auto"
    """tuned settings: 'auto' applies the preset named after the environment, 'none' applies none"""
    seeds: int = bounded(1, least=1)
    """number of seeds; each seed trains one member of the population"""
    seed: int = bounded(0, least=0)
    """seed of the first member; the other members use the following integers. The member with seed
    s starts from jax.random.fold_in(jax.random.key(0), s)"""
    evals: int = bounded(20, least=1)
    """number of evaluations during training, the last one at the end; by default up to 20"""
    eval_episodes: int = bounded(32, least=1)
    """complete episodes per member at the last evaluation"""
    interim_episodes: int = bounded(32, least=1)
    """complete episodes per member at earlier evaluations: the smallest divisor of eval_episodes
    that is at least this number, so that the last evaluation is several of them; all episodes if
    this number is larger"""
    eval_first: bool = False
    """evaluate once more, before the first update"""
    eval_explore: bool = False
    """evaluate the policy with exploration, as it acts in training, instead of greedily"""
    out: Path | None = None
    """folder of the run; by default runs/ plus a name derived from all settings"""
    overwrite: bool = False
    """start from scratch if the folder already contains a run"""
    checkpoint_seconds: float = bounded(60.0, least=0)
    """seconds between checkpoints; 0 writes a checkpoint at every evaluation"""
    keep: int = bounded(2, least=1)
    """number of most recent checkpoints to keep"""
    devices: int | None = None
    """number of devices; by default all (on CPUs one per core)"""
    devices_per_member: int = bounded(1, least=1)
    """devices that share the environments and minibatches of each member, for single large runs;
    affects results only by rounding"""
    width: int | None = None
    """members per tile (a vmapped batch of members); by default chosen automatically. The width
    affects results only by rounding"""
    matmul_precision: Literal["auto", "highest", "high", "default", "tensorfloat32", "bfloat16"] = (
        "auto"
    )
    """precision of matrix products, see jax.default_matmul_precision; auto is highest, or what
    JAX_DEFAULT_MATMUL_PRECISION says. CPUs always compute in float32"""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """dtype of computations in networks; parameters, targets, losses and optimiser states are
    float32"""
    track: str | None = None
    """experiment tracker: tensorboard, wandb, trackio, mlflow, or module:attribute for a tracker of
    your own; gets medians over members, quantiles of returns, hyperparameters and results"""
    tensorboard: bool = False
    """the same as --track tensorboard"""
    coordinator: str | None = None
    """host:port of process 0, the same for every process; needed unless the cluster environment
    provides the address"""
    processes: int | None = bounded(None, least=1)
    """number of processes of a distributed run; needs --coordinator"""
    process_id: int | None = bounded(None, least=0)
    """index of this process, starting at 0"""
    heartbeat: int = bounded(100, least=1)
    """seconds without a heartbeat after which a process counts as dead and the others exit"""
    trust: bool = False
    """import custom agents and environments that only run folders or request files name: runs code
    of whoever wrote them"""
    watchdog: float = bounded(3600.0, least=0)
    """seconds without progress after which the process exits; 0 disables the watchdog"""


# Options that may differ when a run is continued or repeated: results change only by rounding.
# Datasets and other runs are compared by their contents, not by their paths.
INCIDENTAL = (
    "data", "base", "from_run", "out", "overwrite", "checkpoint_seconds", "keep", "devices",
    "devices_per_member", "width", "track", "tensorboard", "preset", "coordinator", "processes",
    "process_id", "heartbeat", "watchdog", "trust",
)  # fmt: skip

# Options that older runs do not have: they are recorded if they differ from the default.
LATER = (
    *("eval_explore", "eval_first", "validation_share", "ope_updates", "normalise_returns"),
    *("matmul_precision", "compute_dtype"),
)


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """Options of `jaxrl train` and `jaxrl sweep`, in addition to those of runs."""

    dry_run: bool = False
    """print what would be trained, without compiling or writing anything"""
