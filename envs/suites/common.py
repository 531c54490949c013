"""What the adapters of suites share: imports with a clear error, and allowances for their code."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from jaxrl.envs.names import EnvError, UnknownEnv, install_hint
from jaxrl.errors import nearest


def load(module: str, suite: str) -> Any:
    """A module of a suite, imported without what the suite prints at that.

    Raises:
      EnvError: it cannot be imported.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), allowances():
            return importlib.import_module(module)
    except ImportError as error:
        sys.stdout.write(printed.getvalue())
        raise EnvError(f"{suite} cannot be imported ({error}): {install_hint(suite)}") from error


@contextlib.contextmanager
def allowances() -> Iterator[None]:
    """Allows rank promotion in the suites' own code and ignores its warnings, for which there is no
    remedy here."""
    with jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def lenient(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` under `allowances`."""

    @functools.wraps(function)
    def called(*args: Any) -> Any:
        with allowances():
            return function(*args)

    return called


def check_task(suite: str, task: str, known: Iterable[str]) -> None:
    """Raises UnknownEnv, with the nearest name, if `task` is not one of the suite's."""
    known = list(known)
    if task not in known:
        raise UnknownEnv(f"{suite} has no task {task!r}{nearest(task, known)}")
