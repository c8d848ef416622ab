from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from finetune.cli import run
from finetune.config import TrainConfig
from finetune.errors import FinetuneError
from finetune.run import FinishedRun, Run
from tests.conftest import CLASSES, TINY, paint, paint_folder

LAYERS = (*TINY, "trainer.max_epochs=2", "data.batch_size=8", "trainer.accelerator=cpu")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(safetensors.torch.load_file(folder / "weights.safetensors"))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_head_only_run_learns_three_colours_and_leaves_every_file(tiny_run: Path) -> None:
    result = json.loads((tiny_run / "result.json").read_text())
    assert result["val_accuracy"] == 1.0
    assert result["test_accuracy"] == 1.0
    assert (result["freeze"], result["backbone"], result["image_size"]) == ("head", "test_resnet", 64)
    assert sum(result["photos"].values()) == 24
    assert 0 < result["trainable_parameters"] < result["total_parameters"]
    assert result["train_seconds"] > 0
    assert result["images_per_second"] > 0
    assert {"torch", "timm", "python", "finetune-service"} <= set(result["versions"])
    files = {path.name for path in tiny_run.iterdir()}
    wanted = {"config.yaml", "manifest.csv", "checkpoints", "weights.safetensors", "metrics.csv", "result.json"}
    assert wanted | {"report.html"} <= files
    assert {path.name for path in (tiny_run / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert yaml.safe_load((tiny_run / "config.yaml").read_text())["model"]["backbone"] == "test_resnet"
    report = (tiny_run / "report.html").read_text()
    assert "100.0 %" in report
    assert all(label in report for label in CLASSES)


def test_the_seconds_that_a_person_sees_are_those_of_the_whole_command(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic() - 5000
    monkeypatch.setattr(TrainConfig, "began", property(lambda config: began))
    assert run(["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *TINY]) == 0
    assert re.search(r", freeze=head, 5\d\d\d s$", capsys.readouterr().out.splitlines()[0])
    assert json.loads((tmp_path / "run" / "result.json").read_text())["train_seconds"] < 1000


def test_checkpoints_load_without_running_their_pickle(tiny_run: Path) -> None:
    state = torch.load(tiny_run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for name, tensor in weights(tiny_run).items():
        assert torch.equal(state[f"classifier.{name}"], tensor)


def test_every_candidate_is_a_row_of_metrics(tiny_run: Path) -> None:
    rows = table(tiny_run / "metrics.csv")
    assert {row["features"] for row in rows} == {"last", "stages", "all"}
    best = max(float(row["val_accuracy"]) for row in rows)
    assert best == json.loads((tiny_run / "result.json").read_text())["val_accuracy"]


def test_a_restored_classifier_answers_as_the_result_says(tiny_run: Path) -> None:
    assert run(["evaluate", f"run={tiny_run}", f"output={tiny_run.parent / 'evaluation'}"]) == 0
    rows = table(tiny_run.parent / "evaluation" / "predictions.csv")
    assert len(rows) == 7
    assert all(row["label"] == row["answer"] for row in rows)


@pytest.mark.parametrize("depth", ["partial", "full"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_layers_train_and_only_the_planned_ones_move(
    photos: Path, tmp_path: Path, depth: str, optimizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    # the pretrained weights, so that it can be told what moved
    file = tmp_path / "pretrained.pth"
    import timm

    torch.manual_seed(3)
    pretrained = timm.create_model("test_resnet").state_dict()
    torch.save(pretrained, file)
    words = [word for word in LAYERS if not word.startswith("model.weights")]
    words += [f"freeze={depth}", f"optimizer={optimizer}", f"model.weights={file}"]
    words += ["optimizer.learning_rate=0.01", *(["freeze.top_groups=1"] if depth == "partial" else [])]
    assert run(["train", f"data.root={photos}", f"output={output}", *words]) == 0
    trained = {name.removeprefix("backbone.network."): tensor for name, tensor in weights(output).items()}
    moved = {name for name in pretrained if name in trained and not torch.equal(trained[name], pretrained[name])}
    stem = {name for name in moved if name.startswith(("conv1", "bn1"))}
    top = {name for name in moved if name.startswith("layer4")}
    assert top
    assert bool(stem) == (depth == "full")
    result = json.loads((output / "result.json").read_text())
    assert result["freeze"] == depth
    assert (result["trainable_parameters"] < result["total_parameters"]) == (depth == "partial")
    rows = table(output / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert (output / "colour_pca.json").is_file()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(photos: Path, tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        words = ["train", f"data.root={photos}", f"output={tmp_path / name}", *LAYERS, "freeze=full", f"seed={seed}"]
        assert run(words) == 0
    first, again, other = (weights(tmp_path / name) for name in ("first", "again", "other"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_patience_stops_early(photos: Path, tmp_path: Path) -> None:
    words = [*LAYERS[:-2], "trainer.max_epochs=30", "trainer.patience=2", "optimizer.learning_rate=1e-9"]
    assert run(["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *words, "freeze=partial"]) == 0
    assert len(table(tmp_path / "run" / "metrics.csv")) < 30


def test_the_same_command_again_says_that_it_is_finished(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (tiny_run / "weights.safetensors").stat().st_mtime_ns
    assert run(["train", f"data.root={tiny_run.parent / 'photos'}", f"output={tiny_run}", *TINY]) == 0
    assert capsys.readouterr().out.startswith(f"already finished: {tiny_run}\nvalidation accuracy 100.0 %")
    assert (tiny_run / "weights.safetensors").stat().st_mtime_ns == before


def test_a_folder_that_holds_another_run_is_refused(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tiny_run.parent / "photos"
    assert run(["train", f"data.root={photos}", f"output={tiny_run}", *TINY, "seed=7"]) == 2
    assert capsys.readouterr().err.strip() == (
        f"finetune train: output={tiny_run} holds another run: seed is 0 there and 7 here; "
        "choose another output=, or delete that folder"
    )


def test_a_folder_that_is_no_run_is_refused(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    assert run(["train", f"data.root={photos}", f"output={tmp_path / 'thesis'}", *TINY]) == 2
    message = f"finetune train: output={tmp_path / 'thesis'} exists and is no run folder; choose another output="
    assert capsys.readouterr().err.strip() == message


def test_the_folder_is_free_again_when_a_training_ends(tmp_path: Path) -> None:
    first, second = Run(tmp_path / "run").claimed(), Run(tmp_path / "run").claimed()
    with first, pytest.raises(FinetuneError, match="is being trained by another process"):
        second.__enter__()
    with Run(tmp_path / "run").claimed():
        pass


def test_two_trainings_at_once_do_not_share_a_folder(photos: Path, tmp_path: Path) -> None:
    words = [*TINY, "freeze=full", "data.batch_size=4", "trainer.max_epochs=1000", "trainer.patience=1000"]
    command = [sys.executable, "-m", "finetune", "train", f"data.root={photos}", f"output={tmp_path / 'run'}", *words]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "config.yaml").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 2
    assert second.stderr.strip() == (
        f"finetune train: output={tmp_path / 'run'} is being trained by another process; "
        "wait for it, or choose another output="
    )


def test_a_run_without_test_photos_has_no_test_accuracy(tmp_path: Path) -> None:
    photos = paint_folder(tmp_path / "photos", per_class=2)
    assert run(["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *TINY]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["photos"] == {"train": 3, "val": 3, "test": 0}
    assert result["test_accuracy"] is None
    assert run(["export", f"run={tmp_path / 'run'}", f"output={tmp_path / 'models'}"]) == 0


def test_damaged_files_are_skipped_named_and_counted_and_the_run_goes_on(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (photos / "red" / "empty.jpg").touch()
    (photos / "red" / "notes.txt").write_text("not a photo")
    whole = (photos / "blue" / "0.jpg").read_bytes()
    (photos / "blue" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    assert run(["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *TINY]) == 0
    manifest = FinishedRun(tmp_path / "run").manifest
    assert {photo.path: photo.problem.partition(":")[0] for photo in manifest.skipped} == {
        "blue/cut.jpg": "damaged",
        "red/empty.jpg": "empty file (0 bytes)",
        "red/notes.txt": "not an image in a format that can be read",
    }
    assert json.loads((tmp_path / "run" / "result.json").read_text())["skipped"] == 3


def test_the_skipped_files_are_said_aloud(photos: Path, tmp_path: Path) -> None:
    (photos / "red" / "empty.jpg").touch()
    done = subprocess.run(
        [sys.executable, "-m", "finetune", "train", f"data.root={photos}", f"output={tmp_path / 'run'}", *TINY],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "skipped 1 file:\n  red/empty.jpg: empty file (0 bytes)" in done.stderr
    # plain lines in a log, no progress bar's control characters
    assert "\x1b" not in done.stderr + done.stdout
    assert "\r" not in done.stderr + done.stdout


def kill_when(condition: Path, command: list[str], number: signal.Signals) -> int:
    """Start a command, send it a signal once a file appears, and return its exit code."""
    child = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # a suite started in the background has Ctrl-C ignored, and hands that down
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not condition.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition.exists()
    child.send_signal(number)
    return child.wait(timeout=60)


@pytest.mark.parametrize(
    ("number", "code", "freeze"),
    [
        # a depth begins to train every 8 epochs: five of them, before and after the end
        (signal.SIGKILL, -9, ["freeze=gradual", "freeze.epochs_per_group=8"]),
        (signal.SIGINT, 130, ["freeze=full"]),
    ],
)
def test_an_interrupted_run_resumes_to_its_end(
    tmp_path: Path, number: signal.Signals, code: int, freeze: list[str]
) -> None:
    photos = paint_folder(tmp_path / "photos")
    words = [
        *TINY,
        *freeze,
        "data.batch_size=5",
        "trainer.max_epochs=40",
        "trainer.patience=40",
    ]
    # every distortion that draws, of photos and of batches, odd ones too
    words.append("augment=[strong,mixup,cutmix]")
    command = [sys.executable, "-m", "finetune", "train", f"data.root={photos}", f"output={tmp_path / 'run'}", *words]
    whole = [word.replace(str(tmp_path / "run"), str(tmp_path / "whole")) for word in command[3:]]
    assert run(whole) == 0
    assert kill_when(tmp_path / "run" / "checkpoints" / "last.ckpt", command, number) == code
    assert not (tmp_path / "run" / "result.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stderr
    rows = table(tmp_path / "run" / "metrics.csv")
    assert [int(row["epoch"]) for row in rows] == list(range(1, 41))
    resumed, uninterrupted = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in uninterrupted)


def test_a_killed_head_only_run_starts_over_and_finishes(tmp_path: Path) -> None:
    photos = paint_folder(tmp_path / "photos")
    words = [word for word in TINY if not word.startswith("data.image_size")]
    command = [sys.executable, "-m", "finetune", "train", f"data.root={photos}", f"output={tmp_path / 'run'}", *words]
    assert kill_when(Path(os.environ["XDG_CACHE_HOME"]) / "finetune-service/features", command, signal.SIGKILL) == -9
    assert run(["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *words]) == 0
    assert (tmp_path / "run" / "result.json").is_file()


def test_a_gpu_that_is_not_there_is_an_error(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    words = ["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *TINY, "trainer.accelerator=gpu"]
    assert run(words) == 2
    assert "torch finds no CUDA GPU here; use auto or cpu" in capsys.readouterr().err


def test_split_folders_are_kept_as_they_are(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for label in CLASSES:
            for index in range(count):
                seed = 100 * count + 10 * len(split) + index
                paint(tmp_path / "photos" / split / label / f"{index}.png", label, seed)
    assert run(["train", f"data.root={tmp_path / 'photos'}", f"output={tmp_path / 'run'}", *TINY]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert sum(result["photos"].values()) == 24


def test_a_signal_to_the_whole_group_is_an_interruption_although_workers_get_it_too(tmp_path: Path) -> None:
    photos = paint_folder(tmp_path / "photos")
    words = ["model.backbone=test_resnet", "model.weights=none", "data.image_size=64", "data.num_workers=2"]
    words += ["freeze=full", "data.batch_size=4", "trainer.max_epochs=1000", "trainer.patience=1000"]
    command = [sys.executable, "-m", "finetune", "train", f"data.root={photos}", f"output={tmp_path / 'run'}", *words]
    log = tmp_path / "log"
    with log.open("wb") as file:
        child = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGTERM)
    assert child.wait(timeout=60) == 130
    said = log.read_text()
    assert "interrupted" in said
    assert "DataLoader worker" not in said
    # a thread of Python's own that passes tensors on may complain on a busy machine, nothing of ours
    assert said.count("Traceback") <= said.count("resource_sharer.py")


def test_a_mistake_that_was_found_before_any_work_is_corrected_in_place(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", f"data.root={photos}", f"output={tmp_path / 'run'}"]
    assert run([*words, "model.backbone=resnet18"]) == 2
    assert "no pretrained weights for resnet18" in capsys.readouterr().err
    assert run([*words, *TINY]) == 0


def test_a_diverged_training_is_no_result(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *LAYERS, "freeze=full"]
    assert run([*words, "optimizer.learning_rate=1e30", "schedule=none"]) == 2
    said = capsys.readouterr().err
    assert "training diverged in epoch 1, batch 2 of 2: the training loss is nan on these photos:" in said
    assert "lower optimizer.learning_rate (1e+30)" in said
    assert not (tmp_path / "run" / "result.json").exists()
    # corrected in the same folder, on other photos: nothing of the first attempt is used
    first = (tmp_path / "run" / "colour_pca.json").read_text()
    paint_folder(tmp_path / "others", per_class=6)
    corrected = [word.replace(str(photos), str(tmp_path / "others")) for word in words]
    assert run([*corrected, "optimizer.learning_rate=0.001"]) == 0
    assert (tmp_path / "run" / "colour_pca.json").read_text() != first


@pytest.mark.parametrize("damage", ["last", "best"])
def test_damaged_checkpoints_are_named(
    photos: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *LAYERS, "freeze=full"]
    assert run(words) == 0
    (tmp_path / "run" / "result.json").unlink()
    checkpoint = tmp_path / "run" / "checkpoints" / f"{damage}.ckpt"
    checkpoint.unlink()
    if damage == "last":
        checkpoint.write_bytes(b"garbage")
    assert run(words) == 2
    assert f"{checkpoint}" in capsys.readouterr().err


def test_photos_that_changed_since_the_run_began_are_refused(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *LAYERS, "freeze=full"]
    assert run(words) == 0
    paint(photos / "red" / "new.jpg", "red", seed=99)
    capsys.readouterr()
    assert run(words) == 0
    assert f"since then 1 files came to {photos} and 0 went" in capsys.readouterr().out
    (tmp_path / "run" / "result.json").unlink()
    assert run(words) == 2
    assert "have changed since this run began (24 files then, 25 now)" in capsys.readouterr().err


def test_a_damaged_config_is_named(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *TINY]
    assert run(words) == 0
    (tmp_path / "run" / "config.yaml").write_text(":{")
    capsys.readouterr()
    assert run(words) == 2
    message = f"finetune train: {tmp_path / 'run' / 'config.yaml'} is damaged; delete that folder, or choose another"
    assert capsys.readouterr().err.strip() == message


def split_folders(root: Path) -> Path:
    """24 photos to train on and 6 to validate with."""
    paint_folder(root / "train", 8)
    paint_folder(root / "val", 2)
    return root


PLAIN = ("data.num_workers=0", "model.weights=none", "trainer.max_epochs=1", "trainer.accelerator=cpu")
SGD = ("freeze=full", "augment=none", "optimizer=momentum", "optimizer.weight_decay=0", "schedule=none")


def test_batches_accumulate_to_the_step_of_one_that_is_as_large_as_all(tmp_path: Path) -> None:
    # no batch norm, whose statistics would be those of the small batches
    words = ["train", f"data.root={split_folders(tmp_path / 'photos')}", "model.backbone=test_vit", *PLAIN, *SGD]
    for name, given in {"large": (8, 1), "small": (4, 2), "fewer": (4, 1)}.items():
        size, accumulate = given
        chosen = [f"output={tmp_path / name}", f"data.batch_size={size}", f"trainer.accumulate={accumulate}"]
        assert run([*words, *chosen]) == 0
    large, small, fewer = (weights(tmp_path / name) for name in ("large", "small", "fewer"))
    assert all(torch.allclose(large[name], small[name], atol=1e-6) for name in large)
    assert not all(torch.allclose(large[name], fewer[name], atol=1e-6) for name in large)


def test_clipped_gradients_move_weights_no_further_than_the_norm_allows(tmp_path: Path) -> None:
    words = ["train", f"data.root={split_folders(tmp_path / 'photos')}", "model.backbone=test_resnet", *PLAIN, *SGD]
    words += ["data.batch_size=24", "optimizer.learning_rate=0.5"]
    chosen = {"start": ("trainer.clip_norm=1e-12",), "clipped": ("trainer.clip_norm=0.01",), "free": ()}
    for name, more in chosen.items():
        assert run([*words, f"output={tmp_path / name}", *more]) == 0
    start, clipped, free = (weights(tmp_path / name) for name in chosen)
    buffers = ("running_mean", "running_var", "num_batches_tracked", "temperature")
    trained = [name for name in start if not name.endswith(buffers)]

    def moved(after: dict[str, torch.Tensor]) -> float:
        return float(sum(((after[name] - start[name]).double() ** 2).sum() for name in trained) ** 0.5)

    # one step of all photos: learning rate times norm
    assert moved(clipped) == pytest.approx(0.5 * 0.01, rel=0.01)
    assert moved(free) > 10 * moved(clipped)


def test_an_unknown_optimizer_is_refused_before_photos_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", f"data.root={tmp_path}", f"output={tmp_path / 'run'}", "optimizer.name=lions"]) == 2
    assert "optimizer.name=lions: timm has no such optimizer; did you mean 'lion'?" in capsys.readouterr().err


def test_smoothing_dropout_and_drop_path_reach_the_training(photos: Path, tmp_path: Path) -> None:
    words = ["train", f"data.root={photos}", *LAYERS, "freeze=full"]
    chosen = {
        "plain": "trainer.label_smoothing=0",
        "smoothed": "trainer.label_smoothing=0.3",
        "dropout": "head.dropout=0.5",
        "drop_path": "model.drop_path=0.5",
    }
    for name, key in chosen.items():
        assert run([*words, f"output={tmp_path / name}", key]) == 0
    assert len({(tmp_path / name / "weights.safetensors").read_bytes() for name in chosen}) == len(chosen)
