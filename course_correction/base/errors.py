"""The error that a user can fix."""


class UsageError(ValueError):
    """Something that the user can mend; scripts print it on one line and exit with status 2."""
