from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.cli import run
from finetune.config import HeadConfig
from finetune.run import FinishedRun
from finetune.training.deep_head import DeepFit, fit_deep_head, refit_deep_head
from finetune.training.imbalance import Judgement
from finetune.training.loss import ClassificationLoss
from finetune.training.probe import fit_linear
from tests.conftest import TINY

CROSS_ENTROPY = ClassificationLoss()
CONFIG = HeadConfig(hidden=[16], activation="gelu", batch_norm=True, dropout=0.1)


def rings(photos: int, seed: int) -> tuple[np.ndarray, list[int]]:
    """Two classes that no straight line parts: inside and outside a circle, among features of other scales."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(photos, 4)) * [1, 1, 0.01, 50]
    features[:, 3] += 1000
    return features.astype(np.float32), (np.hypot(features[:, 0], features[:, 1]) > 1.2).astype(int).tolist()


def fit(photos: int = 300, seed: int = 0, wanted: list[int] | None = None, config: HeadConfig = CONFIG) -> DeepFit:
    features, targets = rings(photos, 1)
    held_out, answers = rings(200, 2)
    return fit_deep_head(
        config, features, targets, 2, CROSS_ENTROPY, lambda logits: judge(logits, wanted or answers), held_out, seed
    )


def judge(logits: torch.Tensor, answers: list[int]) -> Judgement:
    wanted = torch.tensor(answers)
    accuracy, loss = (logits.argmax(1) == wanted).double().mean().item(), CROSS_ENTROPY(logits, wanted).item()
    return Judgement(accuracy, accuracy, loss, (accuracy, -loss))


def test_it_learns_what_a_linear_head_cannot() -> None:
    features, targets = rings(300, 1)
    held_out, answers = rings(200, 2)
    (linear,) = fit_linear(features, targets, 2, [0.01], CROSS_ENTROPY)
    deep = fit()
    assert judge(linear.logits(held_out), answers).accuracy < 0.7
    assert judge(deep.logits(held_out), answers).accuracy > 0.85


def test_the_same_seed_gives_the_same_head_whatever_was_drawn_before_and_another_seed_another() -> None:
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(100 + len(heads))
        drawn = torch.get_rng_state()
        heads.append(fit(photos=60, seed=seed).head.state_dict())
        assert torch.equal(torch.get_rng_state(), drawn)
    first, again, other = heads
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["linear.weight"], other["linear.weight"])


def test_it_stops_where_the_held_out_photos_were_answered_best() -> None:
    # answers that have nothing to do with the features: nothing is to be learnt for long
    noise = np.random.default_rng(5).integers(0, 2, 200).tolist()
    held_out, _ = rings(200, 2)
    seen: list[tuple[float, float]] = []

    def watch(logits: torch.Tensor) -> Judgement:
        judged = judge(logits, noise)
        seen.append(judged.rank)
        return judged

    features, targets = rings(100, 1)
    stopped = fit_deep_head(CONFIG, features, targets, 2, CROSS_ENTROPY, watch, held_out, 0)
    assert len(seen) == stopped.epochs + 20
    assert max(seen) == seen[stopped.epochs - 1] == judge(stopped.logits(held_out), noise).rank


def test_a_refit_takes_as_many_epochs_and_is_the_first_fit_on_the_same_photos() -> None:
    features, targets = rings(300, 1)
    deep = fit()
    again = refit_deep_head(CONFIG, features, targets, 2, CROSS_ENTROPY, deep.epochs, 0)
    assert all(map(torch.equal, deep.head.state_dict().values(), again.head.state_dict().values()))


@pytest.mark.parametrize("photos", [2, 97, 129])
def test_no_batch_is_of_one_photo(photos: int) -> None:
    assert fit(photos=photos).epochs >= 1


def test_a_run_with_hidden_layers_finishes_evaluates_and_exports(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    head = ["head.hidden=[16,8]", "head.batch_norm=true", "head.dropout=0.2", "model.drop_stages=1"]
    assert run(["train", f"data.root={photos}", f"output={output}", *TINY, *head]) == 0
    result: dict[str, Any] = json.loads((output / "result.json").read_text())
    assert result["freeze"] == "head"
    assert result["val_accuracy"] == 1.0
    assert result["head"] == {"hidden": [16, 8], "activation": "relu", "batch_norm": True, "dropout": 0.2}
    widths = [
        layer.out_features
        for layer in FinishedRun(output).classifier().head.modules()
        if hasattr(layer, "bias") and hasattr(layer, "out_features")
    ]
    assert widths == [16, 8, 3]
    assert run(["evaluate", f"run={output}"]) == 0
    assert run(["export", f"run={output}", f"output={tmp_path / 'models'}"]) == 0
    assert "same answer on 100.00 %" in capsys.readouterr().out
