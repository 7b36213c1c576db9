"""The one exception that means «the user can mend this»."""


class UserError(Exception):
    """A mistake in what the user gave: reported as one line, without a traceback, exit code 2.

    The message says what was expected, what was found, and where (file and row), and what to do.
    """
