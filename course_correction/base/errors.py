"""The error that a user can fix."""


class UsageError(ValueError):
    """An error that the user can fix. Scripts print it on one line and exit with status 2."""
