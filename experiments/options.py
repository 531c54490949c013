"""Options of a run, beside its agent's own settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Options:
    """What every training run can be told, beside its agent's own settings."""

    env: str
    """environment: a name of `jaxrl list envs`, or module:attribute or file.py:attribute for your
    own"""
    env_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """settings of the environment, as in gravity=1.6; every one takes max_steps=200, hide=[1,3]
    (elements of observations), sticky=0.25, normalise_obs=true, normalise_reward=0.99"""
    data: Path | None = None
    """dataset that an offline agent learns from: .npz, D4RL's .hdf5, or a Minari folder"""
    base: tuple[Path, ...] = ()
    """run whose trained policies are built on, for agents that do; several by giving it again"""
    from_run: Path | None = None
    """run whose finished models are used, not trained anew; --from for short"""
    preset: str = "auto"
    """'auto' takes the one named like the environment, 'none' takes none"""
    seeds: int = dataclasses.field(default=1, metadata={"least": 1})
    """members of the population, one per seed"""
    seed: int = dataclasses.field(default=0, metadata={"least": 0})
    """seed of the first member; the others count on from it. The key of the member with seed s is
    jax.random.fold_in(jax.random.key(0), s)"""
    evals: int = dataclasses.field(default=20, metadata={"least": 1})
    """evaluations during the run, the last one at its end; by default up to 20"""
    eval_episodes: int = dataclasses.field(default=32, metadata={"least": 1})
    """whole episodes in each evaluation of each member"""
    out: Path | None = None
    """folder of the run; by default runs/ and a name made from all settings"""
    overwrite: bool = False
    """start again where the folder holds a run"""
    checkpoint_seconds: float = dataclasses.field(default=60.0, metadata={"least": 0})
    """time between checkpoints; 0 writes one at every evaluation"""
    keep: int = dataclasses.field(default=2, metadata={"least": 1})
    """checkpoints that are kept"""
    devices: int | None = None
    """devices to use; by default all (on CPUs one per core)"""
    width: int | None = None
    """members per tile; by default a rule chooses. Another width changes results by rounding"""
    tensorboard: bool = False
    """write TensorBoard files: quantiles over members"""
    coordinator: str | None = None
    """host:port of process 0, where no cluster tells; every process gets the same"""
    processes: int | None = None
    """processes that share the run; needs --coordinator"""
    process_id: int | None = None
    """which of them this one is, from 0 on"""
    heartbeat: int = 100
    """seconds of silence after which a process counts as dead, and ends the others"""
    watchdog: float = 3600.0
    """seconds without progress after which the process ends itself; 0 never"""


# What may differ when a run is continued or repeated: results are the same but for rounding. Of the
# data and of other runs it is the contents that decide, wherever they lie.
INCIDENTAL = (
    "data", "base", "from_run", "out", "overwrite", "checkpoint_seconds", "keep", "devices",
    "width", "tensorboard", "preset", "coordinator", "processes", "process_id", "heartbeat",
    "watchdog",
)  # fmt: skip
