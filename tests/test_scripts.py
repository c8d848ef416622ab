"""The scripts fail with a sentence that names the remedy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What scripts/setup needs, with no .venv yet, and a folder for commands that shadow the real ones."""
    folder = tmp_path / "checkout"
    (folder / "scripts").mkdir(parents=True)
    (folder / "commands").mkdir()
    for name in ("scripts/setup", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def shadow(checkout: Path, name: str, script: str) -> None:
    command = checkout / "commands" / name
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)


def setup(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{checkout / 'commands'}:{os.environ['PATH']}"
    return subprocess.run(
        [checkout / "scripts" / "setup"],
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_python_that_is_too_old_is_said_with_what_to_install(checkout: Path) -> None:
    for name in ("python3.11", "python3.12", "python3.13", "python3", "python"):
        shadow(checkout, name, "exit 1")
    done = setup(checkout)
    assert done.returncode == 1
    assert "no Python 3.11 to 3.13 with the venv module was found. Install one (Debian: apt-get install" in done.stderr
    assert not (checkout / ".venv").exists()


def test_too_little_room_is_said_before_anything_is_made(checkout: Path) -> None:
    shadow(checkout, "df", "echo header; echo /dev/x 9 9 2097152 1% /")
    done = setup(checkout)
    assert done.returncode == 1
    assert "2 GB are free here, 9 GB are needed (torch alone takes 6): make room" in done.stderr
    assert not (checkout / ".venv").exists()


def test_no_network_is_said_and_the_next_try_starts_over(checkout: Path) -> None:
    shadow(checkout, "df", "echo header; echo /dev/x 9 9 99999999 1% /")
    for _ in range(2):
        done = setup(checkout, PIP_NO_INDEX="1", PIP_FIND_LINKS="")
        assert done.returncode == 1
        assert "packages could not be fetched: check the network and pip's settings" in done.stderr
        assert not (checkout / ".venv" / "setup.stamp").exists()


def test_setup_does_nothing_where_it_has_been_done() -> None:
    if not (ROOT / ".venv" / "setup.stamp").is_file():
        pytest.skip("this environment was not made by scripts/setup")
    for _ in range(2):
        done = subprocess.run([ROOT / "scripts" / "setup"], capture_output=True, text=True, check=True)
    assert done.stdout == "setup: .venv is up to date\n"


def test_the_picture_of_the_documents_is_drawn_small(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "augmentation_picture.py"
    subprocess.run([sys.executable, script, tmp_path / "augment.png"], check=True)
    with Image.open(tmp_path / "augment.png") as drawn, Image.open(ROOT / "docs" / "augment.png") as shown:
        assert drawn.size == shown.size
    assert (ROOT / "docs" / "augment.png").stat().st_size < 300_000


def test_sample_photos_are_the_same_every_time_and_never_in_both_splits(tmp_path: Path) -> None:
    for name in ("first", "second"):
        subprocess.run(
            [sys.executable, ROOT / "scripts" / "sample_data.py", tmp_path / name, "3"],
            check=True,
        )
    found = [
        sorted(p.relative_to(tmp_path / name) for p in (tmp_path / name).rglob("*.jpg")) for name in ("first", "second")
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 18
    train = {(path.parts[1], path.name) for path in found[0] if path.parts[0] == "train"}
    test = {(path.parts[1], path.name) for path in found[0] if path.parts[0] == "test"}
    assert not train & test
