"""The time that a training is given."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Deadline:
    """When the whole command is to be done; at: in seconds of `time.monotonic`, infinite without a limit."""

    at: float

    @classmethod
    def after(cls, began: float, minutes: float | None) -> Deadline:
        """began: as `time.monotonic` had it."""
        return cls(math.inf if minutes is None else began + 60 * minutes)

    @property
    def is_set(self) -> bool:
        return math.isfinite(self.at)

    @property
    def left_s(self) -> float:
        return self.at - time.monotonic()


class Timer(Protocol):
    """Something that tells how much of a stretch of time is over, from 0 to 1 and beyond."""

    @property
    def share(self) -> float: ...


@dataclass(frozen=True)
class Clock:
    """A stretch of time that is to be filled, in seconds of `time.monotonic`."""

    began: float
    ends: float

    @property
    def share(self) -> float:
        """How much of it is over, from 0 to 1 and beyond; a stretch of no length is over."""
        if self.ends <= self.began:
            return 1.0
        return (time.monotonic() - self.began) / (self.ends - self.began)
