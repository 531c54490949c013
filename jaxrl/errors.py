"""Errors that a person can mend: one line that says what to do."""


class UserError(ValueError):
    """A request that cannot be met; the command line prints it and exits with 2."""


def at_least(least: int, **sizes: int) -> None:
    """Raises UserError for the first of the named sizes below `least`."""
    for name, value in sizes.items():
        if value < least:
            raise UserError(f"{name}={value} must be at least {least}")
