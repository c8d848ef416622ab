from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.config import AugmentConfig
from finetune.data.augmentation import Augmentation
from finetune.data.datamodule import MOST_WORKERS, PhotoData
from finetune.data.manifest import Manifest, read_manifest
from finetune.data.pca import ColourPCA
from finetune.data.sampling import Sampling
from finetune.parallel import usable_cores
from finetune.preprocess import Preprocessing, load_pixels
from tests.conftest import paint

SIZE = 32
STANDARD = AugmentConfig(
    horizontal_flip=0.5, vertical_flip=0, crop_area=(0.5, 1), crop_ratio=(0.75, 1.3333), pca_sigma=0.1
)
COMPONENTS = ColourPCA(eigenvalues=(0.1, 0.02, 0.01), eigenvectors=((1, 0, 0), (0, 1, 0), (0, 0, 1)))

# torch says so where two workers are more than the cores, or are forked beside threads; the pixels must not care
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture
def manifest(photos: Path) -> Manifest:
    """12 photos to train on, 6 to validate and 6 to test with."""
    return read_manifest(photos, val_fraction=0.25, test_fraction=0.25, seed=0)


def data(
    manifest: Manifest,
    batch_size: int = 5,
    num_workers: int | str = 0,
    seed: int = 0,
    sampling: Sampling = "shuffled",
) -> PhotoData:
    augmentation, preprocessing = Augmentation(STANDARD, SIZE, COMPONENTS), Preprocessing(image_size=SIZE, fit="crop")
    return PhotoData(manifest, preprocessing, augmentation, batch_size, num_workers, seed, sampling)


def epochs(module: PhotoData, count: int) -> list[list[tuple[Tensor, Tensor]]]:
    """Return the training batches of some epochs."""
    loader = module.train_dataloader()
    batches = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        batches.append([(pixels, targets) for pixels, targets in loader])
    return batches


def same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True)
    )


def test_the_same_seed_gives_the_same_batches_however_many_workers_there_are(manifest: Manifest) -> None:
    alone = epochs(data(manifest, num_workers=0), 3)
    torch.manual_seed(12345)  # the workers' own seeds have no part in it
    for one, other in zip(alone, epochs(data(manifest, num_workers=2), 3), strict=True):
        assert same(one, other)


@pytest.fixture
def imbalanced(tmp_path: Path) -> Manifest:
    """10 blue and 2 red photos to train on."""
    for label, count in (("blue", 12), ("red", 3)):
        for index in range(count):
            paint(tmp_path / "imbalanced" / label / f"{index}.jpg", label, seed=index)
    return read_manifest(tmp_path / "imbalanced", val_fraction=0.2, test_fraction=0, seed=0)


def test_balanced_batches_show_each_class_equally_often_whoever_loads_them(imbalanced: Manifest) -> None:
    assert sorted(imbalanced.targets(imbalanced.of("train"))) == [0] * 10 + [1] * 2
    alone, loaded = (epochs(data(imbalanced, num_workers=workers, sampling="balanced"), 2) for workers in (0, 2))
    for one, other in zip(alone, loaded, strict=True):
        assert same(one, other)
        assert torch.cat([targets for _, targets in one]).bincount().tolist() == [6, 6]


def test_a_photo_that_comes_again_in_an_epoch_is_distorted_anew(imbalanced: Manifest) -> None:
    ((pixels, targets),) = epochs(data(imbalanced, batch_size=12, sampling="balanced"), 1)[0]
    red = pixels[targets == 1]
    # two photos, three times each
    assert len({image.numpy().tobytes() for image in red}) == len(red) == 6


def test_another_seed_gives_other_batches(manifest: Manifest) -> None:
    assert not same(epochs(data(manifest, seed=0), 1)[0], epochs(data(manifest, seed=1), 1)[0])


def test_epochs_differ_in_order_and_in_pixels(manifest: Manifest) -> None:
    first, second = epochs(data(manifest, batch_size=12), 2)
    assert not torch.equal(first[0][1], second[0][1])

    def photos_seen(epoch: list[tuple[Tensor, Tensor]]) -> set[bytes]:
        return {bytes(np.asarray(pixels)) for pixels in epoch[0][0]}

    assert photos_seen(first).isdisjoint(photos_seen(second))


def test_an_epoch_that_is_repeated_is_the_same(manifest: Manifest) -> None:
    loader = data(manifest).train_dataloader()
    once, again = ([(pixels, targets) for pixels, targets in loader] for _ in range(2))
    assert same(once, again)


def test_every_training_photo_is_seen_once_an_epoch_with_its_class(manifest: Manifest) -> None:
    for batches in epochs(data(manifest), 2):
        targets = torch.cat([targets for _, targets in batches])
        assert sorted(targets.tolist()) == sorted(manifest.targets(manifest.of("train")))
        for pixels, shown in batches:
            # the photos are mostly blue, green or red, and so are their distortions
            brightest = pixels.float().mean(dim=(1, 2)).argmax(dim=1)
            assert [("red", "green", "blue")[channel] for channel in brightest] == [
                manifest.classes[target] for target in shown
            ]


def test_training_batches_are_uint8_squares(manifest: Manifest) -> None:
    ((pixels, targets), *_) = epochs(data(manifest), 1)[0]
    assert (pixels.shape, pixels.dtype) == ((5, SIZE, SIZE, 3), torch.uint8)
    assert (targets.shape, targets.dtype) == ((5,), torch.int64)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_validation_sees_what_the_server_sees_in_the_order_of_the_manifest(
    num_workers: int, manifest: Manifest
) -> None:
    module = data(manifest, batch_size=4, num_workers=num_workers)
    batches = [(pixels, targets) for pixels, targets in module.val_dataloader()]
    photos = manifest.of("val")
    want = np.stack([load_pixels(path, module.preprocessing) for path in manifest.paths(photos)])
    assert np.array_equal(torch.cat([pixels for pixels, _ in batches]).numpy(), want)
    assert torch.cat([targets for _, targets in batches]).tolist() == manifest.targets(photos)


@pytest.mark.parametrize(
    ("batch_size", "sizes"),
    [(11, [11]), (5, [5, 5, 2]), (4, [4, 4, 4]), (12, [12]), (100, [12])],
)
def test_the_last_batch_is_never_one_photo(batch_size: int, sizes: list[int], manifest: Manifest) -> None:
    module = data(manifest, batch_size=batch_size)
    assert [len(targets) for _, targets in epochs(module, 1)[0]] == sizes
    assert len(module.train_dataloader()) == len(sizes)


def test_the_photo_that_a_last_batch_of_one_leaves_out_changes(manifest: Manifest) -> None:
    left_out = set()
    for epoch in range(20):
        sampler: Any = data(manifest, batch_size=11).train_dataloader().sampler
        sampler.set_epoch(epoch)
        left_out.add(list(sampler)[-1][1])
    assert len(left_out) > 5


def test_validation_leaves_no_photo_out(manifest: Manifest) -> None:
    assert [len(targets) for _, targets in data(manifest, batch_size=5).val_dataloader()] == [5, 1]


def test_auto_workers_are_the_cores_but_not_too_many(manifest: Manifest) -> None:
    assert data(manifest, num_workers="auto").num_workers == min(usable_cores(), MOST_WORKERS)
    assert data(manifest, num_workers=3).num_workers == 3


def test_without_a_crop_training_sees_a_photo_as_validation_does(manifest: Manifest) -> None:
    config = AugmentConfig(horizontal_flip=0, vertical_flip=0, crop_area=None, crop_ratio=(0.75, 1.3333), pca_sigma=0)
    preprocessing = Preprocessing(image_size=SIZE, fit="crop")
    module = PhotoData(manifest, preprocessing, Augmentation(config, SIZE, None), 12, num_workers=0, seed=0)
    ((images, _),) = epochs(module, 1)[0]
    wanted = {load_pixels(path, preprocessing).tobytes() for path in manifest.paths(manifest.of("train"))}
    assert {image.numpy().tobytes() for image in images} == wanted
