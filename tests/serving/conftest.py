"""A real server in a process of its own, on loopback."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from finetune.config import ServeConfig
from finetune.manual import conf_dir
from finetune.serving.serve import Service, assemble

READY_WITHIN_S = 60


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    address: str
    log: Path

    @property
    def place(self) -> tuple[str, int]:
        host, port = self.address.partition("://")[2].split(":")
        return host, int(port)

    @property
    def rss_mb(self) -> float:
        """Memory that the process has in RAM."""
        return self._status_mb("VmRSS")

    @property
    def most_mb(self) -> float:
        """The most that it has had."""
        return self._status_mb("VmHWM")

    @property
    def connections(self) -> int:
        """Those that the process has open, answered or not."""
        rows = [row.split() for row in Path(f"/proc/{self.process.pid}/net/tcp").read_text().splitlines()[1:]]
        here = f"{self.place[1]:04X}"
        # 0A listens; what no process has open any more, or not yet, has no inode
        return sum(row[1].endswith(f":{here}") and row[3] != "0A" and row[9] != "0" for row in rows)

    def _status_mb(self, key: str) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(rf"{key}:\s+(\d+) kB", status)[0]) / 1000

    @contextlib.contextmanager
    def grows_by_less_than(self, mb: float) -> Iterator[None]:
        """Fail the test where it takes so much more memory meanwhile, though it gives that back."""
        before = self.rss_mb
        # the most that it has had is counted from here on
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        yield
        assert self.most_mb - before < mb

    def told(self) -> str:
        """Return its log, which a thread of its own writes, once all is in it that came up until now."""
        last = uuid.uuid4().hex
        httpx.get(f"{self.address}/models", headers={"X-Request-ID": last}, verify=False)
        until(lambda: last in self.log.read_text())
        return self.log.read_text()

    def require_no_fault(self) -> None:
        log = self.told()
        assert "Traceback" not in log
        assert "Warning" not in log

    def require_well(self, photo: bytes) -> None:
        """Fail the test unless the server is alive, ready, answers a photo, and had no fault of its own."""
        assert httpx.get(f"{self.address}/healthz").status_code == 200
        assert httpx.get(f"{self.address}/readyz").status_code == 200
        answer = httpx.post(f"{self.address}/predict", content=photo)
        assert answer.status_code == 200, answer.text
        assert answer.json()["predictions"][0]["label"] == "red"
        self.require_no_fault()


Start = Callable[..., Server]


def serve_config(models: Path, **changed: Any) -> ServeConfig:
    """Return conf/serve.yaml as it stands, but for what is changed: `limits={"photos": 3}` leaves the other limits."""
    values = yaml.safe_load((conf_dir() / "serve.yaml").read_text())
    del values["defaults"]
    values |= {"models": str(models), "device": "cpu"}
    for key, value in changed.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    return ServeConfig.model_validate(values)


def assembled(models: Path, **changed: Any) -> Service:
    """Return what `finetune serve` would answer from, without a process; what fails while opening fails the test."""

    def fail(failure: Exception) -> None:
        raise failure

    return assemble(serve_config(models, **changed), fail)


@contextlib.asynccontextmanager
async def asking(models: Path, **changed: Any) -> AsyncIterator[httpx.AsyncClient]:
    service = assembled(models, **changed)
    await service.repository.start()
    transport = httpx.ASGITransport(service.app, client=("10.0.0.1", 1))
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client
    finally:
        service.repository.close()
        service.cores.close()


def start(models: Path, log: Path, *words: str, program: tuple[str, str] = ("-m", "finetune")) -> Server:
    """program: what Python is given in place of the program, where it is to find other things than there are here."""
    command = [sys.executable, *program, "serve", f"models={models}", "port=0", *words]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"https?://[\d.]+:\d+", log.read_text())
        if found:
            try:
                if httpx.get(found[0] + "/readyz", verify=False).status_code == 200:
                    return Server(process, found[0], log)
            except httpx.TransportError:
                pass
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"the server did not become ready:\n{log.read_text()}")


def error_of(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == ["error"]
    return str(body["error"])


def until(done: Callable[[], object], within_s: float = 60) -> None:
    """Wait for something to become true, and fail the test where it does not, on a busy machine either."""
    deadline = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def make_certificate(folder: Path) -> list[str]:
    """Return the words of a server with a certificate of its own."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl")
    cert, key = folder / "cert.pem", folder / "key.pem"
    asked = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(cert), "-keyout", str(key)]
    subprocess.run(["openssl", "req", *asked, *names], check=True, capture_output=True)
    return [f"tls_cert={cert}", f"tls_key={key}"]


@pytest.fixture(scope="session")
def red_photo(tiny_models: Path) -> bytes:
    return (tiny_models.parent / "photos" / "red" / "0.jpg").read_bytes()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Start]:
    """Start servers that end with the test."""
    started: list[Server] = []

    def starting(models: Path, *words: str, **changed: Any) -> Server:
        started.append(start(models, tmp_path / f"server{len(started)}.log", *words, **changed))
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
