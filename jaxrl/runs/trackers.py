"""TensorBoard event files with quantiles over members, so that populations of any size fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}


class TensorBoard:
    """Writes quantiles over members into `logdir`.

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

    def write(self, step: int, metrics: Mapping[str, ArrayLike]) -> None:
        """Writes one point per metric and quantile, tagged "metric/quantile".

        Args:
          step: the horizontal axis, usually environment steps.
          metrics: values over members, [P] or []; values that are not finite are left out.
        """
        for name, values in metrics.items():
            values = np.asarray(values, np.float64).reshape(-1)
            values = values[np.isfinite(values)]
            if values.size:
                for label, value in zip(
                    QUANTILES, np.quantile(values, list(QUANTILES.values())), strict=True
                ):
                    self._writer.add_scalar(f"{name}/{label}", float(value), int(step))

    def flush(self) -> None:
        """Returns when all points are in the file."""
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
