"""Every file in conf/recipe, on real photos."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from finetune.cli import run
from finetune.manual import conf_dir
from finetune.run import FinishedRun
from tests.conftest import ROOT, TINY, train_config

RECIPES = sorted(path.stem for path in (conf_dir() / "recipe").glob("*.yaml"))
SMALL = ("data.image_size=64", "data.num_workers=0", "trainer.accelerator=cpu", "trainer.max_epochs=2")


@pytest.fixture(scope="module")
def textile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photos of each class to train on and eight for test."""
    folder = tmp_path_factory.mktemp("textile") / "photos"
    subprocess.run([sys.executable, ROOT / "scripts" / "sample_data.py", folder, "8"], check=True)
    return folder


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_on_textile(recipe: str, textile: Path, tmp_path: Path) -> None:
    # the default backbone with its real weights
    words = ["train", f"data.root={textile}", f"output={tmp_path / 'run'}", f"recipe={recipe}", *SMALL]
    assert run(words) == 0
    finished = FinishedRun(tmp_path / "run")
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (kept["recipe"], kept["trainer"]["max_epochs"]) == (recipe, 2)
    assert isinstance(kept["optimizer"]["learning_rate"], float)
    # what it set is what the files say, in plain values
    assert kept["optimizer"] == train_config(f"recipe={recipe}", *SMALL).optimizer.model_dump(mode="json")
    assert finished.result.image_size == 64
    assert finished.result.photos["test"] == 24
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert all(math.isfinite(float(row["val_loss"])) for row in rows)
    assert all(bool(tensor.isfinite().all()) for tensor in finished.classifier().state_dict().values())
    assert (finished.result.weights_from == "random") == (recipe == "scratch")


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "none"])
def test_every_recipe_takes_every_other_part_of_training(recipe: str, photos: Path, tmp_path: Path) -> None:
    words = ["train", f"data.root={photos}", f"output={tmp_path / 'run'}", f"recipe={recipe}", *TINY]
    words += ["trainer.max_epochs=4", "trainer.patience=1", "data.batch_size=5", "trainer.accumulate=1"]
    words += ["augment=[standard,mixup,cutmix]", "imbalance=focal", "trainer.label_smoothing=0.1", "head.dropout=0.3"]
    assert run([*words, "trainer.ema_decay=0.9", "trainer.soup=2", "trainer.clip_norm=1.0"]) == 0
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["augment"]
    assert (kept["mixup"], kept["cutmix"], kept["crop_area"]) == (0.2, 1.0, [0.5, 1.0])
    result = FinishedRun(tmp_path / "run").result
    assert result.imbalance == "focal"
    assert 1 <= len(result.soup_epochs) <= 2
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert {"averaging_state", "current_model_state"} <= checkpoint.keys()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_leaves_the_last_word_to_a_person(recipe: str) -> None:
    """It chooses options of the groups and sets no key in them: another option brings its own values, all of them."""
    plain = train_config()
    for group, option in (("optimizer", "adam"), ("schedule", "exponential"), ("augment", "defect")):
        chosen = train_config(f"recipe={recipe}", f"{group}={option}")
        assert getattr(chosen, group) == getattr(train_config(f"{group}={option}"), group)
    mine = train_config(
        f"recipe={recipe}",
        "freeze=partial",
        "optimizer.learning_rate=0.5",
        "schedule.final=0.25",
        "augment.mixup=0.7",
        "trainer.patience=3",
        "data.batch_size=7",
        "model.weights=auto",
    )
    assert mine.freeze.mode == "partial"
    assert mine.optimizer.learning_rate == 0.5
    assert mine.schedule.final == 0.25
    assert mine.augment.mixup == 0.7
    assert mine.trainer.patience == 3
    assert mine.data.batch_size == 7
    assert mine.model.weights == plain.model.weights


def test_no_recipe_changes_nothing() -> None:
    assert train_config("recipe=none").model_dump() == train_config().model_dump()
    assert train_config().recipe == "none"


def test_help_gives_each_recipe_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    listed = shown[shown.index("\nrecipe=\n") :].partition("\n\n")[0].splitlines()[2:]
    assert [line.split()[0] for line in listed if line[2] != " "] == RECIPES
    assert "@package" not in shown
    assert "BiT-HyperRule (Kolesnikov et al. 2020" in shown


def test_a_wrong_recipe_gets_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "data.root=x", "output=y", "recipe=fastia"]) == 2
    assert "did you mean 'fastai'?" in capsys.readouterr().err
