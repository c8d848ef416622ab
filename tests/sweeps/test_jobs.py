from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune.cli import run
from finetune.errors import FinetuneError, SweepError
from finetune.sweeps.jobs import Sweep
from tests.conftest import TINY, paint_folder


def sweep_in(folder: Path, *words: str) -> Sweep:
    sweep = Sweep.of(["--multirun", f"output={folder}", "data.root=photos", *words])
    assert sweep is not None
    return sweep


def failed(sweep: Sweep, place: int, words: list[str], failure: Exception) -> None:
    given = ["data.root=photos", *words]
    sweep.end(sweep.begin(place, given), given, failure)


def finished(sweep: Sweep, number: int, words: list[str], val: float, test: float | None, method: str = "none") -> None:
    figures = {"val_accuracy": val, "test_accuracy": test, "imbalance": method, "train_seconds": 3.4}
    balanced = {"val_balanced_accuracy": val / 2, "test_balanced_accuracy": None if test is None else test / 2}
    given = ["data.root=photos", *words]
    assert sweep.begin(number, given) == number
    folder = sweep.folder / str(number)
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(figures | balanced))
    job = sweep.end(number, given, None)
    assert job.objective == (val if method == "none" else val / 2)


def test_the_table_has_the_best_run_first_and_only_what_differs(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    finished(sweep, 0, ["seed=0", "optimizer.learning_rate=0.00123456"], 0.75, 0.5)
    finished(sweep, 1, ["seed=0", "optimizer.learning_rate=0.1"], 0.9, None)
    assert sweep.describe().splitlines() == [
        "run  optimizer.learning_rate  validation accuracy  test accuracy  seconds",
        "1    0.1                      90.0 %               -              3",
        "0    0.001235                 75.0 %               50.0 %         3",
    ]
    sweep.require_done()


def test_runs_that_only_repeat_each_other_are_summed_up(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    for seed, val in enumerate((0.8, 0.9, 1.0)):
        finished(sweep, seed, [f"seed={seed}", f"data.fold={seed}"], val, 0.5)
    said = sweep.describe().splitlines()
    assert said[-1] == "mean and standard deviation of 3 runs: validation 90.0 ± 10.0 %, test 50.0 ± 0.0 %"


def test_runs_with_a_method_against_imbalance_are_judged_by_balanced_accuracy(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    finished(sweep, 0, ["seed=0"], 0.75, 0.5, "class_weights")
    assert sweep.describe().splitlines() == [
        "run  validation balanced accuracy  test balanced accuracy  seconds",
        "0    37.5 %                        25.0 %                  3",
    ]


def test_every_failure_is_reported(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    finished(sweep, 0, ["seed=0"], 0.75, 0.5)
    failed(sweep, 1, ["seed=1"], FinetuneError("no photos there\ntry another folder"))
    with pytest.raises(SweepError, match="1 of 2 runs failed") as caught:
        sweep.require_done()
    assert str(caught.value).splitlines()[1:] == ["  run 1 (seed=1): no photos there"]
    assert caught.value.exit_code == 2
    failed(sweep, 2, ["seed=2"], ZeroDivisionError("division by zero"))
    with pytest.raises(SweepError) as caught:
        sweep.require_done()
    assert str(caught.value).splitlines()[2] == "  run 2 (seed=2): ZeroDivisionError: division by zero"
    assert caught.value.exit_code == 1
    assert len(sweep.describe().splitlines()) == 2
    # the same command again, which now works
    finished(sweep, 1, ["seed=1"], 0.75, 0.5)
    finished(sweep, 2, ["seed=2"], 0.75, 0.5)
    sweep.require_done()


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (["--multirun", "output=runs/a"], "runs/a"),
        (["output='runs/my sweep'", "-m", "seed=0,1"], "runs/my sweep"),
        (["output=runs/a"], None),
        (["-m"], None),
    ],
)
def test_the_folder_of_a_sweep(words: list[str], folder: str | None) -> None:
    sweep = Sweep.of(words)
    assert (sweep and sweep.folder) == (None if folder is None else Path(folder))


def test_a_run_keeps_its_number_in_another_sweep_of_the_same_folder(tmp_path: Path) -> None:
    first, second = sweep_in(tmp_path, "seed=1,2"), sweep_in(tmp_path, "seed=2,3")
    assert [first.begin(place, [f"seed={place + 1}"]) for place in range(2)] == [0, 1]
    # how it is watched makes no other run
    assert [second.begin(place, [f"seed={place + 2}", "logger=tensorboard"]) for place in range(2)] == [1, 2]
    assert first.begin(0, ["output=elsewhere", "seed=1"]) == 0
    assert second.begin(7, ["seed=9"]) == 7
    # runs that several processes have begin in any order
    assert first.begin(8, ["seed=2"]) == 1


def test_notes_of_an_older_version_are_of_other_sweeps(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path, "seed=1,2")
    finished(sweep, 0, ["seed=1"], 0.75, 0.5)
    older = tmp_path / "jobs" / "1.json"
    older.write_text(json.dumps({"overrides": ["seed=8"], "failure": "", "exit_code": 0}))
    sweep.require_done()
    assert [line[0] for line in sweep.describe().splitlines()[1:]] == ["0"]


def test_a_sweep_is_judged_by_its_own_runs(tmp_path: Path) -> None:
    first, second = sweep_in(tmp_path, "seed=0,1"), sweep_in(tmp_path, "seed=1,2")
    finished(first, 0, ["seed=0"], 0.75, 0.5)
    failed(first, 1, ["seed=1"], FinetuneError("no photos there"))
    finished(second, 1, ["seed=1"], 0.75, 0.5)
    finished(second, 2, ["seed=2"], 0.75, 0.5)
    second.require_done()
    assert [line[0] for line in second.describe().splitlines()[1:3]] == ["1", "2"]
    # the same words in another order are the same sweep, whatever it is started with
    again = Sweep.of(["-m", "seed=1,2", "data.root=photos", "hydra/launcher=x", f"output={tmp_path}/", "logger=wandb"])
    assert again == second


def test_a_run_that_ended_without_a_word_has_failed(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path, "seed=1,2")
    sweep.begin(0, ["seed=1"])
    with pytest.raises(SweepError, match="it ended without a word") as caught:
        sweep.require_done()
    assert caught.value.exit_code == 1


def test_a_sweep_with_failures_prints_its_table_and_all_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = paint_folder(tmp_path / "photos")
    tiny = [word for word in TINY if not word.startswith("model.backbone")]
    words = ["train", "--multirun", f"data.root={photos}", f"output={tmp_path / 'sweep'}", *tiny, "seed=0,1"]
    assert run([*words, "model.backbone=test_resnet,test_resnot"]) == 2
    said = capsys.readouterr()
    assert "run  seed  model.backbone  validation accuracy" in said.out
    assert "finetune train: 2 of 4 runs failed; the same command tries them again:\n  run 1 (" in said.err
    assert said.err.count("timm has no such architecture; did you mean 'test_resnet'?") == 2


def test_a_changed_sweep_in_the_same_folder_does_what_is_new(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, sweep = paint_folder(tmp_path / "photos"), tmp_path / "sweep"
    words = ["train", f"data.root={photos}", "-m", f"output={sweep}", *TINY]
    assert run([*words, "seed=1,2,none"]) == 2
    assert "run 2 (seed=none): seed=none is wrong" in capsys.readouterr().err
    before = (sweep / "1" / "result.json").stat().st_mtime_ns
    assert run([*words, "seed=2,3"]) == 0
    said = capsys.readouterr()
    assert f"already finished: {sweep / '1'}\n" in said.out
    table = said.out[said.out.index("run  seed") :].splitlines()
    assert sorted(line.split()[:2] for line in table[1:3]) == [["1", "2"], ["3", "3"]]
    assert table[-1].startswith("mean and standard deviation of 2 runs")
    assert (sweep / "1" / "result.json").stat().st_mtime_ns == before
    assert json.loads((sweep / "3" / "result.json").read_text())["seed"] == 3
