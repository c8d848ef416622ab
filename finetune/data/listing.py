"""Which files a source holds, and what their places say of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Listed:
    """One file, not yet opened.

    path: in its store; split and group: empty where nothing names them; problem: why it cannot be opened, if known.
    """

    path: str
    label: str
    split: str
    group: str
    size: int
    mtime_ns: int
    problem: str = ""
