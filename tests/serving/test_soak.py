from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_short_soak_fails_no_request(tiny_models: Path) -> None:
    """Its slope says nothing after so few seconds; `python benchmarks/soak.py MODELS` is the full form."""
    command = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), str(tiny_models), "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ", 0 failed" in done.stdout, done.stdout + done.stderr
    assert "slope" in done.stdout
