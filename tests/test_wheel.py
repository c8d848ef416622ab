"""What `pip install` of the wheel gives works where there is no checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY, paint_folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds only the wheel's contents, to be found before the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_what_is_no_python_and_nothing_else_of_the_checkout(installed: Path) -> None:
    for name in (
        "conf/train.yaml",
        "conf/freeze/auto.yaml",
        "serving/page.html",
        "evaluation/report.html.j2",
        "export/card.md.j2",
    ):
        assert (installed / "finetune" / name).is_file(), name
    top = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert top == {"finetune"}


def test_train_and_export_run_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    photos = paint_folder(tmp_path / "photos")
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    where = "import finetune; print(finetune.__file__)"
    for command in (
        ["-c", where],
        ["-m", "finetune", "train", f"data.root={photos}", "output=run", *TINY],
        ["-m", "finetune", "export", "run=run", "output=models", "name=m"],
        ["-m", "finetune", "predict", "model=models/m", "input=photos/red", "output=out.csv"],
    ):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        if command[-1] == where:
            assert done.stdout.strip().startswith(str(installed))
    assert json.loads((tmp_path / "models" / "m" / "1" / "bundle.json").read_text())["parity"][0]["same_answer"] == 1.0
