"""Errors that a person can mend: one line that says what to do."""

import signal


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
