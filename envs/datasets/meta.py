"""Checks of the metadata of dataset files, which are JSON objects."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.envs.datasets.columns import bad


def parse(file: str | Path, key: str, text: str | bytes) -> dict[str, Any]:
    """The JSON object in `text`, which is stored under `key`, with the entries checked.

    Raises:
      UserError: no JSON object, or an entry that jaxrl reads has the wrong type.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise bad(file, key, f"is not JSON ({error})") from None
    return check(file, key, found)


def check(file: str | Path, key: str, found: Any) -> dict[str, Any]:
    """`found`, decoded JSON, if the entries that jaxrl reads have the right types.

    Null counts as absent; a reference without two numbers is left out.

    Raises:
      UserError: no object, or an entry of the wrong type.
    """
    if not isinstance(found, dict):
        raise bad(file, key, "must be a JSON object")
    found = {name: value for name, value in found.items() if value is not None}
    for name in ("env", "dataset_id", "sha256"):
        if name in found and not (isinstance(found[name], str) and found[name]):
            raise bad(file, f"{key}/{name}", f"must be a text, not {found[name]!r:.80}")
    for name in ("action_low", "action_high", "action_count"):
        if name in found:
            _numbers(file, f"{key}/{name}", found[name])
    for name in ("ref_min_score", "ref_max_score"):
        if name in found:
            number(file, f"{key}/{name}", found[name])
    if "reference" in found:
        found["reference"] = _reference(file, f"{key}/reference", found["reference"])
    if "jaxrl" in found:
        found["jaxrl"] = check(file, f"{key}/jaxrl", found["jaxrl"])
    return {name: value for name, value in found.items() if value is not None}


def number(file: str | Path, key: str, x: Any) -> float:
    """A finite number.

    Raises:
      UserError: anything else.
    """
    if isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(_float(x)):
        raise bad(file, key, f"must be a finite number, not {x!r:.80}")
    return float(x)


def _float(x: float) -> float:
    try:
        return float(x)
    except OverflowError:  # integers beyond float64
        return math.inf


def _numbers(file: str | Path, key: str, x: Any) -> None:
    try:
        np.asarray(x, np.float64)
    except (ValueError, TypeError, OverflowError):
        raise bad(file, key, f"must be numbers, not {x!r:.80}") from None


def _reference(file: str | Path, key: str, x: Any) -> dict[str, float] | None:
    if not isinstance(x, dict):
        raise bad(file, key, f"must have the returns random and expert, not {x!r:.80}")
    if any(x.get(name) in (None, "inf", "-inf") for name in ("random", "expert")):
        return None  # as `files.plain` writes returns that are not finite
    return {name: number(file, f"{key}/{name}", x[name]) for name in ("random", "expert")}
