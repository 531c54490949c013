"""Errors that a person can mend: one line that says what to do."""


class UserError(ValueError):
    """A request that cannot be met; the command line prints it and exits with 2."""
