from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from finetune.cli import run
from finetune.sweeps.optuna_sweeper import distribution
from tests.conftest import TINY, paint_folder

SEARCH = ("hydra/sweeper=optuna", "trainer.max_epochs=1", "trainer.accelerator=cpu", "freeze=full")
SPACE = ("optimizer.learning_rate=tag(log,interval(1e-4,1e-1))", "data.batch_size=range(4,9,2)", "optimizer=sgd,adamw")


def swept(folder: Path, printed: str) -> list[str]:
    """Return the rows of the table without their times."""
    assert sorted(path.name for path in folder.iterdir() if path.name.isdigit())
    lines = printed.splitlines()
    table = lines[next(number for number, line in enumerate(lines) if line.startswith("run ")) :]
    return [line.rsplit(maxsplit=1)[0] for line in table]


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("optimizer=sgd,adamw", CategoricalDistribution(["sgd", "adamw"])),
        ("augment=choice(none,[defect,rotate])", CategoricalDistribution(["none", "[defect,rotate]"])),
        ("data.batch_size=range(4,13,4)", IntDistribution(4, 12, step=4)),
        ("a=range(0.5,2.0,0.5)", CategoricalDistribution(["0.5", "1.0", "1.5"])),
        ("a=int(interval(1,9))", IntDistribution(1, 9)),
        ("a=interval(0,0.5)", FloatDistribution(0, 0.5)),
        ("a=tag(log,interval(1e-5,1e-2))", FloatDistribution(1e-5, 1e-2, log=True)),
    ],
)
def test_several_values_of_a_key_are_what_is_searched(word: str, wanted: BaseDistribution) -> None:
    assert distribution(OverridesParser.create().parse_override(word)) == wanted


def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = paint_folder(tmp_path / "photos")
    words = ["train", "--multirun", f"data.root={photos}", *TINY, *SEARCH, *SPACE, "hydra.sweeper.n_trials=4"]
    assert run([*words, f"output={tmp_path / 'whole'}"]) == 0
    whole = swept(tmp_path / "whole", capsys.readouterr().out)
    assert len(whole) == 5
    command = [sys.executable, "-m", "finetune", *words, f"output={tmp_path / 'killed'}"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "1" / "manifest.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert (tmp_path / "killed" / "0" / "result.json").exists()
    first = (tmp_path / "killed" / "0" / "result.json").stat().st_mtime_ns
    assert run([*words, f"output={tmp_path / 'killed'}"]) == 0
    assert swept(tmp_path / "killed", capsys.readouterr().out) == whole
    assert (tmp_path / "killed" / "0" / "result.json").stat().st_mtime_ns == first
    # another search has no place there
    other = [word.replace("1e-1", "1") for word in words]
    assert run([*other, f"output={tmp_path / 'killed'}"]) == 2
    assert (
        "holds another sweep: optimizer.learning_rate is tag(log,interval(1e-4,1e-1)) there and "
        "tag(log,interval(1e-4,1)) here; choose another output="
    ) in capsys.readouterr().err


def test_a_run_that_failed_is_tried_again_by_the_same_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    words = ["train", "--multirun", f"data.root={photos}", f"output={tmp_path / 'sweep'}", *TINY, *SEARCH]
    words += ["optimizer=sgd,adamw", "hydra.sweeper.n_trials=2"]
    assert run(words) == 2
    said = capsys.readouterr().err
    assert "finetune train: 2 of 2 runs failed; the same command tries them again:" in said
    assert "run 0 (optimizer=sgd)" in said or "run 0 (optimizer=adamw)" in said or "run 0 ()" in said
    paint_folder(photos)
    assert run(words) == 0
    assert len(swept(tmp_path / "sweep", capsys.readouterr().out)) == 3


def test_a_search_needs_something_to_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--multirun", "data.root=photos", f"output={tmp_path / 'sweep'}", *TINY, *SEARCH]
    assert run(words) == 2
    assert "hydra/sweeper=optuna has nothing to search: give a key several values" in capsys.readouterr().err


def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("finetune.sweeps.optuna_sweeper.find_spec", lambda name: None)
    assert run(["train", "--multirun", "data.root=photos", f"output={tmp_path}", *SEARCH, *SPACE]) == 2
    assert "needs the package optuna: pip install 'finetune-service[sweep]'" in capsys.readouterr().err
