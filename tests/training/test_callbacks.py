from __future__ import annotations

from typing import Any

from torch import nn

from finetune.training.callbacks import EpochBar, EpochRows
from finetune.training.module import quiet_trainer


def test_the_bar_counts_epochs_as_the_log_does() -> None:
    bar = EpochBar()
    bar.setup(quiet_trainer(max_epochs=20, accelerator="cpu"), nn.Module(), "fit")  # type: ignore[arg-type]
    assert bar._get_train_description(0) == "epoch 1 of 20"
    assert bar._get_train_description(19) == "epoch 20 of 20"


def test_a_run_that_was_begun_when_epochs_counted_from_0_goes_on_from_1() -> None:
    told: list[Any] = []
    rows = EpochRows(told.extend)
    rows.load_state_dict({"rows": [{"epoch": 0, "val_loss": 0.5}, {"epoch": 1, "val_loss": 0.25}]})
    assert rows.rows == [{"epoch": 1, "val_loss": 0.5}, {"epoch": 2, "val_loss": 0.25}]
    # and one that was begun since then stays as it is
    again = EpochRows(told.extend)
    again.load_state_dict(rows.state_dict())
    assert again.rows == rows.rows
