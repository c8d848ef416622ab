"""The exceptions that people see. Each says what is wrong, what was given and what to do.

FinetuneError        the input or the configuration is wrong: message, exit code 2
├── AddressError     nothing can be read at an address
├── ProcessError     another process of the same training died: message, exit code 1
├── SweepError       runs of a sweep failed: all of them, with the table of the others
├── ParityError      the exported file answers differently: message, exit code 1
└── ImageError       bytes that are no readable image: a skipped photo in training, 422 from the server
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class FinetuneError(Exception):
    """Base of every error whose message is written for the person at the terminal."""

    exit_code = 2


class AddressError(FinetuneError):
    """Nothing can be read at an address, which the message begins with; whoever knows its key puts that before it."""


class ParityError(FinetuneError):
    """The exported model does not answer as the trained one did."""

    exit_code = 1


class DivergedError(FinetuneError):
    """A loss of the training is no number any more."""


class ProcessError(FinetuneError):
    """Another process of the same training died without a word."""

    exit_code = 1


class SweepError(FinetuneError):
    """Runs of a sweep failed."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ImageError(FinetuneError):
    """These bytes are not an image that can be read; the message is the reason, after the file where there is one.

    kind: the reason as an audit counts it: empty, not_an_image, damaged, too_many_pixels.
    """

    def __init__(self, reason: str, kind: str, file: object = None) -> None:
        super().__init__(reason if file is None else f"{file}: {reason}")
        self.reason, self.kind = reason, kind


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM, after the work was saved; the message says how far it had come.

    No KeyboardInterrupt, of which Lightning makes an exit, and no Exception, after which the next job of a sweep runs.
    """


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the closest known name, or an empty string."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
