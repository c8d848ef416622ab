"""How long one request's photos took on each part of their way, told by whatever carries them."""

from __future__ import annotations

from contextvars import ContextVar


class RequestTimes:
    """The longest of a request's photos, in seconds; used from one event loop.

    Photos of one request wait and run beside each other, so that a sum of them would exceed the request's own time.
    """

    __slots__ = ("decoded_s", "ran_s", "waited_s")

    def __init__(self) -> None:
        self.waited_s = self.decoded_s = self.ran_s = 0.0

    def decoded(self, seconds: float) -> None:
        """A photo was decoded in so long."""
        self.decoded_s = max(self.decoded_s, seconds)

    def ran(self, waited_s: float, ran_s: float) -> None:
        """A photo waited for its run, which took so long."""
        self.waited_s, self.ran_s = max(self.waited_s, waited_s), max(self.ran_s, ran_s)


# Of the request that is answered here, set by `ask`; what nobody asked for is counted nowhere.
_current: ContextVar[RequestTimes | None] = ContextVar("request_times", default=None)


def begin_times() -> RequestTimes:
    """Return the times of a request that begins here, which `current_times` returns until the next one begins."""
    times = RequestTimes()
    _current.set(times)
    return times


def current_times() -> RequestTimes:
    return _current.get() or RequestTimes()
