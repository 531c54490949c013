"""Reference returns of random and expert policies, for normalised scores.

D4RL's values come from d4rl/infos.py of Farama-Foundation/D4RL, DMSD's from NeoRL-2. A dataset made
by `jaxrl data make` contains its own reference returns. Scores from other simulators are not
comparable with D4RL's.
"""

from __future__ import annotations

import re

# (random, expert) by task
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


# Names of D4RL's datasets as in its registry and in its download links, with "-" for "_".
LEVELS = "random|medium|expert|mixed|medium-replay|medium-expert|full-replay|random-expert"
PATTERNS = (
    rf"(halfcheetah|walker2d|hopper|ant)(?:-(?:{LEVELS}))?-v\d+",
    rf"(halfcheetah|walker2d|hopper|ant)-(?:{LEVELS})",
    r"(antmaze)-(?:umaze(?:-diverse)?|(?:medium|large)-(?:play|diverse))-v\d+",
    r"(antmaze)-(?:u-maze|big-maze|hardest-maze)-noisy-multistart-(?:true|false)"
    r"-multigoal-(?:true|false)(?:-sparse)?(?:-fixed)?",
    r"(maze2d-(?:open|umaze|medium|large))(?:-sparse)?-v\d+",
    r"(pen|hammer|relocate|door)-(?:human|cloned|expert)(?:-longhorizon)?-v\d+",
    r"(pen|hammer|relocate|door)-(?:v0-(?:demos|expert)-clipped|demos-v0-bc-combined)",
    r"(kitchen)-(?:complete|partial|mixed)-v\d+",
    r"(?:mini-)?(kitchen)-microwave-kettle-(?:light-slider|bottomburner-light)-v\d+",
    r"(dmsd)",
)


def task(name: str) -> str | None:
    """The key of `RETURNS` for the exact name of a dataset, as "hopper-medium-v2"; else None."""
    name = name.lower().replace("_", "-").replace("ant-maze", "antmaze")
    for pattern in PATTERNS:
        if found := re.fullmatch(pattern, name):
            return found[1]
    return None


def reference(name: str) -> dict[str, float] | None:
    """Reference returns {"random", "expert"} by the name of a dataset or environment, or None."""
    found = task(name)
    return None if found is None else dict(zip(("random", "expert"), RETURNS[found], strict=True))
