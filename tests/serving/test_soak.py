from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

ROOT = Path(__file__).parents[2]
SOAK = ROOT / "benchmarks" / "soak.py"
LEAK = """
import sys, threading, time
kept = []
def leak():
    while True:
        kept.append(b"x" * 1_000_000)
        time.sleep(0.025)
if "serve" in sys.orig_argv:
    threading.Thread(target=leak, daemon=True).start()
"""
SWAP = """
import sys
if "serve" in sys.orig_argv:
    import finetune.serving.predict_route as route
    asked = route.ask
    async def swapped(*given):
        return list(reversed(await asked(*given)))
    route.ask = swapped
"""
# Of what takes a second or two on an idle machine.
WITHIN_S = 120


def soaked(models: Path, *folders: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*folders, ROOT]))}
    command = [sys.executable, str(SOAK), str(models), "8"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


def test_a_short_soak_fails_no_request(tiny_models: Path) -> None:
    """Its slope says nothing after so few seconds; `python benchmarks/soak.py MODELS` is the full form."""
    done = soaked(tiny_models)
    assert ", 0 failed" in done.stdout, done.stdout + done.stderr
    assert "slope" in done.stdout


def test_a_server_that_leaks_is_told_of(tiny_models: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(LEAK)
    done = soaked(tiny_models, tmp_path)
    assert done.returncode == 1
    assert ", 0 failed" in done.stdout, done.stdout + done.stderr
    slope = re.findall(r"slope \+(\S+) MB an hour, .*: GREW", done.stdout)
    # 40 MB a second, and a tenth of it on a busy machine; no warm-up takes as much
    assert float(slope[0]) > 4 * 3600, done.stdout


def test_answers_in_another_order_are_told_of(tiny_models: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SWAP)
    done = soaked(tiny_models, tmp_path)
    assert done.returncode == 1
    told = set(re.findall(r"\d+ x failed: (.*)", done.stdout))
    assert told == {"form", "json"}, done.stdout + done.stderr


@pytest.fixture
def soaking(tiny_models: Path) -> Iterator[subprocess.Popen[str]]:
    """A soak whose clients have just begun to ask."""
    words = [sys.executable, str(SOAK), str(tiny_models), "600"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, stdout=-1, stderr=-1, text=True, env=environment) as soak:
        assert soak.stdout is not None
        assert any("clients ask for 600 s" in line for line in soak.stdout)
        yield soak
        soak.kill()


def test_ctrl_c_ends_a_soak_and_its_server(soaking: subprocess.Popen[str]) -> None:
    (server,) = psutil.Process(soaking.pid).children()
    soaking.send_signal(signal.SIGINT)
    assert soaking.wait(WITHIN_S) != 0
    assert not server.is_running()


def test_a_soak_ends_with_its_server_and_says_its_last_words(soaking: subprocess.Popen[str]) -> None:
    (server,) = psutil.Process(soaking.pid).children()
    server.kill()
    _, told = soaking.communicate(timeout=WITHIN_S)
    assert soaking.returncode == 1
    assert "finetune serve has ended with exit code -9; its last lines:" in told
    assert "finetune.access" in told.splitlines()[-1]


@pytest.mark.parametrize(("leak", "told"), [(0, False), (40, True)])
def test_growth_is_told_from_memory_that_comes_and_goes(leak: float, told: bool) -> None:
    """Half an hour of memory that goes up and down by a megabyte within minutes; 1 KB kept of 11 requests a second."""
    judge = runpy.run_path(str(SOAK))["judge"]
    hours = np.arange(1350) / 3600
    for seed in range(20):
        chance, memory = np.random.default_rng(seed), [0.0]
        for step in chance.normal(0, 0.2, len(hours) - 1):
            memory.append(0.98 * memory[-1] + step)
        _, _, grew = judge(np.column_stack([hours, 300 + np.array(memory) + leak * hours]))
        assert grew is told, seed
