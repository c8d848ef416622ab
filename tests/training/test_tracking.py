"""Each logger is tested where its package is installed; TensorBoard's is wherever tests are."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
from PIL import Image

from finetune.cli import run
from finetune.training import tracking
from finetune.training.callbacks import EpochRows
from finetune.training.mixing import BatchMixing
from tests.conftest import TINY, run_finetune

LAYERS = (*TINY, "freeze=full", "trainer.max_epochs=3", "data.batch_size=8", "trainer.accelerator=cpu")


def column(folder: Path, name: str) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def train(photos: Path, output: Path, *words: str) -> int:
    return run(["train", f"data.root={photos}", f"output={output}", *words])


def interrupt_in_epoch(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after an epoch's row was written and before its checkpoint was."""
    written = EpochRows.on_train_epoch_end

    def then_interrupt(self: EpochRows, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        written(self, trainer, pl_module)
        if trainer.current_epoch == epoch:
            raise KeyboardInterrupt

    monkeypatch.setattr(EpochRows, "on_train_epoch_end", then_interrupt)


def interrupted_then_resumed(photos: Path, output: Path, logger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_in_epoch(1, patch)
        assert train(photos, output, *LAYERS, f"logger={logger}") == 130
    assert column(output, "epoch") == [1, 2]
    assert train(photos, output, *LAYERS, f"logger={logger}") == 0
    assert column(output, "epoch") == [1, 2, 3]


@pytest.fixture
def no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the environment says where a server is."""
    for name in ("MLFLOW_TRACKING_URI", "WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


def test_tensorboard_has_every_row_once_the_first_batch_and_the_result(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    output = tmp_path / "run"
    interrupted_then_resumed(photos, output, "tensorboard", monkeypatch)
    logged = events.EventAccumulator(str(output / "tensorboard")).Reload()
    for name in ("train_loss", "val_loss", "val_accuracy", "learning_rate"):
        points = logged.Scalars(name)
        assert [point.step for point in points] == [0, 1, 2]
        assert [point.value for point in points] == pytest.approx(column(output, name), rel=1e-6)
    result = json.loads((output / "result.json").read_text())
    (last,) = logged.Scalars("result/val_accuracy")
    assert last.value == pytest.approx(result["val_accuracy"])
    assert [point.value for point in logged.Scalars("result/calibration/val/after")] == [
        pytest.approx(result["calibration"]["val"]["after"], rel=1e-5)
    ]
    (picture,) = logged.Images("augmented")
    with Image.open(output / "augmented.png") as drawn:
        assert (picture.width, picture.height) == drawn.size
    assert logged.SummaryMetadata("_hparams_/session_start_info").plugin_data.plugin_name == "hparams"


def test_a_head_logs_a_row_for_each_candidate(tmp_path: Path, photos: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    output = tmp_path / "run"
    assert train(photos, output, *TINY[:3], "freeze=head", "logger=tensorboard") == 0
    logged = events.EventAccumulator(str(output / "tensorboard")).Reload()
    points = logged.Scalars("val_accuracy")
    assert [point.value for point in points] == pytest.approx(column(output, "val_accuracy"))
    # seven penalties for three feature sets, then the best on the validation photos
    assert len(points) == 22
    assert not (output / "augmented.png").exists()


# MLflow's own use of SQLAlchemy
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_goes_on_with_the_same_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_servers: None
) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    output = tmp_path / "run"
    interrupted_then_resumed(photos, output, "mlflow", monkeypatch)
    client = mlflow.MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    (experiment,) = (found for found in client.search_experiments() if found.name == "finetune")
    (logged,) = client.search_runs([experiment.experiment_id])
    assert (logged.info.run_name, logged.info.status) == ("run", "FINISHED")
    history = client.get_metric_history(logged.info.run_id, "val_loss")
    assert [point.step for point in history] == [0, 1, 2]
    assert [point.value for point in history] == pytest.approx(column(output, "val_loss"))
    assert logged.data.params["optimizer/name"] == "adamw"
    assert "result/val_accuracy" in logged.data.metrics
    assert [file.path for file in client.list_artifacts(logged.info.run_id)] == ["augmented.png"]


def test_wandb_stays_offline_without_a_key_and_goes_on_with_the_same_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_servers: None
) -> None:
    pytest.importorskip("wandb")
    output = tmp_path / "run"
    interrupted_then_resumed(photos, output, "wandb", monkeypatch)
    key = json.loads((output / "loggers.json").read_text())["keys"]["wandb"]
    folders = sorted((output / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert all((folder / f"run-{key}.wandb").stat().st_size for folder in folders)


def test_several_loggers_and_another_one_on_a_resumed_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with monkeypatch.context() as patch:
        interrupt_in_epoch(0, patch)
        assert train(photos, tmp_path / "run", *LAYERS) == 130
    # how a run is watched makes no other run of it
    assert train(photos, tmp_path / "run", *LAYERS, "logger=[tensorboard,none]") == 0
    logged = events.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [point.step for point in logged.Scalars("val_loss")] == [0, 1, 2]


def test_a_missing_package_is_named_before_photos_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    assert train(tmp_path, tmp_path / "run", "logger=[tensorboard,mlflow]") == 2
    assert capsys.readouterr().err.strip() == (
        "finetune train: logger=tensorboard needs packages that are not installed (tensorboard): "
        "pip install 'finetune-service[tracking]'"
    )
    assert not (tmp_path / "run").exists()


def test_a_server_that_does_not_answer_is_an_error_at_the_start(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    import os

    environment = os.environ | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    words = ["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *LAYERS, "logger=mlflow"]
    done = run_finetune(*words, env=environment)
    assert done.returncode == 2
    assert "finetune train: logger=mlflow cannot be started: " in done.stderr
    assert "Traceback" not in done.stderr


def test_the_picture_shows_the_batch_that_is_trained_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = []
    mixing = BatchMixing.__call__

    def noted(self, images, targets, epoch, number):  # type: ignore[no-untyped-def]
        mixed.append(mixing(self, images, targets, epoch, number))
        return mixed[-1]

    monkeypatch.setattr(BatchMixing, "__call__", noted)
    words = [*LAYERS, "augment=[standard,cutmix]", "trainer.max_epochs=1"]
    assert train(photos, tmp_path / "run", *words) == 0
    drawn, trained = mixed[:2]
    assert all((ours == theirs).all() for ours, theirs in zip(drawn, trained, strict=True))
    with Image.open(tmp_path / "run" / "augmented.png") as picture:
        pixels = np.asarray(picture)
    # the first photo's middle, in the middle of its cell
    wanted = drawn[0][0, 24:40, 24:40].numpy().mean((0, 1))
    assert pixels[24 + 60 : 24 + 100, 24 + 60 : 24 + 100].mean((0, 1)) == pytest.approx(wanted, abs=6)
