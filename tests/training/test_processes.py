from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from finetune.cli import run
from tests.conftest import TINY, paint_folder
from tests.training.test_train import split_folders, table, weights

# steps so small that rounding, which goes another way in shares of a batch, is not magnified
SMALL = ("trainer.accelerator=cpu", "optimizer=momentum", "optimizer.learning_rate=1e-4", "schedule=none")
CASES = {
    # batch norm that trains; shares of five and four photos, and of four and two
    "full": ("freeze=full", "data.batch_size=9", "trainer.max_epochs=2", "augment=strong"),
    # another depth opens within every epoch, frozen batch norm, and everything that looks at a whole batch
    "gradual": (
        "freeze=gradual",
        "freeze.epochs_per_group=0.7",
        "data.batch_size=9",
        "trainer.max_epochs=3",
        "augment=[standard,mixup,cutmix]",
        "imbalance=balanced_sampler",
        "trainer.accumulate=2",
        "trainer.clip_norm=0.1",
        "optimizer.learning_rate=0.01",
    ),
    # a head that sees all stages leaves out what stands above the last of them
    "stages": ("freeze=full", "model.features=stages", "data.batch_size=8", "model.backbone=test_efficientnet"),
}


def largest_difference(first: Path, second: Path, ending: str = "") -> float:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one if name.endswith(ending))


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_does(case: str, tmp_path: Path) -> None:
    photos = split_folders(tmp_path / "photos")
    words = ["train", f"data.root={photos}", *TINY, *SMALL, *CASES[case]]
    for name, more in {"one": (), "two": ("trainer.devices=2",), "start": ("optimizer.learning_rate=1e-12",)}.items():
        assert run([*words, f"output={tmp_path / name}", *more]) == 0
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 1e-5
    assert largest_difference(tmp_path / "one", tmp_path / "start", "weight") > 1e-4
    for one, two in zip(*(table(tmp_path / name / "metrics.csv") for name in ("one", "two")), strict=True):
        assert one.pop("seconds") != ""
        assert two.pop("seconds") != ""
        assert {key: float(value) for key, value in two.items()} == pytest.approx(
            {key: float(value) for key, value in one.items()}, abs=1e-5
        )


def test_a_batch_that_was_found_has_photos_for_each_process(tmp_path: Path) -> None:
    photos = split_folders(tmp_path / "photos")
    words = ["train", f"data.root={photos}", *TINY, *SMALL, "freeze=full", "data.batch_size=auto", "trainer.devices=2"]
    assert run([*words, f"output={tmp_path / 'run'}", "trainer.max_epochs=1"]) == 0
    assert json.loads((tmp_path / "run" / "batch_size.json").read_text()) == 4


def start(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        command = [sys.executable, "-m", "finetune", *words]
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


def wait_for_a_checkpoint(folder: Path, child: subprocess.Popen[bytes]) -> None:
    """Wait for the first one, or another one."""
    checkpoint = folder / "checkpoints" / "last.ckpt"
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    deadline = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < deadline:
        if checkpoint.exists() and checkpoint.stat().st_mtime_ns != before:
            return
        time.sleep(0.01)
    raise AssertionError("no checkpoint was written")


def test_ended_in_any_way_no_process_is_left_and_the_same_command_comes_to_the_same_weights(tmp_path: Path) -> None:
    photos = split_folders(tmp_path / "photos")
    words = ["train", f"data.root={photos}", *TINY, *SMALL, "trainer.devices=2", "freeze=gradual", "augment=strong"]
    words += ["freeze.epochs_per_group=3", "data.batch_size=8", "trainer.max_epochs=10", "trainer.patience=10"]
    assert run([*words, f"output={tmp_path / 'whole'}"]) == 0
    died = "finetune train: process 1 of 2 ended with SIGKILL (perhaps for want of memory); the same command resumes"
    for victim, code, message in (
        ("other", 1, died),
        ("first", -9, ""),
        ("all", 130, "finetune train: interrupted; saved"),
    ):
        child = start([*words, f"output={tmp_path / 'run'}"], tmp_path / "log")
        wait_for_a_checkpoint(tmp_path / "run", child)
        others = psutil.Process(child.pid).children(recursive=True)
        if victim == "other":
            next(other for other in others if "spawn_main" in " ".join(other.cmdline())).kill()
        elif victim == "first":
            child.kill()
        else:
            os.killpg(child.pid, signal.SIGTERM)
        assert child.wait(timeout=60) == code
        assert others
        assert not psutil.wait_procs(others, timeout=60)[1]
        said = (tmp_path / "log").read_text()
        assert message in said
        assert said.count("finetune train:") == bool(message)
        assert "Traceback" not in said
    assert not (tmp_path / "run" / "result.json").exists()
    assert run([*words, f"output={tmp_path / 'run'}"]) == 0
    assert largest_difference(tmp_path / "run", tmp_path / "whole") == 0


def test_what_is_wrong_in_another_process_is_said_as_if_it_were_in_the_first(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    photos = split_folders(tmp_path / "photos")
    words = ["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *TINY, *SMALL, "freeze=full"]
    assert run([*words, "trainer.devices=2", "optimizer.learning_rate=1e30"]) == 2
    said = capfd.readouterr().err
    assert said.count("training diverged in epoch 1") == 1
    assert "Traceback" not in said


def test_torchrun_starts_processes_that_divide_the_network_among_them(tmp_path: Path) -> None:
    photos = split_folders(tmp_path / "photos")
    words = ["train", f"data.root={photos}", *TINY, *SMALL, "data.batch_size=8", "trainer.max_epochs=2"]
    words += ["freeze=partial", "optimizer=adamw", "trainer.clip_norm=0.1"]
    assert run([*words, f"output={tmp_path / 'one'}"]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, "-m", "finetune", *words, f"output={tmp_path / 'two'}", "trainer.strategy=fsdp"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("next: finetune export") == 1
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 1e-5


def test_a_head_is_fitted_by_one_process(tmp_path: Path) -> None:
    photos = paint_folder(tmp_path / "photos")
    for name in ("one", "two"):
        words = ["train", f"data.root={photos}", f"output={tmp_path / name}", *TINY]
        assert run([*words, f"trainer.devices={('one', 'two').index(name) + 1}"]) == 0
    assert largest_difference(tmp_path / "one", tmp_path / "two") == 0
    assert not torch.distributed.is_initialized()
