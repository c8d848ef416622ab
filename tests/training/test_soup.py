from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from finetune.cli import run
from finetune.errors import FinetuneError
from finetune.models.classifier import Classifier
from finetune.training.imbalance import Judgement
from finetune.training.soup import stir
from tests.conftest import TINY
from tests.models.test_freezing import build
from tests.training.test_train import table

FROZEN = "backbone.network.conv1.0.weight"


@pytest.fixture
def classifier() -> Classifier:
    return build("test_resnet").eval()


@pytest.fixture
def ingredients(classifier: Classifier, tmp_path: Path) -> list[Path]:
    """Four epochs whose floats are 0, 1, 2 and 3 throughout, but for what was frozen."""
    paths = []
    for number in range(4):
        state = {name: torch.full_like(tensor, number) for name, tensor in classifier.state_dict().items()}
        state[FROZEN] = classifier.state_dict()[FROZEN]
        paths.append(tmp_path / f"{number}.ckpt")
        saved = {"epoch": 10 + number, "state_dict": {f"classifier.{name}": state[name] for name in state}}
        torch.save(saved, paths[-1])
    return paths


def judged(accuracy: float, loss: float) -> Judgement:
    return Judgement(accuracy, accuracy, loss, (accuracy, -loss))


@pytest.mark.parametrize(
    ("trials", "epochs", "mean"),
    [
        # the second is worse by its loss, the third by its accuracy, the fourth no worse
        ([(0.5, 1.0), (0.9, 1.1), (0.4, 0.5), (0.5, 1.0)], (11, 14), 1.5),
        ([(0.5, 1.0), (0.5, 0.9), (0.6, 0.8), (0.7, 0.7)], (11, 12, 13, 14), 1.5),
        # against the soup so far and not against the best epoch
        ([(0.5, 1.0), (0.6, 0.8), (0.5, 0.9), (0.6, 0.9)], (11, 12), 0.5),
        ([(0.5, 1.0), (0.4, 1.0), (0.4, 1.0), (0.4, 1.0)], (11,), 0.0),
    ],
)
def test_what_does_not_make_it_worse_goes_in(
    trials: list[tuple[float, float]],
    epochs: tuple[int, ...],
    mean: float,
    classifier: Classifier,
    ingredients: list[Path],
) -> None:
    frozen = classifier.state_dict()[FROZEN].clone()
    answers = iter(trials)
    assert stir(classifier, ingredients, lambda: judged(*next(answers))) == epochs
    assert next(answers, None) is None
    for name, tensor in classifier.state_dict().items():
        if name == FROZEN:
            assert torch.equal(tensor, frozen)
        elif tensor.is_floating_point():
            assert torch.allclose(tensor, torch.full_like(tensor, mean)), name
        else:
            # a number of batches is that of the best epoch
            assert torch.equal(tensor, torch.zeros_like(tensor))


def test_a_good_epoch_that_is_gone_is_an_error(classifier: Classifier, ingredients: list[Path]) -> None:
    ingredients[2].unlink()
    with pytest.raises(FinetuneError, match=r"2\.ckpt of a good epoch is gone"):
        stir(classifier, ingredients, lambda: judged(1.0, 0.0))


def test_a_soup_is_never_worse_on_validation_than_its_best_epoch(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["train", f"data.root={photos}", *TINY, "freeze=full", "trainer.max_epochs=8", "trainer.patience=null"]
    # steps so large that an epoch may be worse than the one before
    words += ["data.batch_size=4", "optimizer=momentum", "optimizer.learning_rate=0.2", "schedule=none", "augment=none"]
    caplog.set_level("INFO", "finetune")
    assert run([*words, f"output={tmp_path / 'run'}", "trainer.soup=4"]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    rows = table(tmp_path / "run" / "metrics.csv")
    rows.sort(key=lambda row: (-float(row["val_accuracy"]), float(row["val_loss"])))
    epochs = result["soup_epochs"]
    assert epochs[0] == int(rows[0]["epoch"])
    assert set(epochs) <= {int(row["epoch"]) for row in rows[:4]}
    assert result["val_accuracy"] >= float(rows[0]["val_accuracy"])
    (said,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("soup of epochs")]
    assert said.startswith(f"soup of epochs {', '.join(map(str, epochs))}, out of the 4 best")
    assert float(said.rpartition(" ")[2]) <= float(rows[0]["val_loss"]) + 1e-4
