"""Optuna samplers, which propose the trials of a search, and their requirements."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrl.errors import UserError, install_extra
from jaxrl.experiments.search.space import Range, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler


def check(sampler: str, space: Space) -> None:
    """Raises UserError for missing packages, or a space that the sampler cannot handle."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError(f"a search needs Optuna: {install_extra('search')}") from None
    if sampler == "cmaes":
        try:
            import cmaes  # noqa: F401
        except ImportError:
            raise UserError("--sampler cmaes needs the package cmaes: pip install cmaes") from None
        if all(each.choices for each in space.traced.values()):
            raise UserError("--sampler cmaes needs a range such as agent.lr=log:1e-5:1e-2")
    for name, each in space.ranges.items():
        if sampler == "grid" and not each.choices:
            raise UserError(f"--sampler grid needs values: pass {name} a list, or LOW:HIGH:N")


def make(name: str, seed: int, drawn: int, batch: int) -> BaseSampler:
    from optuna import samplers

    anew = int(np.random.SeedSequence([seed, drawn]).generate_state(1)[0])
    with silent():
        if name == "random":
            return samplers.RandomSampler(seed=anew)
        if name == "qmc":
            # The journal stores the position in the sequence, which `seed` scrambles.
            other = samplers.RandomSampler(seed=anew)
            return samplers.QMCSampler(
                scramble=True, seed=seed, independent_sampler=other,
                warn_asynchronous_seeding=False, warn_independent_sampling=False,
            )  # fmt: skip
        if name == "cmaes":
            # The journal stores the distribution; a batch is one generation.
            return samplers.CmaEsSampler(
                seed=anew, popsize=max(batch, 4), warn_independent_sampling=False,
                independent_sampler=samplers.RandomSampler(seed=anew),
            )  # fmt: skip
        # constant_liar: running trials count as poor, which spreads the trials of a batch.
        return samplers.TPESampler(seed=anew, constant_liar=True)


def holding(fixed: dict[str, Any], base: BaseSampler) -> BaseSampler:
    from optuna.samplers import PartialFixedSampler

    if not fixed:
        return base
    with silent():
        return PartialFixedSampler(fixed, base)


def distribution(each: Range) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if each.choices:
        return CategoricalDistribution(list(each.choices))
    return FloatDistribution(each.low, each.high, log=each.log)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Suppresses warnings about experimental features of Optuna."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
