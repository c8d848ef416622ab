from __future__ import annotations

import logging
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finetune.serving import log_writer
from finetune.serving.log_writer import LogWriter
from tests.serving.conftest import until


def line(text: str) -> logging.LogRecord:
    return logging.LogRecord("x", logging.INFO, __file__, 0, text, None, None)


@contextmanager
def slow_reader(writing: int, reading: int, pause_s: float) -> Iterator[bytearray]:
    """What somebody reads, page by page; complete when the block has ended."""
    received = bytearray()

    def read() -> None:
        while part := os.read(reading, 4096):
            received.extend(part)
            time.sleep(pause_s)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield received
    finally:
        os.close(writing)
        thread.join()
        os.close(reading)


def told_in(received: bytes) -> int:
    return sum(map(int, re.findall(rb"(?m)^(\d+) lines of this log could not be written$", received)))


def test_lines_are_written_in_order(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        writer = LogWriter(file.fileno())
        for number in range(1000):
            writer.handle(line(f"{number}"))
        writer.flush()
    assert (tmp_path / "log").read_text().splitlines() == [f"{number}" for number in range(1000)]
    assert writer.lost == 0


def test_a_pipe_that_nobody_reads_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "MOST_LINES", 10)
    monkeypatch.setattr(log_writer, "LAST_LINES_S", 0.01)
    reading, writing = os.pipe()
    writer = LogWriter(writing)
    for _ in range(50):
        writer.handle(line("x" * 10_000))
    assert writer.lost > 0
    writer.flush()
    with slow_reader(writing, reading, pause_s=0) as received:
        until(lambda: told_in(received) == writer.lost)
    assert received.count(b"x" * 10_000) == 50 - writer.lost


def test_a_slow_reader_gets_all_that_is_left_at_the_end() -> None:
    reading, writing = os.pipe()
    writer = LogWriter(writing)
    with slow_reader(writing, reading, pause_s=0.02) as received:
        for _ in range(400):
            writer.handle(line("x" * 1000))
        writer.flush()
    assert received.count(b"x" * 1000) == 400
    assert writer.lost == 0


def test_what_there_is_no_time_for_at_the_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "LONGEST_END_S", 0.1)
    reading, writing = os.pipe()
    writer = LogWriter(writing)
    with slow_reader(writing, reading, pause_s=0.02) as received:
        for _ in range(2000):
            writer.handle(line("x" * 1000))
        writer.flush()
        until(lambda: told_in(received) == writer.lost > 0)
    assert received.count(b"x" * 1000) == 2000 - writer.lost


def test_a_descriptor_that_does_not_wait_is_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    writer = LogWriter(writing)
    with slow_reader(writing, reading, pause_s=0.001) as received:
        for number in range(300):
            writer.handle(line(f"{number:01000}"))
        writer.flush()
    assert received.decode().splitlines() == [f"{number:01000}" for number in range(300)]
    assert writer.lost == 0


def test_a_line_that_was_cut_off_does_not_join_the_next(tmp_path: Path) -> None:
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (tmp_path / "log").open("wb") as file:
        writer = LogWriter(file.fileno())
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, most[1]))
        try:
            writer.handle(line("x" * 150))
            writer.handle(line("lost"))
            writer.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, most)
        writer.handle(line("second"))
        writer.handle(line("third"))
        writer.flush()
    told = (tmp_path / "log").read_text().splitlines()
    assert told == ["x" * 100, "second", "2 lines of this log could not be written", "third"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
def test_a_full_disk_loses_lines_and_says_so_once_there_is_room(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb", buffering=0) as full, (tmp_path / "log").open("wb") as free:
        writer = LogWriter(full.fileno())
        writer.handle(line("lost"))
        writer.handle(line("lost"))
        writer.flush()
        assert writer.lost == 2
        os.dup2(free.fileno(), full.fileno())
        writer.handle(line("written"))
        writer.handle(line("written"))
        writer.flush()
    told = (tmp_path / "log").read_text().splitlines()
    assert told == ["written", "2 lines of this log could not be written", "written"]


def test_a_process_ends_though_its_log_cannot_be_written() -> None:
    script = (
        "import logging\n"
        "from finetune.serving.logs import set_up\n"
        "set_up('text')\n"
        "for _ in range(100): logging.getLogger('finetune').info('x' * 10_000)\n"
    )
    reading, writing = os.pipe()
    ended = subprocess.run([sys.executable, "-c", script], stderr=writing, timeout=60, check=False)
    os.close(reading)
    os.close(writing)
    assert ended.returncode == 0
