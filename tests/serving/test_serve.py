"""What `finetune serve` refuses before it listens, and how it ends."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.ports import free_port
from tests.serving.conftest import make_certificate, until

PAGE = 4096


def ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("terminal", [False, True])
def test_an_encrypted_key_is_refused_and_asks_nobody(tiny_models: Path, tmp_path: Path, terminal: bool) -> None:
    words = make_certificate(tmp_path)
    plain, encrypted = tmp_path / "key.pem", tmp_path / "encrypted.pem"
    openssl = f"openssl pkey -in {plain} -aes256 -passout pass:secret -out {encrypted}"
    subprocess.run(openssl.split(), check=True, capture_output=True)
    command = [sys.executable, "-m", "finetune", "serve", f"models={tiny_models}", "port=0", "logs=text"]
    command += [words[0], f"tls_key={encrypted}"]
    theirs, ours = os.openpty()
    # in a session of its own the process has that terminal, or none, whatever this one has
    begun = subprocess.Popen(
        ["setsid", "--ctty", *command] if terminal else ["setsid", *command],
        stdin=ours if terminal else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(ours)
    try:
        out, told = begun.communicate(timeout=60)
    finally:
        begun.kill()
        os.close(theirs)
    assert begun.returncode == 2
    assert out == ""
    remedy = f"openssl pkey -in {encrypted} -out plain.key"
    asked = "is encrypted, and nobody is asked for its pass phrase; give one that is not"
    assert told == f"finetune serve: tls_key={encrypted} {asked}: {remedy}\n"


@pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="pipes have one size here")
def test_a_second_signal_waits_for_no_slow_reader_of_the_log(tiny_models: Path) -> None:
    port = free_port()
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PAGE)
    words = [f"models={tiny_models}", f"port={port}", "logs=json", "drain_s=3600"]
    server = subprocess.Popen([sys.executable, "-m", "finetune", "serve", *words], stderr=writing)
    os.close(writing)
    try:
        address = f"http://127.0.0.1:{port}"
        until(lambda: ready(address))
        with httpx.Client() as client:
            # more than is read below
            for _ in range(800):
                client.get(f"{address}/{'x' * 200}")
        server.send_signal(signal.SIGTERM)
        until(lambda: not ready(address))
        server.send_signal(signal.SIGTERM)
        # at this pace the end of an orderly stop would wait for 10 s, which is 100 pages
        for _ in range(60):
            if server.poll() is None:
                os.read(reading, PAGE)
                time.sleep(0.1)
        assert server.poll() == 128 + signal.SIGTERM
    finally:
        server.kill()
        server.wait()
        os.close(reading)
