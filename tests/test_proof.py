"""What scripts/prove-server says at its end, with commands in place of those that take an hour."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

SKIPPED = "SKIPPED [2] tests/serving/test_page.py:22: no Chromium here"
PEER = "LitServe is left out: pip install '.[peers]'"
ROOTLESS = "scripts/container-check: making a Debian base takes root"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The script, a model and a photo; each command says what it was given and is content."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/prove-server", tmp_path / "scripts/prove-server")
    for command in (".venv/bin/pytest", ".venv/bin/python", "scripts/container-check"):
        stand_in(tmp_path / command, "true")
    for model in ("models/flowers", "reduced"):
        (tmp_path / model).mkdir(parents=True)
        (tmp_path / model / "config.pbtxt").touch()
    (tmp_path / "photo.jpg").touch()
    return tmp_path


def stand_in(command: Path, script: str) -> None:
    command.parent.mkdir(parents=True, exist_ok=True)
    command.write_text(f'#!/bin/sh\necho "asked: $0 $*"\n{script}\n')
    command.chmod(0o755)


def proved(checkout: Path, *words: str) -> tuple[int, list[str]]:
    """Return the exit code and the lines behind the last step's."""
    command = [checkout / "scripts/prove-server", *(checkout / word for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    last = done.stdout.rindex("asked: ")
    return done.returncode, done.stdout[last:].rstrip().splitlines()[1:]


def test_everything_held_where_all_was_measured(checkout: Path) -> None:
    code, lines = proved(checkout, "models", "photo.jpg", "reduced")
    assert (code, lines[-1]) == (0, "everything held")
    assert not any("not measured" in line for line in lines)


def test_what_was_not_there_is_named_and_has_an_exit_code(checkout: Path) -> None:
    stand_in(checkout / ".venv/bin/pytest", f'case "$*" in *--ignore*) echo "{SKIPPED}";; esac')
    stand_in(checkout / ".venv/bin/python", f'case "$*" in *serving.py*) echo "{PEER}" >&2; echo "{PEER}" >&2;; esac')
    stand_in(checkout / "scripts/container-check", f'echo "{ROOTLESS}" >&2; exit 2')
    code, lines = proved(checkout, "models", "photo.jpg")
    assert code == 3
    assert lines[-5:] == [
        "not measured: the reduced model: no REDUCED was given",
        f"not measured: the other tests of the server: {SKIPPED}",
        f"not measured: in a container: {ROOTLESS}",
        f"not measured: beside its peers: {PEER}",
        "what was measured held",
    ]


@pytest.mark.parametrize("code", [1, 2])
def test_what_failed_comes_before_what_was_not_measured(checkout: Path, code: int) -> None:
    stand_in(checkout / ".venv/bin/pytest", f"exit {code}")
    ended, lines = proved(checkout, "models", "photo.jpg")
    assert ended == 1
    assert lines[-1] == "did not hold: the other tests of the server"
    assert "not measured: the reduced model: no REDUCED was given" in lines


def test_the_container_gets_a_repository_where_one_model_was_given(checkout: Path) -> None:
    stand_in(checkout / "scripts/container-check", 'test -f "$1/flowers/config.pbtxt"')
    for models in ("models", "models/flowers"):
        assert proved(checkout, models, "photo.jpg", "reduced")[0] == 0
