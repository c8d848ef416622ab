"""A log that keeps nobody waiting: neither a pipe that nobody reads nor a full disk is any request's concern."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from contextlib import suppress
from queue import Empty, SimpleQueue

# Some megabytes.
MOST_LINES = 10_000
# At the end, for a reader that takes nothing meanwhile, and for one that takes something now and then.
LAST_LINES_S, LONGEST_END_S = 1.0, 10.0


class LogWriter(logging.Handler):
    """Formats lines where they come up, and lets a thread write them; what cannot be written is lost, and counted.

    lost: lines so far; the next that can be written is followed by one that tells of them.
    """

    def __init__(self, descriptor: int) -> None:
        """descriptor: a file's; Python's own streams would wait for a stuck thread when the process ends."""
        super().__init__()
        self.lost, self._told = 0, 0
        self._descriptor = descriptor
        self._bytes, self._in_line = 0, False
        # of those that a signal's handler may use, whatever it interrupts
        self._lines: SimpleQueue[str | threading.Event] = SimpleQueue()
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        if self._lines.qsize() < MOST_LINES:
            self._lines.put(self.format(record))
        else:
            self.lost += 1

    def flush(self) -> None:
        """Wait as the end of a process does."""
        self.flush_within(LONGEST_END_S)

    def flush_within(self, longest_s: float) -> None:
        """Wait until all is written that has come up so far, while somebody takes it; the rest is lost, and told of."""
        latest, known = time.monotonic() + longest_s, -1
        a_while_s = min(LAST_LINES_S, longest_s)
        written = self._mark()
        while self._bytes > known and time.monotonic() < latest:
            known = self._bytes
            if written.wait(a_while_s):
                return
        self._give_up()
        told = self._mark()
        if self._bytes > known:
            told.wait(a_while_s)

    def _mark(self) -> threading.Event:
        """Return what is set once all that stands in the line is written, and what was lost is told of."""
        written = threading.Event()
        self._lines.put(written)
        return written

    def _give_up(self) -> None:
        with suppress(Empty):
            while True:
                if isinstance(self._lines.get_nowait(), str):
                    self.lost += 1

    def _write_all(self) -> None:
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                self._tell()
                line.set()
            elif self._write(line):
                self._tell()
            else:
                self.lost += 1

    def _tell(self) -> None:
        if (lost := self.lost) > self._told and self._write(self._telling(lost - self._told)):
            self._told = lost

    def _write(self, line: str) -> bool:
        # what was cut off before stays a line of its own
        start = "\n" if self._in_line else ""
        raw = f"{start}{line}\n".encode(errors="backslashreplace")
        try:
            while raw:
                count = self._write_some(raw)
                self._bytes += count
                self._in_line = not raw[:count].endswith(b"\n")
                raw = raw[count:]
        except OSError:
            # its reader has gone, or the disk is full
            return False
        return True

    def _write_some(self, raw: bytes) -> int:
        while True:
            try:
                return os.write(self._descriptor, raw)
            except BlockingIOError:
                # whoever gave us the descriptor does not want to wait; this thread may
                select.select([], [self._descriptor], [])

    def _telling(self, lost: int) -> str:
        said = "%d lines of this log could not be written"
        return self.format(logging.LogRecord(__name__, logging.WARNING, __file__, 0, said, (lost,), None))


def lost_lines() -> int:
    """Return how many lines this process's log has lost."""
    return sum(handler.lost for handler in logging.getLogger().handlers if isinstance(handler, LogWriter))
