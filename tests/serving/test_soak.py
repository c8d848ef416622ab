from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
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
