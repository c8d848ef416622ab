from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.serving import log_writer
from finetune.serving.log_writer import LogWriter
from tests.serving.conftest import until


def line(text: str) -> logging.LogRecord:
    return logging.LogRecord("x", logging.INFO, __file__, 0, text, None, None)


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
    lost = writer.lost
    received = b""
    while b"could not be written" not in received:
        received += os.read(reading, 65536)
    until(lambda: writer._lines.empty())
    assert f"{lost} lines of this log could not be written" in received.decode()
    assert received.count(b"x" * 10_000) <= 50 - lost
    os.close(reading)
    os.close(writing)


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
