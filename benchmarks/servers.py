"""Servers that benchmarks start: each alone, on a port of loopback, with what it prints kept for when it fails."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

ROOT = Path(__file__).parents[1]
READY_WITHIN_S, ENDS_WITHIN_S = 120.0, 20.0
LAST_LINES = 20
# no proxy stands between this machine and itself
_open = build_opener(ProxyHandler({})).open


@dataclass
class Running:
    """A server that was started. ready_s: from its start until it answered."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    ready_s: float = 0.0

    def failed(self, what: str) -> SystemExit:
        """Return what ends the benchmark with the server's last words."""
        lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return SystemExit("\n".join([f"{self.name} {what}; its last lines:", *lines]))

    def require_running(self) -> None:
        if self.process.poll() is not None:
            raise self.failed(f"has ended with exit code {self.process.returncode}")


@contextmanager
def started(name: str, words: Sequence[object], ready: str, **environment: str) -> Iterator[Running]:
    """Run a server until the block ends; ready: the address that answers once it is up."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("wb") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in words],
            env={**os.environ, "PYTHONPATH": paths, **environment},
            cwd=ROOT,
            stdout=log,
            stderr=log,
            # some have workers, which end with the group
            start_new_session=True,
        )
        server = Running(name, process, Path(log.name))
        try:
            _wait_until_ready(server, ready)
            server.ready_s = time.perf_counter() - began
            yield server
        finally:
            _end(process)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_until_ready(server: Running, address: str) -> None:
    until = time.perf_counter() + READY_WITHIN_S
    while time.perf_counter() < until:
        server.require_running()
        if _answers(address):
            return
        time.sleep(0.02)
    raise server.failed(f"does not answer within {READY_WITHIN_S:g} s")


def _answers(address: str) -> bool:
    try:
        with _open(address, timeout=1):
            return True
    except HTTPError as error:
        # a server without such a route is up, too
        return error.code == 404
    except OSError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(ENDS_WITHIN_S)
    # itself where it still runs, and workers that outlived it
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
