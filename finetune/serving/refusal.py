"""The one way in which serving says no."""

from __future__ import annotations

LONGEST_QUOTE = 80
# Counted as turned away; what is not there, not allowed or no photo is an answer as good as any.
TURNED_AWAY = frozenset({400, 401, 408, 409, 413, 415, 429, 431, 503, 504})


class Refusal(Exception):
    """A request that is not answered; the message is written for the client and tells nothing of the server's inside.

    status: HTTP status; retry_after_s: after how many seconds another try makes sense, where it does.
    """

    def __init__(self, status: int, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after_s = status, message, retry_after_s


def quoted(text: str) -> str:
    """Return a client's own words as a message shows them: in quotes, escaped, and cut where they are very long."""
    return repr(text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}...")
