from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import albumentations as A
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from finetune.cli import conf_dir
from finetune.config import AugmentConfig
from finetune.data.augmentation import Augmentation, PCAColourShift
from finetune.data.pca import ColourPCA
from finetune.preprocess import Pixels

VALUES = (0.09, 0.03, 0.01)
VECTORS = ((0.6, 0.8, 0.0), (-0.8, 0.6, 0.0), (0.0, 0.0, 1.0))
COMPONENTS = ColourPCA(eigenvalues=VALUES, eigenvectors=VECTORS)
SIZE = 32


def photo(width: int = 80, height: int = 60, low: int = 0, high: int = 256) -> Pixels:
    return np.random.default_rng(0).integers(low, high, (height, width, 3)).astype(np.uint8)


def config(**changes: Any) -> AugmentConfig:
    """Return no distortion at all, but for these."""
    nothing = {
        "horizontal_flip": 0,
        "vertical_flip": 0,
        "crop_area": None,
        "crop_ratio": (0.75, 1.3333),
        "pca_sigma": 0,
    }
    return AugmentConfig.model_validate(nothing | changes)


def option(name: str) -> AugmentConfig:
    """Return what augment=NAME composes to."""
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        composed = compose("train", [f"augment={name}", "data.root=photos", "output=run"])
    return AugmentConfig.model_validate(OmegaConf.to_container(composed.augment, resolve=True))


@pytest.fixture(scope="module")
def standard() -> Augmentation:
    return Augmentation(option("standard"), SIZE, COMPONENTS)


def test_the_same_seed_gives_the_same_pixels_whatever_came_between(standard: Augmentation) -> None:
    first = standard(photo(), seed=7)
    for seed in range(3):
        standard(photo(50, 90), seed)
    assert np.array_equal(standard(photo(), seed=7), first)
    assert np.array_equal(Augmentation(option("standard"), SIZE, COMPONENTS)(photo(), seed=7), first)


def test_the_global_generators_have_no_part_in_it(standard: Augmentation) -> None:
    first = standard(photo(), seed=7)
    np.random.seed(12345)
    assert np.array_equal(standard(photo(), seed=7), first)


def test_other_seeds_give_other_pixels(standard: Augmentation) -> None:
    assert len({standard(photo(), seed).tobytes() for seed in range(20)}) == 20


def test_the_photo_itself_is_left_alone(standard: Augmentation) -> None:
    given = photo()
    standard(given, seed=0)
    assert np.array_equal(given, photo())


@pytest.mark.parametrize(("width", "height"), [(80, 60), (60, 80), (32, 32), (10, 7), (1, 1), (300, 20), (1, 200)])
def test_every_shape_becomes_the_square(width: int, height: int) -> None:
    distort = Augmentation(option("standard"), SIZE, COMPONENTS)
    for seed in range(3):
        got = distort(photo(width, height), seed)
        assert (got.shape, got.dtype) == ((SIZE, SIZE, 3), np.dtype(np.uint8))


def test_no_augmentation_of_a_photo_of_the_right_size_is_the_photo() -> None:
    assert np.array_equal(Augmentation(option("none"), SIZE, None)(photo(SIZE, SIZE), seed=1), photo(SIZE, SIZE))


def test_a_certain_horizontal_flip_mirrors_left_to_right() -> None:
    got = Augmentation(config(horizontal_flip=1), SIZE, None)(photo(SIZE, SIZE), seed=1)
    assert np.array_equal(got, photo(SIZE, SIZE)[:, ::-1])


def test_a_certain_vertical_flip_mirrors_top_to_bottom() -> None:
    got = Augmentation(config(vertical_flip=1), SIZE, None)(photo(SIZE, SIZE), seed=1)
    assert np.array_equal(got, photo(SIZE, SIZE)[::-1])


def test_half_of_the_photos_are_mirrored_by_a_flip_of_one_half() -> None:
    distort = Augmentation(config(horizontal_flip=0.5), SIZE, None)
    mirrored = sum(not np.array_equal(distort(photo(SIZE, SIZE), seed), photo(SIZE, SIZE)) for seed in range(200))
    assert 70 < mirrored < 130


def test_a_crop_shows_no_less_of_the_photo_than_its_area_allows() -> None:
    # the level of a pixel is the column it comes from, so the cut can be read off the pixels
    columns = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (200, 200, 3)).copy()
    distort = Augmentation(config(crop_area=(0.25, 0.25), crop_ratio=(1, 1)), 100, None)
    lefts = set()
    for seed in range(20):
        got = distort(columns, seed)
        assert np.ptp(got) == pytest.approx(99, abs=2)
        lefts.add(int(got.min()))
    assert len(lefts) > 5


def test_a_shift_without_components_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the components"):
        Augmentation(config(pca_sigma=0.1), SIZE, None)


def differences(distorted: Pixels, original: Pixels) -> list[list[int]]:
    """Return every different vector that some pixel was changed by."""
    changed = (distorted.astype(int) - original).reshape(-1, 3)
    vectors: list[list[int]] = np.unique(changed, axis=0).tolist()
    return vectors


def test_the_colour_shift_adds_one_vector_to_every_pixel() -> None:
    original = photo(SIZE, SIZE, low=100, high=156)
    distort = Augmentation(config(pca_sigma=1.0), SIZE, COMPONENTS)
    added = [differences(distort(original, seed), original) for seed in range(20)]
    assert [len(vectors) for vectors in added] == [1] * 20
    assert len({tuple(vectors[0]) for vectors in added}) > 15


def test_the_colour_shift_clips_what_would_leave_the_range() -> None:
    original, inside = photo(SIZE, SIZE), photo(SIZE, SIZE, low=120, high=136)
    distort = Augmentation(config(pca_sigma=2.0), SIZE, COMPONENTS)
    for seed in range(10):
        (vector,) = differences(distort(inside, seed), inside)
        assert np.array_equal(distort(original, seed), (original.astype(int) + vector).clip(0, 255))


def test_the_colour_shift_is_drawn_from_the_components() -> None:
    # a data set that varies along one direction shifts along that one only
    line = ColourPCA(eigenvalues=(0.5, 0.0, 0.0), eigenvectors=((0.8, 0.0, -0.6), (0.0, 1.0, 0.0), (0.6, 0.0, 0.8)))
    original = np.full((SIZE, SIZE, 3), 128, dtype=np.uint8)
    distort = Augmentation(config(pca_sigma=0.2), SIZE, line)
    added = np.array([differences(distort(original, seed), original)[0] for seed in range(200)])
    assert np.all(added[:, 1] == 0)
    assert np.abs(added[:, 2] + 0.75 * added[:, 0]).max() <= 1
    assert added[:, 0].std() == pytest.approx(255 * 0.2 * 0.5 * 0.8, rel=0.2)


def test_the_colour_shift_comes_back_from_json_with_the_same_draws() -> None:
    before = A.Compose([PCAColourShift(VALUES, VECTORS, 1.0)])
    after = A.from_dict(json.loads(json.dumps(A.to_dict(before))))
    for seed in range(3):
        before.set_random_seed(seed)
        after.set_random_seed(seed)
        assert np.array_equal(before(image=photo())["image"], after(image=photo())["image"])


def test_all_of_an_augmentation_comes_back_from_json_with_the_same_draws(standard: Augmentation) -> None:
    after = A.from_dict(json.loads(json.dumps(A.to_dict(standard.pipeline))))
    for seed in range(5):
        after.set_random_seed(seed)
        assert np.array_equal(after(image=photo())["image"], standard(photo(), seed))


def test_a_replayed_augmentation_repeats_its_draws(standard: Augmentation) -> None:
    recorded = A.ReplayCompose(standard.pipeline.transforms)
    for seed in range(5):
        recorded.set_random_seed(seed)
        first = recorded(image=photo())
        assert np.array_equal(A.ReplayCompose.replay(first["replay"], image=photo())["image"], first["image"])


def test_the_colour_shift_is_replayed_on_another_photo() -> None:
    recorded = A.ReplayCompose([PCAColourShift(VALUES, VECTORS, 1.0)])
    recorded.set_random_seed(0)
    original, other = photo(low=110, high=146), photo(20, 10, low=110, high=146)
    first = recorded(image=original)
    again = A.ReplayCompose.replay(first["replay"], image=other)
    assert differences(again["image"], other) == differences(first["image"], original)


def test_the_draws_of_the_colour_shift_can_be_written_as_json() -> None:
    recorded = A.ReplayCompose([PCAColourShift(VALUES, VECTORS, 1.0)])
    recorded.set_random_seed(0)
    first = recorded(image=photo())
    replayed = A.ReplayCompose.replay(json.loads(json.dumps(first["replay"])), image=photo())
    assert np.array_equal(replayed["image"], first["image"])


def test_importing_the_module_keeps_albumentations_off_the_network() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    said = subprocess.run(
        [sys.executable, "-c", "import finetune.data.augmentation, os; print(os.environ['NO_ALBUMENTATIONS_UPDATE'])"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "1\n"
