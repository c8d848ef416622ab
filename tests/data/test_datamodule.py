from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from finetune.data.augmentation import Augmentation
from finetune.data.datamodule import MOST_WORKERS, PhotoData
from finetune.data.manifest import Manifest
from finetune.data.pca import ColourPCA
from finetune.data.pixels import Cache, Stage, take_pixels
from finetune.data.sampling import Sampling
from finetune.data.splits import Split
from finetune.parallel import usable_cores
from finetune.preprocess import Preprocessing, load_pixels
from tests.conftest import augment_config, manifest_of, paint

SIZE = 32
PREPROCESSING = Preprocessing(image_size=SIZE, fit="crop")
COMPONENTS = ColourPCA(eigenvalues=(0.1, 0.02, 0.01), eigenvectors=((1, 0, 0), (0, 1, 0), (0, 0, 1)))

# torch says so where two workers are more than the cores, or are forked beside threads; the pixels must not care
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture
def manifest(photos: Path) -> Manifest:
    """12 photos to train on, 6 to validate and 6 to test with."""
    everything = manifest_of(photos)
    places = ("train",) * 4 + ("val",) * 2 + ("test",) * 2
    placed = [photo._replace(split=places[number % 8]) for number, photo in enumerate(everything.photos)]
    return Manifest(everything.store, tuple(placed))


def data(
    manifest: Manifest,
    batch_size: int = 5,
    num_workers: int | str = 0,
    seed: int = 0,
    augment: str = "standard",
    sampling: Sampling = "shuffled",
    cache: Cache = "none",
) -> PhotoData:
    preprocessing = PREPROCESSING
    augmentation = Augmentation(augment_config(augment), preprocessing, COMPONENTS)
    pixels = take_pixels(cache, manifest, {"train": augmentation.stage, "val": preprocessing}, Path("pixels"))
    return PhotoData(manifest, pixels, augmentation, batch_size, num_workers, seed, sampling)


def epochs(module: PhotoData, count: int) -> list[list[tuple[Tensor, Tensor]]]:
    """Return the training batches of some epochs."""
    loader = module.train_dataloader()
    batches = []
    for epoch in range(count):
        module.sampler.set_epoch(epoch)
        batches.append([(pixels, targets) for pixels, targets in loader])
    return batches


def same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("augment", ["standard", "strong", "[alexnet,dihedral,rotate,elastic,grid,jitter]"])
def test_the_same_seed_gives_the_same_batches_however_many_workers_there_are(augment: str, manifest: Manifest) -> None:
    alone = epochs(data(manifest, num_workers=0, augment=augment), 3)
    torch.manual_seed(12345)  # the workers' own seeds have no part in it
    for one, other in zip(alone, epochs(data(manifest, num_workers=2, augment=augment), 3), strict=True):
        assert same(one, other)


@pytest.mark.parametrize("cache", ["ram", "disk"])
@pytest.mark.parametrize("augment", ["none", "standard", "random_crop"])
def test_kept_photos_give_the_same_batches_as_decoded_ones(augment: str, cache: Cache, manifest: Manifest) -> None:
    decoded, kept = (data(manifest, augment=augment, num_workers=2, cache=chosen) for chosen in ("none", cache))
    for one, other in zip(epochs(decoded, 2), epochs(kept, 2), strict=True):
        assert same(one, other)
    assert same(list(decoded.val_dataloader()), list(kept.val_dataloader()))


@pytest.fixture
def imbalanced(tmp_path: Path) -> Manifest:
    """10 blue and 2 red photos to train on."""
    for label, count in (("blue", 12), ("red", 3)):
        for index in range(count):
            paint(tmp_path / "imbalanced" / label / f"{index}.jpg", label, seed=index)
    return manifest_of(tmp_path / "imbalanced", val_fraction=0.2, test_fraction=0)


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
    want = np.stack([load_pixels(path, PREPROCESSING) for path in manifest.files(photos)])
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
        sampler = data(manifest, batch_size=11).sampler
        sampler.set_epoch(epoch)
        left_out.add(list(sampler)[-1][1])
    assert len(left_out) > 5


def test_validation_leaves_no_photo_out(manifest: Manifest) -> None:
    assert [len(targets) for _, targets in data(manifest, batch_size=5).val_dataloader()] == [5, 1]


def test_auto_workers_are_the_cores_but_not_too_many(manifest: Manifest) -> None:
    assert data(manifest, num_workers="auto").num_workers == min(usable_cores(), MOST_WORKERS)
    assert data(manifest, num_workers=3).num_workers == 3


def test_without_a_crop_training_sees_a_photo_as_validation_does(manifest: Manifest) -> None:
    module = data(manifest, batch_size=12, augment="none")
    ((images, _),) = epochs(module, 1)[0]
    wanted = {load_pixels(path, PREPROCESSING).tobytes() for path in manifest.files(manifest.of("train"))}
    assert {image.numpy().tobytes() for image in images} == wanted


def test_a_random_crop_is_cut_from_a_larger_photo_that_was_brought_to_size_as_in_validation(manifest: Manifest) -> None:
    module = data(manifest, batch_size=12, augment="random_crop")
    larger = Preprocessing(image_size=37, fit="crop")  # 32 / 0.875
    wanted = [load_pixels(path, larger) for path in manifest.files(manifest.of("train"))]
    windows = {
        pixels[top : top + SIZE, left : left + SIZE].tobytes()
        for pixels in wanted
        for top in range(6)
        for left in range(6)
    }
    ((images, _),) = epochs(module, 1)[0]
    assert {image.numpy().tobytes() for image in images} <= windows


def test_transparent_photos_are_laid_over_the_colour_that_is_asked_for(tmp_path: Path) -> None:
    for label in ("a", "b"):
        for number in range(4):
            place = tmp_path / label / f"{number}.png"
            place.parent.mkdir(exist_ok=True)
            Image.new("RGBA", (60, 60), (*label.encode(), number, 9, 0)).save(place)
    manifest = manifest_of(tmp_path, near_duplicates=None)
    for colour, level in (("white", 255), ("black", 0)):
        preprocessing = Preprocessing.model_validate({"image_size": SIZE, "fit": "crop", "alpha_over": colour})
        augmentation = Augmentation(augment_config("crop"), preprocessing, None)
        stages: dict[Split, Stage] = {"train": augmentation.stage, "val": preprocessing}
        pixels = take_pixels("none", manifest, stages, tmp_path)
        module = PhotoData(manifest, pixels, augmentation, 2, num_workers=0, seed=0)
        for loader in (module.train_dataloader(), module.val_dataloader()):
            assert all(bool((images == level).all()) for images, _ in loader)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_begins_where_a_run_was_interrupted(num_workers: int, manifest: Manifest) -> None:
    whole = epochs(data(manifest), 3)
    module = data(manifest, num_workers=num_workers)
    module.load_state_dict({"epoch": 1, "batch": 2})
    loader = module.train_dataloader()
    # as Lightning does: the workers begin to load before they are told the epoch
    batches = iter(loader)
    module.sampler.set_epoch(1)
    assert same(list(batches), whole[1][2:])
    module.sampler.set_epoch(2)
    assert same(list(loader), whole[2])


def test_the_photos_of_a_batch_are_told_from_its_number(manifest: Manifest) -> None:
    module = data(manifest, augment="none")
    for epoch, batches in enumerate(epochs(module, 2)):
        for number, (pixels, _) in enumerate(batches):
            files = manifest.files(module.photos_of(epoch, number))
            wanted = np.stack([load_pixels(file, PREPROCESSING) for file in files])
            assert torch.equal(pixels, torch.from_numpy(wanted))


def test_loading_processes_end_although_something_still_holds_their_loader(manifest: Manifest) -> None:
    module = data(manifest, num_workers=2)
    held = iter(module.train_dataloader())
    next(held)
    processes = list(held._workers)  # type: ignore[attr-defined]
    assert all(process.is_alive() for process in processes)
    module.stop_workers()
    assert not any(process.is_alive() for process in processes)
