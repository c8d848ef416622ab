from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.cli import run
from finetune.models.backbone import BackboneSpec
from finetune.models.classifier import Normalise
from finetune.training.mixing import BatchMixing, configured_mixing
from tests.conftest import augment_config

SEED = 3


def mixing(choice: str, classes: int, seed: int = SEED) -> BatchMixing:
    made = configured_mixing(augment_config(choice), photos=0, classes=classes, seed=seed)
    assert made is not None
    return made


def batch(count: int, side: int = 16) -> tuple[Tensor, Tensor]:
    """Return photos of noise, each of a class of its own, so that the soft targets tell who was blended with whom."""
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3)).astype(np.uint8)
    return torch.from_numpy(images), torch.arange(count)


@pytest.mark.parametrize("count", [2, 3, 4, 7, 8])
@pytest.mark.parametrize("choice", ["mixup", "cutmix", "[mixup,cutmix]"])
def test_targets_are_shares_and_every_photo_has_a_partner(choice: str, count: int) -> None:
    images, targets = batch(count)
    partners = set()
    for number in range(20):
        mixed, shares = mixing(choice, count)(images, targets, 0, number)
        assert (mixed.shape, mixed.dtype) == (images.shape, torch.float32)
        assert (shares.shape, shares.dtype) == ((count, count), torch.float32)
        assert torch.allclose(shares.sum(1), torch.ones(count))
        assert bool((shares >= 0).all())
        blended = (shares > 0).sum(1)
        assert bool((blended <= 2).all())
        partners |= {row for row in range(count) if blended[row] == 2}
    # also in batches of odd size
    assert partners == set(range(count))


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_mixup_blends_photos_as_it_blends_their_labels(count: int) -> None:
    images, targets = batch(count)
    for number in range(10):
        mixed, shares = mixing("mixup", count)(images, targets, 0, number)
        wanted = torch.einsum("nc,chwd->nhwd", shares, images.float())
        assert torch.allclose(mixed, wanted, atol=1e-3)


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_cutmix_pastes_one_rectangle_whose_area_is_the_share_of_its_label(count: int) -> None:
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 16, 16, 3).clone()
    pasted = 0
    for number in range(10):
        mixed, shares = mixing("cutmix", count)(images, torch.arange(count), 0, number)
        for row in range(count):
            seen = torch.stack([(mixed[row, ..., 0] == level).float().mean() for level in range(count)])
            assert torch.allclose(seen, shares[row], atol=1e-6)
            rows, columns = torch.nonzero(mixed[row, ..., 0] != row, as_tuple=True)
            if len(rows):
                assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
                pasted += 1
    assert pasted > count


def test_with_both_each_batch_gets_one_of_them() -> None:
    images, targets = batch(4)
    both = mixing("[mixup,cutmix]", 4)
    pasted = 0
    for number in range(100):
        mixed, _ = both(images, targets, 0, number)
        # a pasted batch holds nothing but levels of its photos
        pasted += bool(((mixed == images) | (mixed == images.flip(0))).all())
    assert 30 < pasted < 70


def test_the_draws_depend_on_seed_epoch_and_number_of_the_batch_and_nothing_else() -> None:
    images, targets = batch(5)
    first = mixing("mixup", 5)(images, targets, 2, 7)
    np.random.seed(99)
    torch.manual_seed(99)
    again = mixing("mixup", 5)(images, targets, 2, 7)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    seen = {
        mixing("mixup", 5, seed)(images, targets, epoch, number)[1].numpy().tobytes()
        for seed in range(3)
        for epoch in range(3)
        for number in range(3)
    }
    assert len(seen) == 27


def test_numpys_global_generator_is_left_as_it_was() -> None:
    np.random.seed(5)
    wanted = np.random.rand(3)
    np.random.seed(5)
    mixing("[mixup,cutmix]", 4)(*batch(4), 0, 0)
    assert np.array_equal(np.random.rand(3), wanted)


def test_the_photos_that_were_given_are_left_alone() -> None:
    images, targets = batch(5)
    mixing("[mixup,cutmix]", 5)(images, targets, 0, 0)
    assert torch.equal(images, batch(5)[0])
    assert torch.equal(targets, batch(5)[1])


def test_blending_levels_is_blending_what_the_model_sees() -> None:
    images, targets = batch(4)
    normalise = Normalise(BackboneSpec("test_resnet", 16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    mixed, shares = mixing("mixup", 4)(images, targets, 0, 0)
    wanted = torch.einsum("nc,cdhw->ndhw", shares, normalise(images))
    assert torch.allclose(normalise(mixed), wanted, atol=1e-4)


def test_mixing_changes_the_training_loss_and_leaves_validation_alone(photos: Path, tmp_path: Path) -> None:
    # a network without batch norm and steps of nearly nothing: what is validated is the same in both runs
    words = ["train", f"data.root={photos}", "model.backbone=test_vit", "model.weights=none", "data.image_size=64"]
    words += ["freeze=full", "data.num_workers=0", "trainer.accelerator=cpu", "trainer.max_epochs=1"]
    words += ["data.batch_size=5", "optimizer.learning_rate=1e-12"]
    losses = {}
    for choice in ("none", "[mixup,cutmix]"):
        output = tmp_path / choice.strip("[]")
        assert run([*words, f"augment={choice}", f"output={output}"]) == 0
        (row,) = csv.DictReader((output / "metrics.csv").read_text().splitlines())
        losses[choice] = row
    plain, mixed = losses.values()
    assert float(plain["val_loss"]) == pytest.approx(float(mixed["val_loss"]), abs=1e-5)
    assert float(plain["train_loss"]) != pytest.approx(float(mixed["train_loss"]), abs=1e-3)


@pytest.mark.parametrize(("photos", "alpha"), [(0, None), (19_999, None), (20_000, 0.1), (10**6, 0.1)])
def test_mixing_may_begin_at_a_number_of_training_photos(photos: int, alpha: float | None) -> None:
    made = configured_mixing(augment_config("bit"), photos, classes=2, seed=0)
    assert (None if made is None else made.mixup.mixup_alpha) == alpha
    # a value of one's own is no table any more
    mine = configured_mixing(augment_config("bit", mixup=0.3), photos, classes=2, seed=0)
    assert mine is not None
    assert mine.mixup.mixup_alpha == 0.3
