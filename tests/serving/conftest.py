"""A real server in a process of its own, on loopback."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from finetune.cli import conf_dir
from finetune.config import ServeConfig
from finetune.serving.serve import Service, assemble

READY_WITHIN_S = 60


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    address: str
    log: Path


Start = Callable[..., Server]


def serve_config(models: Path, **changed: Any) -> ServeConfig:
    """Return conf/serve.yaml as it stands, but for what is changed: `limits={"photos": 3}` leaves the other limits."""
    values = yaml.safe_load((conf_dir() / "serve.yaml").read_text())
    del values["defaults"]
    values |= {"models": str(models), "device": "cpu", "threads": 1}
    for key, value in changed.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    return ServeConfig.model_validate(values)


def assembled(models: Path, **changed: Any) -> Service:
    """Return what `finetune serve` would answer from, without a process; what fails while opening fails the test."""

    def fail(failure: Exception) -> None:
        raise failure

    return assemble(serve_config(models, **changed), fail)


def start(models: Path, log: Path, *words: str) -> Server:
    command = [sys.executable, "-m", "finetune", "serve", f"models={models}", "port=0", "threads=1", *words]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"http://[\d.]+:\d+", log.read_text())
        if found:
            try:
                if httpx.get(found[0] + "/readyz").status_code == 200:
                    return Server(process, found[0], log)
            except httpx.TransportError:
                pass
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"the server did not become ready:\n{log.read_text()}")


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Start]:
    """Start servers that end with the test."""
    started: list[Server] = []

    def starting(models: Path, *words: str) -> Server:
        started.append(start(models, tmp_path / f"server{len(started)}.log", *words))
        return started[-1]

    yield starting
    for server in started:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def server(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests of a module that leave it as it was."""
    running = start(tiny_models, tmp_path_factory.mktemp("server") / "log", "limits.body_mb=1", "limits.photos=3")
    yield running
    running.process.kill()
    running.process.wait()
