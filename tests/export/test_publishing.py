from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.export.publishing import staging

HOLD = """
import sys, time
from pathlib import Path
from finetune.export.publishing import staging
with staging(Path(sys.argv[1])) as folder:
    (folder / "model.onnx").write_text("half of it")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def exporting(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Another process in the middle of an export; its folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.wait()
    process.stdout.close()


def test_what_is_staged_goes_in_the_end(tmp_path: Path) -> None:
    def fail() -> None:
        with staging(tmp_path) as folder:
            (folder / "model.onnx").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_export_in_progress_is_left_alone(exporting: tuple[subprocess.Popen[str], Path], tmp_path: Path) -> None:
    _, folder = exporting
    with staging(tmp_path) as mine:
        assert (folder / "model.onnx").is_file()
        assert mine != folder


def test_what_a_killed_export_left_is_cleared_by_the_next(
    exporting: tuple[subprocess.Popen[str], Path], tmp_path: Path
) -> None:
    process, folder = exporting
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (folder / "model.onnx").is_file()
    with staging(tmp_path):
        assert not folder.exists()
    assert list(tmp_path.iterdir()) == []
