"""User errors: one line that says what to change."""

import difflib
import signal
from collections.abc import Iterable


class UserError(ValueError):
    """An invalid request; commands print the message and exit with code 2."""


class OnHost(UserError):
    """An agent needs what environments of the host do not have; the message may get other agents
    for the environment."""


def install_extra(name: str) -> str:
    """The command that installs one of jaxrl's extras, in a clone of its repository."""
    return f'pip install -e ".[{name}]"'


def at_least(least: int, **sizes: int | tuple[int, ...]) -> None:
    """Raises UserError if one of the named sizes, or the smallest of several, is below `least`."""
    for name, value in sizes.items():
        smallest = min(value, default=least) if isinstance(value, tuple) else value
        if smallest < least:
            raise UserError(f"{name}={smallest} must be at least {least}")


class Stopped(Exception):
    """The run was stopped by signal `number`, after saving; it can be continued."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} and saved")
        self.number = number


def nearest(word: str, words: Iterable[str]) -> str:
    """ ", did you mean 'x'?" for the nearest of `words`, or "" if none is near."""
    close = difflib.get_close_matches(word, list(words), n=1)
    return f", did you mean {close[0]!r}?" if close else ""
