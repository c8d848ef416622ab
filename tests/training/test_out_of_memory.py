from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from finetune.cli import run
from finetune.training import batch_size
from finetune.training.batch_size import TrainingStep
from finetune.training.module import FineTuner
from tests.conftest import TINY, paint_folder

WORDS = (*TINY, "augment=none", "trainer.max_epochs=2", "trainer.accelerator=cpu")
NONE = (
    "no smaller batch fits; choose a smaller data.image_size or model.backbone, or trainer.gradient_checkpointing=true"
)
CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.fixture
def two_dozen(tmp_path: Path) -> Path:
    """24 photos to train on, and 6 to validate with."""
    paint_folder(tmp_path / "photos" / "train", 8)
    paint_folder(tmp_path / "photos" / "val", 2)
    return tmp_path / "photos"


def room_for(monkeypatch: pytest.MonkeyPatch, photos: int, epoch: int = 0) -> None:
    """Have a step of more photos fail as on a GPU, from an epoch on."""
    ordinary = FineTuner.training_step

    def limited(module: FineTuner, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        if len(batch[0]) > photos and module.current_epoch >= epoch:
            raise torch.OutOfMemoryError(CUDA)
        return ordinary(module, batch, batch_idx)

    monkeypatch.setattr(FineTuner, "training_step", limited)
    monkeypatch.setattr(TrainingStep, "_fits_on_cpu", lambda step: lambda size: size <= photos)


@pytest.mark.parametrize(
    ("given", "fits", "advice"),
    [
        ((16, 1), 5, "data.batch_size=4 trainer.accumulate=4 fits, and makes the same steps"),
        ((11, 2), 5, "data.batch_size=4 trainer.accumulate=6 fits, and makes steps of about as many"),
        ((8, 1), 1, NONE),
        ((2, 4), 1, NONE),
    ],
)
def test_where_memory_runs_out_a_batch_that_fits_is_named(
    two_dozen: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: tuple[int, int],
    fits: int,
    advice: str,
) -> None:
    words = ["train", f"data.root={two_dozen}", f"output={tmp_path / 'run'}", *WORDS, "freeze=full"]
    size, accumulate = given
    room_for(monkeypatch, fits)
    assert run([*words, f"data.batch_size={size}", f"trainer.accumulate={accumulate}"]) == 2
    error = capsys.readouterr().err
    assert error == f"finetune train: memory does not suffice for batches of {size} photos: {advice}\n{CUDA}\n"
    if "fits," in advice:
        assert run([*words, *advice.split(" fits")[0].split()]) == 0


def test_work_that_was_saved_is_not_given_up(
    two_dozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", f"data.root={two_dozen}", f"output={tmp_path / 'run'}", *WORDS, "freeze=full"]
    with monkeypatch.context() as patched:
        room_for(patched, photos=4, epoch=1)
        assert run([*words, "data.batch_size=8"]) == 2
    assert "(with another output=, as this one has checkpoints)" in capsys.readouterr().err
    assert run([*words, "data.batch_size=8"]) == 0


def test_the_words_of_an_allocator_that_has_no_more_are_known(
    two_dozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", f"data.root={two_dozen}", f"output={tmp_path / 'run'}", *WORDS, "freeze=full"]
    monkeypatch.setattr(FineTuner, "training_step", lambda *_: torch.empty(2**50))
    assert run([*words, "data.batch_size=24"]) == 2
    said = capsys.readouterr().err
    # by what a step takes of the memory that there really is
    assert "batches of 24 photos: data.batch_size=8 trainer.accumulate=3 fits, and makes the same steps\n" in said
    assert "can't allocate memory: you tried to allocate 4503599627370496 bytes" in said


def test_another_failure_keeps_its_traceback(two_dozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train", f"data.root={two_dozen}", f"output={tmp_path / 'run'}", *WORDS, "freeze=full"]
    monkeypatch.setattr(FineTuner, "training_step", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        run(words)


def memory_of(monkeypatch: pytest.MonkeyPatch, megabytes: int) -> None:
    monkeypatch.setattr(batch_size, "available_bytes", lambda: megabytes << 20)


def test_a_batch_that_no_cpu_could_hold_is_refused_before_it_is_tried(
    two_dozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", f"data.root={two_dozen}", f"output={tmp_path / 'run'}", *WORDS, "freeze=full"]
    memory_of(monkeypatch, 16)
    monkeypatch.setattr(FineTuner, "training_step", lambda *_: pytest.fail("tried"))
    assert run([*words, "data.batch_size=24"]) == 2
    said = capsys.readouterr().err
    assert "memory does not suffice for batches of 24 photos: data.batch_size=" in said
    assert " fits, and makes the same steps" in said


def test_where_a_search_chose_the_size_smaller_batches_make_the_same_steps(
    two_dozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", f"data.root={two_dozen}", *WORDS, "freeze=lp_ft", "trainer.max_epochs=1", "data.batch_size=12"]
    sizes: list[int] = []
    ordinary = FineTuner.training_step

    def noted(module: FineTuner, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        sizes.append(len(batch[0]))
        return ordinary(module, batch, batch_idx)

    monkeypatch.setattr(FineTuner, "training_step", noted)
    weights = {}
    for name, megabytes in (("roomy", 16_000), ("narrow", 24)):
        memory_of(monkeypatch, megabytes)
        assert run([*words, f"output={tmp_path / name}"]) == 0
        weights[name] = load_file(tmp_path / name / "weights.safetensors")
        assert sizes.pop() == {"roomy": 12, "narrow": 4}[name]
        sizes.clear()
    # a resumed run keeps its batches, whatever memory there is by then
    assert json.loads((tmp_path / "narrow" / "batch_size.json").read_text()) == 4
    for key, tensor in weights["roomy"].items():
        torch.testing.assert_close(weights["narrow"][key], tensor, rtol=1e-3, atol=1e-5)
