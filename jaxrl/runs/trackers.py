"""TensorBoard event files with medians over members, so that populations of any size fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxrl.runs.stats import RISKS

QUANTILES = {"min": 0.0, "median": 0.5, "max": 1.0}
_SPREAD = ("return", "episode_return")  # metrics with all quantiles; others have the median only
_OMITTED = tuple(name for name in RISKS if name != "cvar_0.1")


class TensorBoard:
    """Writes medians and quantiles over members into `logdir`.

    Args:
      logdir: folder of the event files; created if missing.
      resume_at: step from which a resumed run continues. TensorBoard discards points that an
        earlier process wrote from this step on. None for a new run.
    """

    def __init__(self, logdir: str | Path, resume_at: int | None = None) -> None:
        from tensorboardX import SummaryWriter  # late: a second, and not every run wants it

        self._writer = SummaryWriter(str(logdir), purge_step=resume_at)

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def write_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Writes the entries of the HPARAMS tab, whose metric is the median return.

        Args:
          values: numbers, booleans and texts by name.
        """
        from tensorboardX.summary import hparams

        for part in hparams(dict(values), {"return/median": 0.0}):
            self._writer.file_writer.add_summary(part)  # type: ignore[union-attr]

    def write(self, step: int, metrics: Mapping[str, ArrayLike]) -> None:
        """Writes one point per metric: its median over members, tagged with its name.

        Returns of several members have all `QUANTILES`, tagged "return/median" and so on. Of the
        risk measures only cvar_0.1 is written.

        Args:
          step: the horizontal axis, usually environment steps.
          metrics: values over members, [P] or []; values that are not finite are left out.
        """
        for name, values in metrics.items():
            values = np.asarray(values, np.float64).reshape(-1)
            several, values = values.size > 1, values[np.isfinite(values)]
            if not values.size or name in _OMITTED:
                continue
            labels = {"median": 0.5}
            if name in _SPREAD and several:
                labels = QUANTILES
            for label, share in labels.items():
                tag = f"{name}/{label}" if name in _SPREAD else name
                self._writer.add_scalar(tag, float(np.quantile(values, share)), int(step))

    def flush(self) -> None:
        """Returns when all points are in the file."""
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
