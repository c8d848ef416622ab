from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune.cli import run
from finetune.errors import FinetuneError, SweepError
from finetune.sweeps.jobs import describe_sweep, note, require_done, sweep_folder
from tests.conftest import TINY, paint_folder


def finished(sweep: Path, number: int, words: list[str], val: float, test: float | None, method: str = "none") -> None:
    figures = {"val_accuracy": val, "test_accuracy": test, "imbalance": method, "train_seconds": 3.4}
    balanced = {"val_balanced_accuracy": val / 2, "test_balanced_accuracy": None if test is None else test / 2}
    (sweep / str(number)).mkdir()
    (sweep / str(number) / "result.json").write_text(json.dumps(figures | balanced))
    job = note(sweep, number, ["data.root=photos", *words], None)
    assert job.objective == (val if method == "none" else val / 2)


def test_the_table_has_the_best_run_first_and_only_what_differs(tmp_path: Path) -> None:
    finished(tmp_path, 0, ["seed=0", "optimizer.learning_rate=0.00123456"], 0.75, 0.5)
    finished(tmp_path, 1, ["seed=0", "optimizer.learning_rate=0.1"], 0.9, None)
    assert describe_sweep(tmp_path).splitlines() == [
        "run  optimizer.learning_rate  validation accuracy  test accuracy  seconds",
        "1    0.1                      90.0 %               -              3",
        "0    0.001235                 75.0 %               50.0 %         3",
    ]
    require_done(tmp_path)


def test_runs_that_only_repeat_each_other_are_summed_up(tmp_path: Path) -> None:
    for seed, val in enumerate((0.8, 0.9, 1.0)):
        finished(tmp_path, seed, [f"seed={seed}", f"data.fold={seed}"], val, 0.5)
    said = describe_sweep(tmp_path).splitlines()
    assert said[-1] == "mean and standard deviation of 3 runs: validation 90.0 ± 10.0 %, test 50.0 ± 0.0 %"


def test_runs_with_a_method_against_imbalance_are_judged_by_balanced_accuracy(tmp_path: Path) -> None:
    finished(tmp_path, 0, ["seed=0"], 0.75, 0.5, "class_weights")
    assert describe_sweep(tmp_path).splitlines() == [
        "run  validation balanced accuracy  test balanced accuracy  seconds",
        "0    37.5 %                        25.0 %                  3",
    ]


def test_every_failure_is_reported(tmp_path: Path) -> None:
    finished(tmp_path, 0, ["seed=0"], 0.75, 0.5)
    note(tmp_path, 1, ["data.root=photos", "seed=1"], FinetuneError("no photos there\ntry another folder"))
    with pytest.raises(SweepError, match="1 of 2 runs failed") as caught:
        require_done(tmp_path)
    assert str(caught.value).splitlines()[1:] == ["  run 1 (seed=1): no photos there"]
    assert caught.value.exit_code == 2
    note(tmp_path, 2, ["data.root=photos", "seed=2"], ZeroDivisionError("division by zero"))
    with pytest.raises(SweepError) as caught:
        require_done(tmp_path)
    assert str(caught.value).splitlines()[2] == "  run 2 (seed=2): ZeroDivisionError: division by zero"
    assert caught.value.exit_code == 1
    assert len(describe_sweep(tmp_path).splitlines()) == 2
    # the same command again, which now works
    finished(tmp_path, 1, ["seed=1"], 0.75, 0.5)
    finished(tmp_path, 2, ["seed=2"], 0.75, 0.5)
    require_done(tmp_path)


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
    assert sweep_folder(words) == (None if folder is None else Path(folder))


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
