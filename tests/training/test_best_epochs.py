from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.training.best_epochs import BestEpochs
from finetune.training.imbalance import Judgement


class Strategy:
    """Of several processes, this one is not the first; the first found these ranks, where there are any."""

    def __init__(self, firsts: list[tuple[float, float]]) -> None:
        self.firsts = firsts

    def broadcast(self, mine: tuple[float, float]) -> tuple[float, float]:
        return self.firsts.pop(0) if self.firsts else mine


class Trainer:
    """Of Lightning's, what is used of it; a checkpoint is a file with the epoch's number."""

    is_global_zero = True
    should_stop = False
    current_epoch = 0

    def __init__(self, firsts: list[tuple[float, float]]) -> None:
        self.strategy = Strategy(firsts)

    def save_checkpoint(self, path: Path) -> None:
        path.write_text(str(self.current_epoch))


class Module:
    judged: Judgement


def go_through(
    callback: BestEpochs,
    ranks: list[tuple[float, float]],
    first: int = 0,
    firsts: Sequence[tuple[float, float]] = (),
) -> Trainer:
    trainer, module = Trainer([*firsts]), Module()
    for number, (accuracy, loss) in enumerate(ranks, start=first):
        trainer.current_epoch = number
        module.judged = Judgement(accuracy, accuracy, loss, (accuracy, -loss))
        callback.on_train_epoch_start(trainer, module)  # type: ignore[arg-type]
        callback.on_train_epoch_end(trainer, module)  # type: ignore[arg-type]
        if trainer.should_stop:
            break
    return trainer


def test_the_more_accurate_epoch_is_the_better_then_the_surer_then_the_earlier(tmp_path: Path) -> None:
    best = BestEpochs(tmp_path, 3, "epoch={}.ckpt")
    go_through(best, [(0.5, 0.1), (0.9, 0.5), (0.9, 0.4), (0.9, 0.5), (0.2, 0.0), (0.1, 0.0)])
    assert [path.name for path in best.paths()] == ["epoch=2.ckpt", "epoch=1.ckpt", "epoch=3.ckpt"]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        f"epoch={n}.ckpt": str(n) for n in (1, 2, 3)
    }


def test_all_processes_keep_the_epochs_that_the_first_one_keeps(tmp_path: Path) -> None:
    callback = BestEpochs(tmp_path)
    go_through(callback, [(0.5, 0.4), (0.5, 0.4 - 1e-7)], firsts=[(0.5, -0.4), (0.5, -0.4)])
    assert callback.paths() == [tmp_path / "best.ckpt"]
    assert callback.kept == [(0.5, -0.4, 0)]


def test_an_epoch_that_fell_behind_goes_when_the_next_begins(tmp_path: Path) -> None:
    best = BestEpochs(tmp_path, 1, "epoch={}.ckpt")
    before = best.state_dict()
    go_through(best, [(0.5, 1.0), (0.6, 1.0)])
    # a run that is killed now goes on from a last checkpoint that knows of the first only
    assert {path.name for path in tmp_path.iterdir()} == {"epoch=0.ckpt", "epoch=1.ckpt"}
    assert before == {"kept": []}
    resumed = BestEpochs(tmp_path, 1, "epoch={}.ckpt")
    resumed.load_state_dict({"kept": [(0.5, -1.0, 0)]})
    go_through(resumed, [(0.4, 1.0)], first=1)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch=0.ckpt"]


def test_one_file_holds_the_best_so_far(tmp_path: Path) -> None:
    best = BestEpochs(tmp_path)
    go_through(best, [(0.5, 1.0), (0.6, 1.0), (0.4, 1.0)])
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]
    assert best.paths()[0].read_text() == "1"


@pytest.mark.parametrize(("patience", "last"), [(1, 2), (2, 5), (None, 6)])
def test_patience_ends_what_brings_no_better_epoch(tmp_path: Path, patience: int | None, last: int) -> None:
    best = BestEpochs(tmp_path, patience=patience)
    trainer = go_through(best, [(0.5, 1.0), (0.6, 1.0), (0.6, 1.1), (0.7, 2.0), (0.7, 2.0), (0.1, 0.0), (0.1, 0.0)])
    assert (trainer.current_epoch, trainer.should_stop) == (last, patience is not None)


def test_what_is_known_holds_in_another_folder(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    best = BestEpochs(before)
    go_through(best, [(0.5, 1.0), (0.9, 1.0)])
    state = torch.load(_saved(best.state_dict(), tmp_path), weights_only=True)
    before.rename(after)
    moved = BestEpochs(after)
    moved.load_state_dict(state)
    go_through(moved, [(0.6, 1.0), (0.7, 1.0)], first=2)
    assert moved.paths() == [after / "best.ckpt"]
    assert moved.paths()[0].read_text() == "1"


def _saved(state: dict[str, Any], folder: Path) -> Path:
    torch.save(state, folder / "state.pt")
    return folder / "state.pt"
