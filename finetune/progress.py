"""Progress of long work: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)
Item = TypeVar("Item")
PLAIN_LINE_EVERY_S = 10.0


def track(items: Iterable[Item], description: str, total: int, unit: str = "photos") -> Iterator[Item]:
    """Yield `items`, showing how many of `total` are done and how long the rest will take."""
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            yield from bar.track(items, total=total, description=description)
        return
    started = last_line = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last_line >= PLAIN_LINE_EVERY_S and done < total:
            log.info("%s: %d of %d %s, %.0f a second", description, done, total, unit, done / (now - started))
            last_line = now
