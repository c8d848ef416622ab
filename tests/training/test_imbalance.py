from __future__ import annotations

import csv
import itertools
import json
import signal
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from finetune.cli import run
from finetune.config import ImbalanceConfig
from finetune.models.freezing import Depth
from finetune.training.imbalance import Handling, Method, choose_handling
from finetune.training.loss import class_weights
from tests.conftest import TINY, paint, run_finetune
from tests.training.test_train import kill_when

# in train, val and test
COUNTS = {"blue": (14, 5, 5), "green": (6, 2, 2), "red": (2, 1, 1)}
TIMES = "times the training photos of the smallest"
RATIO = f"the largest class, 'blue', has 7.0 {TIMES}, 'red': 14 to 2"
STOOD_IN = "; a head is fitted to all photos at once, so class weights stand in for what is drawn on average"
METHODS: dict[Method, str] = {
    "none": "",
    "class_weights": "",
    "balanced_sampler": STOOD_IN,
    "focal": "",
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_splits(tmp_path_factory.mktemp("imbalanced") / "photos", COUNTS)


def paint_splits(root: Path, counts: dict[str, tuple[int, int, int]]) -> Path:
    seeds = itertools.count()
    for label, of_splits in counts.items():
        for split, count in zip(("train", "val", "test"), of_splits, strict=True):
            for index in range(count):
                paint(root / split / label / f"{index}.jpg", label, next(seeds))
    return root


def handling(method: str, depth: Depth = "full", counts: dict[str, int] | None = None, ratio: float = 10) -> Handling:
    config = ImbalanceConfig.model_validate({"method": method, "focal_gamma": 2.0, "auto_ratio": ratio})
    counts = counts or {"nominal": 160, "local": 16}
    return choose_handling(config, depth, [label for label, count in counts.items() for _ in range(count)])


@pytest.mark.parametrize(
    ("counts", "method", "reason"),
    [
        (
            {"local": 16, "nominal": 160, "global": 30},
            "class_weights",
            f"auto: the largest class, 'nominal', has 10.0 {TIMES}, 'local': 160 to 16",
        ),
        (
            {"local": 17, "nominal": 160},
            "none",
            f"auto: the largest class, 'nominal', has 9.4 {TIMES}, 'local': 160 to 17; "
            "classes are weighted from 10 times on",
        ),
        (
            {"local": 3, "nominal": 3},
            "none",
            "auto: every class has 3 training photos; classes are weighted from 10 times on",
        ),
    ],
)
def test_auto_goes_by_the_largest_and_the_smallest_class(counts: dict[str, int], method: str, reason: str) -> None:
    chosen = handling("auto", counts=counts)
    assert (chosen.method, chosen.reason) == (method, reason)
    assert chosen.weighted == (method == "class_weights")


def test_the_ratio_can_be_configured() -> None:
    assert handling("auto", ratio=10.1).method == "none"
    assert handling("auto", ratio=10.1).reason.endswith("; classes are weighted from 10.1 times on")


def test_a_sampler_is_for_batches_and_weights_stand_in_for_it_in_a_head() -> None:
    drawn, fitted = handling("balanced_sampler", "full"), handling("balanced_sampler", "head")
    assert (drawn.sampling, drawn.weighted) == ("balanced", False)
    assert fitted.weighted
    assert fitted.reason == drawn.reason + STOOD_IN
    # on average: every class is drawn with the same chance, which is a mean weighted so
    targets = torch.tensor([0] * 160 + [1] * 16)
    losses = torch.rand(176, generator=torch.Generator().manual_seed(0))
    drawn_mean = (losses[:160].mean() + losses[160:].mean()) / 2
    torch.testing.assert_close((class_weights(targets, 2)[targets] * losses).mean(), drawn_mean)


def test_with_a_method_every_class_counts_the_same_in_the_judgement() -> None:
    targets = torch.tensor([0] * 8 + [1] * 2)
    always_common = torch.tensor([[2.0, 0.0]]).repeat(10, 1)
    finds_the_rare = always_common.clone()
    finds_the_rare[8:] = torch.tensor([0.0, 2.0])
    finds_the_rare[:3] = torch.tensor([0.0, 0.5])
    plain, balanced = handling("none"), handling("class_weights")
    assert plain.judge(always_common, targets).accuracy == 0.8
    assert plain.judge(always_common, targets).balanced_accuracy == 0.5
    assert plain.judge(finds_the_rare, targets).rank < plain.judge(always_common, targets).rank
    assert balanced.judge(finds_the_rare, targets).rank > balanced.judge(always_common, targets).rank
    # the loss, by which epochs are chosen, as well
    halves = [plain.judge(always_common[part], targets[part]).loss for part in (slice(8), slice(8, 10))]
    assert balanced.judge(always_common, targets).loss == pytest.approx(sum(halves) / 2)
    assert plain.judge(always_common, targets).loss == pytest.approx((8 * halves[0] + 2 * halves[1]) / 10)


def trained(output: Path) -> dict[str, torch.Tensor]:
    return dict(safetensors.torch.load_file(output / "weights.safetensors"))


@pytest.mark.parametrize("depth", ["head", "full"])
def test_every_method_trains_says_so_and_comes_to_weights_of_its_own(
    photos: Path,
    tmp_path: Path,
    depth: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level("INFO", "finetune")
    layers = () if depth == "head" else (*TINY[3:], "trainer.max_epochs=2", "data.batch_size=8")
    weights = {}
    for method, stood_in in METHODS.items():
        words = [f"data.root={photos}", f"output={tmp_path / method}", f"freeze={depth}", f"imbalance={method}"]
        assert run(["train", *words, *TINY[:3], *layers, "trainer.accelerator=cpu"]) == 0
        reason = f"as configured; {RATIO}" + (stood_in if depth == "head" else "")
        # once, before anything is trained
        assert caplog.messages.count(f"imbalance: {method} ({reason})") == 1
        assert "imbalance" not in capsys.readouterr().out
        caplog.clear()
        result = json.loads((tmp_path / method / "result.json").read_text())
        assert (result["imbalance"], result["imbalance_reason"]) == (method, reason)
        assert 0 < result["val_balanced_accuracy"] <= 1
        assert 0 < result["test_balanced_accuracy"] <= 1
        report = (tmp_path / method / "report.html").read_text().replace("&#39;", "'")
        assert f"imbalance: {method} ({reason})." in report
        assert ("Chosen by balanced accuracy" in report) == (method != "none")
        assert "balanced accuracy" in report
        with (tmp_path / method / "metrics.csv").open(newline="") as file:
            assert all(0 < float(row["val_balanced_accuracy"]) <= 1 for row in csv.DictReader(file))
        weights[method] = trained(tmp_path / method)
    for one in METHODS:
        for other in METHODS:
            alike = all(torch.equal(weights[one][name], weights[other][name]) for name in weights[one])
            stand_in = depth == "head" and {one, other} == {"class_weights", "balanced_sampler"}
            assert alike == (one == other or stand_in), (one, other)


def test_auto_weighs_classes_where_they_are_ten_to_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "finetune")
    root = paint_splits(tmp_path / "photos", {"blue": (20, 7, 7), "red": (2, 1, 1)})
    words = ["train", f"data.root={root}", *TINY]
    for name, method in (("auto", ()), ("weighted", ("imbalance=class_weights",))):
        assert run([*words, f"output={tmp_path / name}", *method]) == 0
    reason = f"auto: the largest class, 'blue', has 10.0 {TIMES}, 'red': 20 to 2"
    assert f"imbalance: class_weights ({reason})" in caplog.messages
    auto, weighted = trained(tmp_path / "auto"), trained(tmp_path / "weighted")
    assert all(torch.equal(auto[name], weighted[name]) for name in auto)


def test_a_balanced_run_that_was_killed_resumes_to_the_weights_of_one_that_was_not(
    photos: Path, tmp_path: Path
) -> None:
    words = [f"data.root={photos}", *TINY, "freeze=full", "imbalance=balanced_sampler", "data.batch_size=8"]
    words += ["trainer.max_epochs=8", "trainer.patience=8", "trainer.accelerator=cpu"]
    assert run(["train", f"output={tmp_path / 'whole'}", *words]) == 0
    again = ["train", f"output={tmp_path / 'killed'}", *words]
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    assert kill_when(last, [sys.executable, "-m", "finetune", *again], signal.SIGKILL) == -9
    done = run_finetune(*again)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stderr
    whole, killed = trained(tmp_path / "whole"), trained(tmp_path / "killed")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_a_method_that_is_not_there_is_named(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *TINY, "imbalance=class_weight"]) == 2
    said = capsys.readouterr().err
    assert "choose from auto, balanced_sampler, class_weights, focal, none; did you mean 'class_weights'?" in said
