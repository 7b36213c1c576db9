"""The one exception that means «the user can mend this», and what a message never says."""

import re


class UserError(Exception):
    """A mistake in what the user gave: reported as one line, without a traceback, exit code 2.

    The message says what was expected, what was found, and where (file and row), and what to do.
    """


class OwnMistake(UserError):
    """One that a process of a launch may meet alone, such as a damaged photo of its share: it says so itself."""


# Of a URI what stands before the host: all up to the last @ where a password begins (it may hold what should have been
# escaped; a port is none), else up to that of the host. One slash is what a path leaves of two; an alias is no secret.
_USER = re.compile(r"(\w\w:/{1,2})(?<!models:/)(?:[^/\s?#:\[]*:(?!\d*(?:[/?#\s]|$))\S*@|[^/\s?#]*@)")
_SECRET = re.compile(
    r"(?i)([?&;#][\w.%\[\]-]*(?:token|key|secret|pass|pw|sig|credential|jwt|auth(?!ors?=))[\w.%\[\]-]*=)[^&;\s]+"
)


def redacted(text: str) -> str:
    """`text` without the passwords and tokens of the URIs in it.

    >>> redacted("https://me:secret@mlflow.shop/x?token=abc&n=1")
    'https://***@mlflow.shop/x?token=***&n=1'
    """
    return _SECRET.sub(r"\1***", _USER.sub(r"\1***@", text))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without secrets."""
    return redacted(str(error).strip().partition("\n")[0])[:200] or type(error).__name__
