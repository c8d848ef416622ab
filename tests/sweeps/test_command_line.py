from __future__ import annotations

from pathlib import Path

import pytest

from finetune.cli import run
from finetune.errors import FinetuneError
from finetune.sweeps.command_line import flags_first, require_one_run


def test_flags_and_their_values_come_before_all_others_in_their_order() -> None:
    words = ["a=1", "-m", "~b", "c='-x=y'", "--cfg", "job", "--config-dir=x=y"]
    assert flags_first(words) == ["-m", "~b", "--cfg", "job", "--config-dir=x=y", "a=1", "c='-x=y'"]


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_multirun_may_stand_anywhere(flag: str, place: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data.root=nowhere", f"output={tmp_path}", "seed=1,2"]
    words.insert(place, flag)
    assert run(["train", *words]) == 2
    said = capsys.readouterr().err
    assert "2 of 2 runs failed" in said
    assert "run 1 (seed=2): data.root=" in said


@pytest.mark.parametrize(
    "word",
    ["hydra/sweeper=optuna", "hydra/launcher=joblib", "hydra.sweeper.n_trials=3", "+hydra.launcher.n_jobs=2"],
)
def test_how_several_runs_are_made_is_not_ignored_for_one(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", "data.root=a b", word, f"output={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert f"finetune train: {word} is about several runs, which take --multirun:\n" in said
    assert said.endswith(f"  finetune train --multirun 'data.root=a b' {word} output={tmp_path / 'run'}\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", ["1,2", "range(1,3)", "choice(1,2)", "interval(1,2)"])
def test_several_values_without_the_flag_are_told_what_to_type(value: str) -> None:
    with pytest.raises(FinetuneError) as caught:
        require_one_run([f"seed={value}"], "COMMAND")
    assert str(caught.value).splitlines() == [
        f"seed={value} gives several values, and a run for each takes --multirun:",
        "  COMMAND",
        f"as one value it is a list, seed=[{value}], or text with quotes inside quotes, 'seed=\"{value}\"'",
    ]


def test_one_value_is_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_one_run(["-x", "job", "a=[1,2]", "a='1,2'", "a={b:1,c:2}", "~a", "a=(1", "a="], "COMMAND")
    # a comma in a path separates nothing
    assert run(["check", f"data.root={tmp_path / 'x,y'}"]) == 2
    assert "x,y: no such folder" in capsys.readouterr().err
