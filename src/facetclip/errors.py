"""The one exception that means «the user can mend this», and what a message never says."""

import re


class UserError(Exception):
    """A mistake in what the user gave: reported as one line, without a traceback, exit code 2.

    The message says what was expected, what was found, and where (file and row), and what to do.
    """


def redacted(text: str) -> str:
    """`text` without the passwords and tokens of the URIs in it.

    >>> redacted("https://me:secret@mlflow.shop/x?token=abc&n=1")
    'https://***@mlflow.shop/x?token=***&n=1'
    """
    text = re.sub(r"(?<=://)[^/\s@]+@", "***@", text)
    return re.sub(r"(?i)([?&][\w-]*(?:token|key|secret|passw|sig|credential)[\w-]*=)[^&\s]+", r"\1***", text)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without secrets."""
    return redacted(str(error).strip().partition("\n")[0][:200]) or type(error).__name__
