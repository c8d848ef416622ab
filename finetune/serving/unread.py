"""Connections that are turned away before there is a request: each counted, and some told of in the log."""

from __future__ import annotations

import logging
import time
from collections import Counter

from finetune.serving.metrics import Metrics

log = logging.getLogger("finetune.access")

# Between two lines of one status: whoever opens connections by the thousand fills no disk.
LINE_EVERY_S = 10.0


class Unread:
    """Is told of each; used from one event loop."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._next_line: dict[int, float] = {}
        self._untold: Counter[int] = Counter()

    def refused(self, status: int, why: str, client: str) -> None:
        """Count one; a line has the number of those of its status that had none since the last."""
        self._metrics.refused(str(status))
        now = time.monotonic()
        if now < self._next_line.get(status, now):
            self._untold[status] += 1
            return
        self._next_line[status] = now + LINE_EVERY_S
        fields = {"status": status, "client": client, "more": self._untold.pop(status, 0)}
        log.info("refused: %s", why, extra={"fields": fields})
