"""Errors that a person can mend: one line that says what to do."""

import difflib
import signal
from collections.abc import Iterable


class UserError(ValueError):
    """A request that cannot be met; the command line prints it and exits with 2."""


def at_least(least: int, **sizes: int) -> None:
    """Raises UserError for the first of the named sizes below `least`."""
    for name, value in sizes.items():
        if value < least:
            raise UserError(f"{name}={value} must be at least {least}")


class Stopped(Exception):
    """A run was asked to stop by signal `number`, has saved all, and can be continued."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}, and all is saved")
        self.number = number


def nearest(word: str, words: Iterable[str]) -> str:
    """ ", did you mean 'x'?" for the nearest of `words`, or nothing."""
    close = difflib.get_close_matches(word, list(words), n=1)
    return f", did you mean {close[0]!r}?" if close else ""
