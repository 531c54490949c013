"""Reference returns of random and expert policies, for normalised scores.

D4RL's values come from d4rl/infos.py of Farama-Foundation/D4RL, DMSD's from NeoRL-2. A dataset made
by `jaxrl data make` contains its own reference returns. Scores from other simulators are not
comparable with D4RL's.
"""

from __future__ import annotations

import re

# (random, expert) by the first words of dataset names; the kind of data follows: medium-v2, ...
RETURNS: dict[str, tuple[float, float]] = {
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
    "hopper": (-20.272305, 3234.3),
    "ant": (-325.6, 3879.7),
    "antmaze": (0.0, 1.0),
    "maze2d-open": (0.01, 20.66),
    "maze2d-umaze": (23.85, 161.86),
    "maze2d-medium": (13.13, 277.39),
    "maze2d-large": (6.7, 273.99),
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "relocate": (-6.425911, 4233.877797728884),
    "door": (-56.512833, 2880.5693087298737),
    "kitchen": (0.0, 4.0),
    "dmsd": (30.60, 849.51),
}

# Time limits of D4RL's environments in steps, for files without timeouts.
LIMITS = {"halfcheetah": 1000, "walker2d": 1000, "hopper": 1000, "ant": 1000}


def task(name: str) -> str | None:
    """The key of `RETURNS` for a dataset name; "hopper" for "hopper-medium-v2", else None."""
    words = re.split("[-_]", name.lower().replace("ant_maze", "antmaze"))  # spelling of some files
    for size in (2, 1):
        if "dense" not in words and (start := "-".join(words[:size])) in RETURNS:
            return start
    return None


def reference(name: str) -> dict[str, float] | None:
    """Reference returns {"random", "expert"} by the name of a dataset or environment, or None."""
    found = task(name)
    return None if found is None else dict(zip(("random", "expert"), RETURNS[found], strict=True))
