from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from finetune.data.augmentation import Augmentation
from finetune.data.pca import ColourPCA
from finetune.data.pixels import Bounded
from finetune.manual import conf_dir
from finetune.preprocess import Pixels, Preprocessing
from tests.conftest import augment_config

COMPONENTS = ColourPCA(
    eigenvalues=(0.09, 0.03, 0.01), eigenvectors=((0.6, 0.8, 0.0), (-0.8, 0.6, 0.0), (0.0, 0.0, 1.0))
)
SIZE = 32
OPTIONS = sorted(file.stem for file in (conf_dir() / "augment").glob("*.yaml"))


def photo(width: int = 80, height: int = 60, low: int = 0, high: int = 256) -> Pixels:
    return np.random.default_rng(0).integers(low, high, (height, width, 3)).astype(np.uint8)


def ramp(side: int) -> Pixels:
    """Return a photo whose red level is the column and whose green level is the row."""
    rows, columns = np.mgrid[:side, :side]
    return np.stack([columns, rows, np.zeros_like(rows)], axis=2).astype(np.uint8)


def distortion(choice: str = "none", size: int = SIZE, **changes: Any) -> Augmentation:
    """Return augment=CHOICE, with these keys set, for squares of `size` px."""
    preprocessing = Preprocessing(image_size=size, fit="squash")
    return Augmentation(augment_config(choice, **changes), preprocessing, COMPONENTS)


def given_to(distort: Augmentation, original: Pixels) -> Pixels:
    """Bring a photo to what the distortion takes, as the data set does."""
    if isinstance(distort.stage, Bounded):
        return original
    side = distort.stage.image_size
    return np.asarray(Image.fromarray(original).resize((side, side)))


@pytest.fixture(scope="module")
def standard() -> Augmentation:
    return distortion("standard")


@pytest.mark.parametrize("choice", [*OPTIONS, "[defect,rotate]", "[strong,elastic,grid,jitter]"])
def test_the_same_seed_gives_the_same_pixels_whatever_came_between(choice: str) -> None:
    distort = distortion(choice)
    original, other = given_to(distort, photo()), given_to(distort, photo(50, 90))
    first = [distort(original, seed) for seed in range(10)]
    distort(other, 3)
    random.seed(12345)
    np.random.seed(12345)
    assert [distort(original, seed).tobytes() for seed in range(10)] == [pixels.tobytes() for pixels in first]
    assert np.array_equal(distortion(choice)(original, 7), first[7])
    assert all((pixels.shape, pixels.dtype) == ((SIZE, SIZE, 3), np.dtype(np.uint8)) for pixels in first)
    if choice not in ("none", "mixup", "cutmix"):
        assert len({pixels.tobytes() for pixels in first}) > 1
    assert np.array_equal(given_to(distort, photo()), original)


@pytest.mark.parametrize("choice", [*OPTIONS, "[strong,elastic,grid,jitter]"])
def test_an_augmentation_comes_back_from_json_and_is_replayed_with_the_same_draws(choice: str) -> None:
    distort = distortion(choice)
    original = given_to(distort, photo())
    restored = A.from_dict(json.loads(json.dumps(A.to_dict(distort.pipeline))))
    # of transforms of its own, as it changes them
    recorded = A.ReplayCompose(distortion(choice).pipeline.transforms)
    for seed in range(5):
        wanted = distort(original, seed)
        restored.set_random_state(np.random.default_rng(seed), random.Random(seed))
        assert np.array_equal(restored(image=original)["image"], wanted)
        recorded.set_random_state(np.random.default_rng(seed), random.Random(seed))
        first = recorded(image=original)
        assert np.array_equal(first["image"], wanted)
        assert np.array_equal(A.ReplayCompose.replay(first["replay"], image=original)["image"], wanted)


def test_other_seeds_give_other_pixels(standard: Augmentation) -> None:
    assert len({standard(photo(), seed).tobytes() for seed in range(20)}) == 20


def test_every_step_draws_for_itself() -> None:
    # Albumentations' own way of seeding lets both mirrors happen together or not at all
    distort = distortion(horizontal_flip=0.5, vertical_flip=0.5)
    original = photo(SIZE, SIZE)
    seen = [distort(original, seed).tobytes() for seed in range(400)]
    outcomes = [original, original[:, ::-1], original[::-1], original[::-1, ::-1]]
    counts = [seen.count(outcome.tobytes()) for outcome in outcomes]
    assert sum(counts) == 400
    assert min(counts) > 70


@pytest.mark.parametrize(("width", "height"), [(80, 60), (60, 80), (32, 32), (10, 7), (1, 1), (300, 20), (1, 200)])
def test_every_shape_becomes_the_square(width: int, height: int, standard: Augmentation) -> None:
    for seed in range(3):
        got = standard(photo(width, height), seed)
        assert (got.shape, got.dtype) == ((SIZE, SIZE, 3), np.dtype(np.uint8))


def test_no_augmentation_of_a_photo_of_the_right_size_is_the_photo() -> None:
    assert np.array_equal(distortion("none")(photo(SIZE, SIZE), seed=1), photo(SIZE, SIZE))


def test_what_decides_a_defect_is_never_cut_covered_or_warped() -> None:
    distort = distortion("defect")
    original = photo(SIZE, SIZE, low=100, high=156)
    assert distort.stage == Preprocessing(image_size=SIZE, fit="squash")
    turned = [np.rot90(mirrored, quarter) for mirrored in (original, original[:, ::-1]) for quarter in range(4)]
    for seed in range(30):
        got = distort(original, seed).astype(float)
        # one of the eight symmetries, its levels scaled and shifted a little: correlated pixel by pixel
        assert max(np.corrcoef(got.ravel(), symmetric.ravel())[0, 1] for symmetric in turned) > 0.999
        assert np.abs(got.mean() / original.mean() - 1) < 0.11


def test_alexnet_crops_mirrors_and_shifts_colours_as_published() -> None:
    distort = distortion("alexnet", size=224)
    assert distort.stage == Preprocessing(image_size=256, fit="squash")
    config = augment_config("alexnet")
    assert (config.horizontal_flip, config.pca_sigma) == (0.5, 0.1)
    assert config == augment_config("none", horizontal_flip=0.5, random_crop=0.875, pca_sigma=0.1)


def test_a_certain_horizontal_flip_mirrors_left_to_right() -> None:
    got = distortion(horizontal_flip=1)(photo(SIZE, SIZE), seed=1)
    assert np.array_equal(got, photo(SIZE, SIZE)[:, ::-1])


def test_a_certain_vertical_flip_mirrors_top_to_bottom() -> None:
    got = distortion(vertical_flip=1)(photo(SIZE, SIZE), seed=1)
    assert np.array_equal(got, photo(SIZE, SIZE)[::-1])


@pytest.mark.parametrize("key", ["horizontal_flip", "vertical_flip", "erase", "trivial_augment"])
def test_half_of_the_photos_are_changed_by_a_chance_of_one_half(key: str) -> None:
    distort = distortion(**{key: 0.5})
    changed = sum(not np.array_equal(distort(photo(SIZE, SIZE), seed), photo(SIZE, SIZE)) for seed in range(200))
    assert 70 < changed < 130


def test_dihedral_gives_the_eight_symmetries_of_the_square_evenly() -> None:
    original = photo(SIZE, SIZE)
    distort = distortion("dihedral")
    seen = [distort(original, seed).tobytes() for seed in range(400)]
    symmetries = {
        np.rot90(mirrored, quarter).tobytes() for mirrored in (original, original[:, ::-1]) for quarter in range(4)
    }
    assert set(seen) == symmetries
    assert len(symmetries) == 8
    assert min(seen.count(symmetry) for symmetry in symmetries) > 25


def test_a_resized_crop_shows_no_less_of_the_photo_than_its_area_allows() -> None:
    distort = distortion(size=100, crop_area=(0.25, 0.25), crop_ratio=(1, 1))
    assert distort.stage == Bounded(200, "white")
    lefts = set()
    for seed in range(20):
        columns = distort(ramp(200), seed)[..., 0]
        assert np.ptp(columns) == pytest.approx(99, abs=2)
        lefts.add(int(columns.min()))
    assert len(lefts) > 5


def test_shrinking_a_crop_does_not_alias() -> None:
    # squares of one pixel are grey from afar; shrunk without a low pass they would stay black and white
    board = (np.indices((331, 331)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    aliased = cv2.resize(board, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    assert aliased.std() > 50
    for seed in range(5):
        got = distortion(crop_area=(0.8, 1), crop_ratio=(1, 1))(board, seed)
        assert abs(got.mean() - 127.5) < 3
        assert got.std() < 10


def test_a_random_crop_is_a_window_anywhere_in_a_photo_of_larger_scale() -> None:
    distort = distortion(size=100, random_crop=0.5)
    assert distort.stage == Preprocessing(image_size=200, fit="squash")
    original = ramp(200)
    lefts, tops = set(), set()
    for seed in range(200):
        got = distort(original, seed)
        left, top = got[0, 0, 0], got[0, 0, 1]
        assert np.array_equal(got, original[top : top + 100, left : left + 100])
        lefts.add(int(left))
        tops.add(int(top))
    assert (min(lefts), max(lefts)) == (pytest.approx(0, abs=3), pytest.approx(100, abs=3))
    assert (min(tops), max(tops)) == (pytest.approx(0, abs=3), pytest.approx(100, abs=3))


def spot(row: int, column: int) -> Pixels:
    """Return a black square of 101 px with one soft white spot."""
    original = np.zeros((101, 101, 3), dtype=np.uint8)
    original[row, column] = 255
    return cv2.GaussianBlur(original, (7, 7), 1.5) * 10


def found(pixels: Pixels) -> NDArray[np.float64]:
    """Return where the spot is, (right, down) of the centre."""
    weights = pixels[..., 0].astype(float)
    rows, columns = np.mgrid[:101, :101] - 50
    return np.array([(columns * weights).sum(), (rows * weights).sum()]) / weights.sum()


def test_a_rotation_turns_about_the_centre_within_its_limit_either_way() -> None:
    distort = distortion(size=101, rotate=20)
    angles = []
    for seed in range(60):
        right, down = found(distort(spot(50, 80), seed))
        assert np.hypot(right, down) == pytest.approx(30, abs=0.5)
        angles.append(np.degrees(np.arctan2(down, right)))
    assert -20.5 < min(angles) < -15
    assert 15 < max(angles) < 20.5


def test_shearing_slants_each_side_within_its_limit_either_way() -> None:
    distort = distortion(size=101, shear=20)
    most = 30 * np.tan(np.radians(20))
    sideways = np.array([found(distort(spot(80, 50), seed)) - (0, 30) for seed in range(60)])
    assert most * 0.7 < np.abs(sideways[:, 0]).max() < most + 0.7
    assert np.ptp(np.sign(sideways[:, 0])) == 2
    upright = np.array([found(distort(spot(50, 80), seed)) - (30, 0) for seed in range(60)])
    assert most * 0.7 < np.abs(upright[:, 1]).max() < most + 0.7
    # what lies in the middle stays there
    assert max(np.abs(found(distort(spot(50, 50), seed))).max() for seed in range(20)) < 0.3


@pytest.mark.parametrize("choice", ["rotate", "shear", "elastic", "grid", "[rotate,shear,elastic,grid]"])
def test_no_black_corners_come_in_over_the_border(choice: str) -> None:
    white = np.full((SIZE, SIZE, 3), 255, dtype=np.uint8)
    assert all(distortion(choice)(white, seed).min() == 255 for seed in range(20))


def test_elastic_warping_moves_points_smoothly_by_as_much_as_it_says() -> None:
    distort = distortion(size=200, elastic=0.02)
    moved = np.array([distort(ramp(200), seed)[..., :2].astype(float) - ramp(200)[..., :2] for seed in range(20)])
    inside = moved[:, 20:-20, 20:-20]
    # points between those that are drawn move a little less
    assert 0.7 * 0.02 * 200 < inside.std() < 1.05 * 0.02 * 200
    assert np.abs(np.diff(inside, axis=1)).max() < 3
    assert abs(np.corrcoef(inside[..., 0].ravel(), inside[..., 1].ravel())[0, 1]) < 0.2
    assert len({round(field[100, 100, 0]) for field in moved}) > 5


def test_the_border_is_warped_no_more_than_the_middle() -> None:
    distort = distortion(size=200, elastic=0.02)
    moved = np.array([distort(ramp(200), seed)[..., 1].astype(float) - ramp(200)[..., 1] for seed in range(40)])
    # up and down along the left and right borders, where reflection does not hide it
    assert moved[:, 20:-20, [0, -1]].std() < 1.3 * moved[:, 20:-20, 20:-20].std()


def test_grid_warping_stretches_and_squeezes_strips_within_its_limit() -> None:
    distort = distortion(size=200, grid=0.3)
    widths = []
    for seed in range(20):
        columns = distort(ramp(200), seed)[..., 0].astype(int)
        # whole columns move, nothing is folded over or lost
        assert np.ptp(columns, axis=0).max() <= 1
        assert np.diff(columns[0]).min() >= -1
        assert columns[0, 0] <= 1
        assert columns[0, -1] >= 197
        ends = columns[0, [0, 39, 79, 119, 159, 199]]
        widths += np.diff(ends).tolist()
    assert 40 * 0.5 < min(widths) < 40 * 0.85
    assert 40 * 1.15 < max(widths) < 40 * 1.6


@pytest.mark.parametrize("most", [1, 20])
def test_colour_addition_shifts_each_channel_within_its_levels(most: int) -> None:
    original = photo(SIZE, SIZE, low=100, high=156)
    added = [differences(distortion(colour_add=most)(original, seed), original) for seed in range(60)]
    assert all(len(vectors) == 1 for vectors in added)
    vectors = np.array([vectors[0] for vectors in added])
    assert vectors.min(axis=0) == pytest.approx([-most] * 3, abs=2)
    assert vectors.max(axis=0) == pytest.approx([most] * 3, abs=2)
    assert np.abs(vectors).max() <= most
    assert (np.ptp(vectors, axis=1) > 0).any()


def test_brightness_scales_all_levels_within_its_limit() -> None:
    grey = np.full((SIZE, SIZE, 3), 100, dtype=np.uint8)
    seen = [distortion(brightness=0.2)(grey, seed) for seed in range(60)]
    levels = [int(pixels[0, 0, 0]) for pixels in seen]
    assert all(np.ptp(pixels) == 0 for pixels in seen)
    assert 79 <= min(levels) < 85
    assert 115 < max(levels) <= 121


def test_contrast_scales_the_distance_from_the_mean_within_its_limit() -> None:
    original = photo(SIZE, SIZE, low=64, high=192)
    seen = [distortion(contrast=0.2)(original, seed) for seed in range(60)]
    shares = [float(pixels.std() / original.std()) for pixels in seen]
    assert all(abs(pixels.mean() - original.mean()) < 2 for pixels in seen)
    assert 0.79 < min(shares) < 0.85
    assert 1.15 < max(shares) < 1.21


def hsv(pixels: Pixels) -> NDArray[np.float64]:
    """Return hue in degrees, saturation and value of the first pixel, as Pillow has them."""
    return np.asarray(Image.fromarray(pixels).convert("HSV"))[0, 0] * (360 / 255, 1 / 255, 1)


def test_saturation_and_hue_leave_grey_alone_and_change_colours_within_their_limits() -> None:
    grey = np.full((SIZE, SIZE, 3), 100, dtype=np.uint8)
    green = np.full((SIZE, SIZE, 3), (60, 180, 60), dtype=np.uint8)
    for key, most in (("saturation", 0.2), ("hue", 0.1)):
        assert all(np.array_equal(distortion(**{key: most})(grey, seed), grey) for seed in range(10))
    pale = [hsv(distortion(saturation=0.2)(green, seed)) for seed in range(60)]
    assert all(colour[0] == pytest.approx(120, abs=2) for colour in pale)
    # of 2/3, by a fifth of each channel's distance from grey
    assert 0.5 < min(colour[1] for colour in pale) < 0.6
    assert 0.7 < max(colour[1] for colour in pale) < 0.8
    turned = [hsv(distortion(hue=0.1)(green, seed)) for seed in range(60)]
    assert all(colour[1] == pytest.approx(2 / 3, abs=0.02) for colour in turned)
    assert 120 - 38 < min(colour[0] for colour in turned) < 120 - 30
    assert 120 + 30 < max(colour[0] for colour in turned) < 120 + 38


def test_erasing_fills_one_rectangle_of_the_right_area_with_noise() -> None:
    original = np.full((SIZE, SIZE, 3), 128, dtype=np.uint8)
    distort = distortion(erase=1, erase_area=(0.1, 0.3))
    places = set()
    for seed in range(40):
        got = distort(original, seed)
        assert got.shape == original.shape
        rows, columns = np.nonzero((got != original).any(axis=2))
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        # noise may by chance hold the level of the photo, in all three channels hardly ever
        assert len(rows) >= (bottom - top) * (right - left) - 1
        assert 0.08 < (bottom - top) * (right - left) / SIZE**2 < 0.33
        assert got[top:bottom, left:right].std() > 50
        places.add((int(top), int(left)))
    assert len(places) > 20


def test_a_shift_without_components_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the components"):
        Augmentation(augment_config("pca"), Preprocessing(image_size=SIZE, fit="squash"), None)


def differences(distorted: Pixels, original: Pixels) -> list[list[int]]:
    """Return every different vector that some pixel was changed by."""
    changed = (distorted.astype(int) - original).reshape(-1, 3)
    vectors: list[list[int]] = np.unique(changed, axis=0).tolist()
    return vectors


def test_the_colour_shift_adds_one_vector_to_every_pixel() -> None:
    original = photo(SIZE, SIZE, low=100, high=156)
    distort = distortion(pca_sigma=1.0)
    added = [differences(distort(original, seed), original) for seed in range(20)]
    assert [len(vectors) for vectors in added] == [1] * 20
    assert len({tuple(vectors[0]) for vectors in added}) > 15


def test_the_colour_shift_clips_what_would_leave_the_range() -> None:
    original, inside = photo(SIZE, SIZE), photo(SIZE, SIZE, low=120, high=136)
    distort = distortion(pca_sigma=2.0)
    for seed in range(10):
        (vector,) = differences(distort(inside, seed), inside)
        assert np.array_equal(distort(original, seed), (original.astype(int) + vector).clip(0, 255))


def test_the_colour_shift_is_drawn_from_the_components() -> None:
    # a data set that varies along one direction shifts along that one only
    line = ColourPCA(eigenvalues=(0.5, 0.0, 0.0), eigenvectors=((0.8, 0.0, -0.6), (0.0, 1.0, 0.0), (0.6, 0.0, 0.8)))
    original = np.full((SIZE, SIZE, 3), 128, dtype=np.uint8)
    distort = Augmentation(augment_config(pca_sigma=0.2), Preprocessing(image_size=SIZE, fit="squash"), line)
    added = np.array([differences(distort(original, seed), original)[0] for seed in range(200)])
    assert np.all(added[:, 1] == 0)
    assert np.abs(added[:, 2] + 0.75 * added[:, 0]).max() <= 1
    assert added[:, 0].std() == pytest.approx(255 * 0.2 * 0.5 * 0.8, rel=0.2)


def test_the_covariance_of_what_is_added_to_the_photos_of_an_epoch_is_that_of_theory() -> None:
    # so strong that rounding to whole levels, of variance 1/12, does not matter
    sigma = 0.6
    distort = distortion(pca_sigma=sigma)
    grey = np.full((1, 1, 3), 128, dtype=np.uint8)
    added = np.array([distort(grey, seed)[0, 0] for seed in range(20_000)]) - 128.0
    vectors = np.array(COMPONENTS.eigenvectors)
    wanted = (255 * sigma) ** 2 * vectors.T @ np.diag(np.square(COMPONENTS.eigenvalues)) @ vectors
    assert np.linalg.norm(np.cov(added.T) - wanted) < 0.03 * np.linalg.norm(wanted)
    assert np.abs(added.mean(axis=0)).max() < 0.5


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


def test_opencv_starts_no_threads_of_its_own() -> None:
    assert cv2.getNumThreads() == 1
