"""The errors users see: one line each, saying what, where, wanted, got and what to do."""


class LlamacyError(Exception):
    """A failure with a one-line message for the user; commands exit with 1."""

    exit_code = 1


class UsageError(LlamacyError):
    """Wrong flags or arguments; commands exit with 2."""

    exit_code = 2
