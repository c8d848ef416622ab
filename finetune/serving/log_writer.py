"""A log that keeps nobody waiting: neither a pipe that nobody reads nor a full disk is any request's concern."""

from __future__ import annotations

import logging
import os
import threading
from queue import SimpleQueue

# Some megabytes.
MOST_LINES = 10_000
# At the end, for what is still to be written.
LAST_LINES_S = 1.0


class LogWriter(logging.Handler):
    """Formats lines where they come up, and lets a thread write them; what cannot be written is lost, and counted.

    lost: lines so far; the next that can be written is followed by one that tells of them.
    """

    def __init__(self, descriptor: int) -> None:
        """descriptor: a file's; Python's own streams would wait for a stuck thread when the process ends."""
        super().__init__()
        self.lost, self._told = 0, 0
        self._descriptor = descriptor
        # of those that a signal's handler may use, whatever it interrupts
        self._lines: SimpleQueue[str | threading.Event] = SimpleQueue()
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        if self._lines.qsize() < MOST_LINES:
            self._lines.put(self.format(record))
        else:
            self.lost += 1

    def flush(self) -> None:
        """Wait until all is written that has come up so far, but not for long."""
        written = threading.Event()
        self._lines.put(written)
        written.wait(LAST_LINES_S)

    def _write_all(self) -> None:
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
            elif not self._write(line):
                self.lost += 1
            elif (lost := self.lost) > self._told and self._write(self._telling(lost - self._told)):
                self._told = lost

    def _write(self, line: str) -> bool:
        raw = f"{line}\n".encode(errors="backslashreplace")
        try:
            while raw:
                raw = raw[os.write(self._descriptor, raw) :]
        except OSError:
            # its reader has gone, or the disk is full
            return False
        return True

    def _telling(self, lost: int) -> str:
        said = "%d lines of this log could not be written"
        return self.format(logging.LogRecord(__name__, logging.WARNING, __file__, 0, said, (lost,), None))


def lost_lines() -> int:
    """Return how many lines this process's log has lost."""
    return sum(handler.lost for handler in logging.getLogger().handlers if isinstance(handler, LogWriter))
