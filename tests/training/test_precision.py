from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune.cli import run
from finetune.training.precision import require_precision
from tests.conftest import TINY


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_cpu_trains_in_32_bits_and_in_bfloat16(photos: Path, tmp_path: Path, precision: str) -> None:
    words = [*TINY, "freeze=full", "trainer.max_epochs=1", "trainer.accelerator=cpu", f"trainer.precision={precision}"]
    assert run(["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *words]) == 0


def test_half_precision_on_a_cpu_is_refused_before_anything_is_written(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, "freeze=full", "trainer.accelerator=cpu", "trainer.precision=16-mixed"]
    assert run(["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *words]) == 2
    assert "trainer.precision=16-mixed needs a GPU; on a CPU use 32-true, or bf16-mixed" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_gpu_takes_half_precision() -> None:
    require_precision("16-mixed", torch.device("cuda"))
