"""What the load says of servers that do not answer with 200."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.conftest import ROOT


def loaded(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "benchmarks/load.py", *words]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, check=False)


class Broken(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Closing(Broken):
    def do_POST(self) -> None:
        self.close_connection = True


@pytest.fixture(params=[Broken, Closing])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a server that answers nothing with 200."""
    with ThreadingHTTPServer(("127.0.0.1", 0), request.param) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("way", [("clients", 2), ("rate", 50)])
def test_where_nothing_is_answered_there_is_no_time_of_an_answer(port: int, way: tuple[str, int]) -> None:
    done = loaded(port, ROOT / "pyproject.toml", 0.3, *way)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert (row["answered"], row["p50"], row["p99"]) == (0, None, None)
    assert row["failed"] > 0


def test_words_that_are_missing_are_said() -> None:
    done = loaded(80)
    assert done.returncode == 2
    assert "the following arguments are required: photo, seconds, way, amount" in done.stderr


def test_a_port_where_nobody_listens_is_said() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        done = loaded(free.getsockname()[1], ROOT / "pyproject.toml", 1, "clients", 1)
    assert (done.returncode, done.stderr.startswith("load.py: nobody listens on port")) == (1, True)
