"""Experiment trackers: TensorBoard, Weights & Biases, trackio, MLflow, or a class of your own.

A run sends aggregates over members, so that populations of any size fit; its hyperparameters; and a
table of results at the end. A tracker of your own is `module:attribute`, a function that takes a
`TrackedRun` and returns a `Tracker`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

from jaxrl.runs.stats import RISKS

QUANTILES = {"min": 0.0, "median": 0.5, "max": 1.0}
PROJECT = "jaxrl"
_SPREAD = ("return", "episode_return")  # metrics with all quantiles; others have the median only
_OMITTED = tuple(name for name in RISKS if name != "cvar_0.1")


class TrackedRun(NamedTuple):
    """What a tracker learns of a run before the first point.

    Attributes:
      name: of the run's folder.
      folder: where trackers may write.
      hyperparameters: numbers, booleans and texts that all members share, by name.
      resume_at: step from which a resumed run continues; None for a new run.
    """

    name: str
    folder: Path
    hyperparameters: Mapping[str, bool | int | float | str]
    resume_at: int | None = None


class Tracker(Protocol):
    """Receives the points of one run, in the order of steps, and then its results."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One point: numbers by name at `step`, environment steps or updates of a member."""
        ...

    def close(self, table: Sequence[Mapping[str, Any]]) -> None:
        """The end: one row per hyperparameter point; no rows if the run was interrupted."""
        ...


def aggregates(metrics: Mapping[str, ArrayLike]) -> dict[str, float]:
    """One point of a population: medians over members, by the names of metrics.

    Returns of several members have all `QUANTILES`, named "return/median" and so on. Of the risk
    measures only cvar_0.1 is included.

    Args:
      metrics: values over members, [P] or []; values that are not finite are left out.
    """
    found = {}
    for name, values in metrics.items():
        values = np.asarray(values, np.float64).reshape(-1)
        several, values = values.size > 1, values[np.isfinite(values)]
        if not values.size or name in _OMITTED:
            continue
        labels = QUANTILES if name in _SPREAD and several else {"median": 0.5}
        for label, share in labels.items():
            tag = f"{name}/{label}" if name in _SPREAD else name
            found[tag] = float(np.quantile(values, share))
    return found


class TensorBoard:
    """Event files in the folder tensorboard/ of the run, hyperparameters included."""

    def __init__(self, run: TrackedRun) -> None:
        from tensorboardX import SummaryWriter  # late: a second, and not every run wants it
        from tensorboardX.summary import hparams

        # TensorBoard discards points that an earlier process wrote from `resume_at` on.
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.resume_at)
        for part in hparams(dict(run.hyperparameters), {"return/median": 0.0}):
            self._writer.file_writer.add_summary(part)  # type: ignore[union-attr]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def close(self, table: Sequence[Mapping[str, Any]]) -> None:
        if table:
            names = list(table[0])
            rows = [names, ["---"] * len(names), *([str(row[n]) for n in names] for row in table)]
            self._writer.add_text("results", "\n".join(f"| {' | '.join(row)} |" for row in rows))
        self._writer.close()


class Wandb:
    """Weights & Biases; WANDB_MODE=offline needs no network."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb  # type: ignore[import-not-found]  # late: an optional package

        self._wandb = wandb
        self._run = wandb.init(
            project=PROJECT,
            name=run.name,
            id=run.name,
            resume="allow",
            config=dict(run.hyperparameters),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, table: Sequence[Mapping[str, Any]]) -> None:
        if table:
            rows = [list(row.values()) for row in table]
            self._run.log({"results": self._wandb.Table(columns=list(table[0]), data=rows)})
        self._run.finish()


class Trackio:
    """trackio, which keeps its data on this machine."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio  # type: ignore[import-not-found]  # late: an optional package

        self._trackio = trackio
        trackio.init(project=PROJECT, name=run.name, config=dict(run.hyperparameters))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._trackio.log(dict(values), step=step)

    def close(self, table: Sequence[Mapping[str, Any]]) -> None:
        if table:
            import pandas  # comes with seaborn, which gymnax needs

            rows = pandas.DataFrame([dict(row) for row in table])
            self._trackio.log({"results": self._trackio.Table(dataframe=rows)})
        self._trackio.finish()


class MLflow:
    """MLflow; MLFLOW_TRACKING_URI says where to."""

    def __init__(self, run: TrackedRun) -> None:
        import mlflow  # type: ignore[import-not-found]  # late: an optional package

        self._mlflow = mlflow
        mlflow.set_experiment(PROJECT)
        mlflow.start_run(run_name=run.name)
        mlflow.log_params(dict(run.hyperparameters))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self, table: Sequence[Mapping[str, Any]]) -> None:
        if table:
            self._mlflow.log_text(json.dumps([dict(row) for row in table]), "results.json")
        self._mlflow.end_run()


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
    "mlflow": MLflow,
}
