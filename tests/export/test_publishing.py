from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from finetune.bundle import BundleInfo, ModelCard, open_bundle
from finetune.errors import FinetuneError
from finetune.export import publishing
from finetune.export.publishing import publish, staging

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


@pytest.fixture
def info(tiny_models: Path) -> BundleInfo:
    return open_bundle(tiny_models / "tiny").info


def staged(folder: Path) -> Path:
    (folder / "model.onnx").write_bytes(b"a graph")
    return folder


def test_a_number_that_another_program_took_is_left_alone(tmp_path: Path, info: BundleInfo) -> None:
    (tmp_path / "tiny" / "1").mkdir(parents=True)
    (tmp_path / "tiny" / "1" / "model.plan").write_text("not ours")
    with staging(tmp_path) as folder:
        assert publish(staged(folder), tmp_path, info).version == "2"


def test_an_export_that_is_overtaken_becomes_the_next_version(
    tmp_path: Path, info: BundleInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one publishes the first version between this one's look and its move."""
    describe = publishing.describe_versions

    def overtaken(home: Path, card: ModelCard) -> None:
        describe(home, card)
        if not (tmp_path / "tiny").exists():
            (tmp_path / "tiny" / "1").mkdir(parents=True)
            (tmp_path / "tiny" / "1" / "bundle.json").write_text("theirs")

    monkeypatch.setattr(publishing, "describe_versions", overtaken)
    with staging(tmp_path) as folder:
        bundle = publish(staged(folder), tmp_path, info)
    assert bundle.folder == tmp_path / "tiny" / "2"
    assert bundle.model.read_bytes() == b"a graph"
    assert (tmp_path / "tiny" / "1" / "bundle.json").read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


def test_many_that_publish_at_once_all_get_a_number(tmp_path: Path, info: BundleInfo) -> None:
    def export(number: int) -> str:
        with staging(tmp_path) as folder:
            (folder / "model.onnx").write_text(str(number))
            return publish(folder, tmp_path, info).version

    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(export, range(24)))
    assert sorted(map(int, versions)) == list(range(1, 25))


def test_a_file_by_the_model_s_name_is_refused(tmp_path: Path, info: BundleInfo) -> None:
    (tmp_path / "tiny").write_text("")
    with staging(tmp_path) as folder, pytest.raises(FinetuneError, match="tiny is a file; give another name="):
        publish(staged(folder), tmp_path, info)
