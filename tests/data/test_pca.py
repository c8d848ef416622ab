from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from finetune.data.pca import IMAGENET, ColourPCA, add_colour, colour_components, fit_colour_pca
from tests.conftest import augment_config

ROTATED = np.linalg.qr(np.array([[1.0, 1.0, 0.9], [1.0, -1.0, 0.2], [0.3, 0.4, -1.0]]))[0]
MOST = 10_000
LEVELS = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)


def save(path: Path, pixels: NDArray[np.integer]) -> Path:
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def plain(path: Path, level: int, width: int, height: int = 100) -> Path:
    return save(path, np.full((height, width, 3), level))


def components(values: tuple[float, float, float], vectors: NDArray[np.float64]) -> ColourPCA:
    return ColourPCA.model_validate({"eigenvalues": values, "eigenvectors": vectors.tolist()})


def covariance(fitted: ColourPCA) -> NDArray[np.float64]:
    """Put the covariance together again from its components."""
    vectors = np.array(fitted.eigenvectors)
    together: NDArray[np.float64] = vectors.T @ np.diag(fitted.eigenvalues) @ vectors
    return together


def test_independent_channels_are_found_with_their_variances_in_rgb_order(tmp_path: Path) -> None:
    # every combination of R 128 +- 10, G 128 +- 50 and B 128 +- 20, equally often
    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8).T
    path = save(tmp_path / "photo.png", 128 + signs.reshape(2, 4, 3) * [10, 50, 20])
    fitted = fit_colour_pca([path], MOST)
    assert fitted.eigenvalues == pytest.approx([(50 / 255) ** 2, (20 / 255) ** 2, (10 / 255) ** 2])
    assert np.abs(fitted.eigenvectors) == pytest.approx(np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]]))


def test_the_components_are_the_eigenvectors_of_the_covariance_of_all_photos_together(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    photos = []
    for mean in [(90, 120, 150), (140, 120, 100), (110, 160, 90)]:
        drawn = mean + generator.normal(0, [25, 9, 4], (60, 80, 3)) @ ROTATED
        photos.append(drawn.clip(0, 255).astype(np.uint8))
    fitted = fit_colour_pca((save(tmp_path / f"{n}.png", pixels) for n, pixels in enumerate(photos)), MOST)
    wanted = np.cov(np.concatenate(photos).reshape(-1, 3).T / 255, bias=True)
    vectors = np.array(fitted.eigenvectors)
    assert list(fitted.eigenvalues) == sorted(fitted.eigenvalues, reverse=True)
    assert vectors @ vectors.T == pytest.approx(np.eye(3), abs=1e-9)
    for value, vector in zip(fitted.eigenvalues, vectors, strict=True):
        assert wanted @ vector == pytest.approx(value * vector, abs=1e-9)


def test_grey_photos_shift_along_grey_only(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (50, 60, 1)).repeat(3, axis=2)
    fitted = fit_colour_pca([save(tmp_path / "photo.png", grey)], MOST)
    shifts = fitted.shift(np.random.default_rng(1).normal(0, 0.1, (100, 3)))
    assert np.ptp(shifts, axis=1).max() < 1e-6
    assert np.abs(shifts).max() > 1


def test_photos_of_one_colour_do_not_shift_at_all(tmp_path: Path) -> None:
    fitted = fit_colour_pca([plain(tmp_path / "photo.png", 99, 30)], MOST)
    assert fitted.shift(np.array([3.0, 3.0, 3.0])) == pytest.approx(np.zeros(3), abs=1e-6)
    assert min(fitted.eigenvalues) >= 0


@pytest.mark.parametrize("width", [200, 400, 1000])
def test_a_large_photo_weighs_no_more_than_a_small_one(width: int, tmp_path: Path) -> None:
    small = plain(tmp_path / "small.png", 0, 100)
    large = plain(tmp_path / "large.png", 200, width)
    # two colours, half and half
    assert fit_colour_pca([small, large], MOST).eigenvalues[0] == pytest.approx(3 * (100 / 255) ** 2, rel=1e-6)


def test_a_somewhat_larger_photo_weighs_no_more_than_a_small_one(tmp_path: Path) -> None:
    small = plain(tmp_path / "small.png", 0, 100)
    large = plain(tmp_path / "large.png", 200, 199)
    assert fit_colour_pca([small, large], MOST).eigenvalues[0] == pytest.approx(3 * (100 / 255) ** 2, rel=1e-6)


def test_all_of_a_large_photo_is_sampled(tmp_path: Path) -> None:
    halves = np.zeros((400, 300, 3), dtype=np.uint8)
    halves[200:] = 200
    fitted = fit_colour_pca([save(tmp_path / "photo.png", halves)], MOST)
    assert fitted.eigenvalues[0] == pytest.approx(3 * (100 / 255) ** 2, rel=1e-3)


def test_stripes_do_not_mislead_the_sample(tmp_path: Path) -> None:
    # every n-th pixel would fall on white columns only
    stripes = np.zeros((400, 400, 3))
    stripes[:, ::4] = 200
    fitted = fit_colour_pca([save(tmp_path / "photo.png", stripes)], MOST)
    assert fitted.eigenvalues[0] == pytest.approx(3 * 0.25 * 0.75 * (200 / 255) ** 2, rel=0.05)


@pytest.mark.parametrize("most", [1, 50, 1000])
def test_no_photo_gives_more_pixels_than_it_may(most: int, tmp_path: Path) -> None:
    small = plain(tmp_path / "small.png", 0, most, height=1)
    large = plain(tmp_path / "large.png", 200, 300)
    assert fit_colour_pca([small, large], most).eigenvalues[0] == pytest.approx(3 * (100 / 255) ** 2, rel=1e-6)


def test_components_of_the_photos_or_of_imagenet_by_option(tmp_path: Path) -> None:
    photo = save(tmp_path / "photo.png", np.random.default_rng(0).integers(0, 256, (30, 30, 3)))
    assert colour_components(augment_config("pca"), [photo]) == fit_colour_pca([photo], MOST)
    assert colour_components(augment_config("pca", pca_pixels=7), [photo]) == fit_colour_pca([photo], 7)
    assert colour_components(augment_config("pca", pca_from="imagenet"), [tmp_path / "never read"]) == IMAGENET


def test_the_constants_of_imagenet_are_components_in_rgb_order() -> None:
    vectors = np.array(IMAGENET.eigenvectors)
    assert vectors @ vectors.T == pytest.approx(np.eye(3), abs=1e-3)
    # the first is nearly grey; the second is between red and blue; the third takes from green
    assert IMAGENET.shift(np.array([1.0, 0, 0])) == pytest.approx(255 * 0.2175 * np.array([-0.5675, -0.5808, -0.5836]))
    assert IMAGENET.shift(np.array([0, 1.0, 0])) == pytest.approx(255 * 0.0188 * np.array([0.7192, -0.0045, -0.6948]))
    assert IMAGENET.shift(np.array([0, 0, 1.0])) == pytest.approx(255 * 0.0045 * np.array([0.4009, -0.8140, 0.4203]))


def test_a_shift_of_nothing_is_nothing() -> None:
    assert components((0.1, 0.02, 0.01), ROTATED).shift(np.zeros(3)).tolist() == [0, 0, 0]


def test_a_shift_is_that_of_the_paper() -> None:
    # [p1, p2, p3][a1 l1, a2 l2, a3 l3]^T with the p as columns, in levels
    values, alphas = np.array([0.1, 0.02, 0.01]), np.array([0.5, -1.0, 2.0])
    wanted = 255 * (ROTATED.T @ (alphas * values))
    assert components((0.1, 0.02, 0.01), ROTATED).shift(alphas) == pytest.approx(wanted)


def test_many_draws_are_shifted_at_once_as_one_by_one() -> None:
    alphas = np.random.default_rng(0).normal(size=(5, 3))
    fitted = components((0.1, 0.02, 0.01), ROTATED)
    assert fitted.shift(alphas) == pytest.approx(np.array([fitted.shift(alpha) for alpha in alphas]))


def test_the_covariance_of_the_shifts_is_that_of_theory() -> None:
    sigma, values = 0.1, (0.09, 0.03, 0.01)
    drawn = components(values, ROTATED).shift(np.random.default_rng(0).normal(0, sigma, (20_000, 3)))
    wanted = (255 * sigma) ** 2 * ROTATED.T @ np.diag(np.square(values)) @ ROTATED
    assert np.linalg.norm(np.cov(drawn.T) - wanted) < 0.03 * np.linalg.norm(wanted)
    along = np.diag(ROTATED @ np.cov(drawn.T) @ ROTATED.T)
    assert along == pytest.approx((255 * sigma * np.array(values)) ** 2, rel=0.03)


def test_adding_nothing_changes_nothing() -> None:
    assert np.array_equal(add_colour(LEVELS, np.zeros(3)), LEVELS)


def test_colour_is_added_in_rgb_order() -> None:
    assert add_colour(np.full((2, 2, 3), 100, dtype=np.uint8), np.array([1.0, 20.0, -30.0]))[0, 0].tolist() == [
        101,
        120,
        70,
    ]


def test_colour_is_clipped_and_never_wraps_around() -> None:
    brighter, darker = add_colour(LEVELS, np.full(3, 10.0)), add_colour(LEVELS, np.full(3, -10.0))
    assert np.array_equal(brighter, (LEVELS.astype(int) + 10).clip(max=255))
    assert np.array_equal(darker, (LEVELS.astype(int) - 10).clip(min=0))


@pytest.mark.parametrize(("level", "wanted"), [(0.4, 100), (0.6, 101), (-0.4, 100), (-0.6, 99), (1.9, 102)])
def test_colour_is_rounded_to_the_nearest_level(level: float, wanted: int) -> None:
    assert np.unique(add_colour(np.full((2, 2, 3), 100, dtype=np.uint8), np.full(3, level))) == [wanted]


@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
    shift=st.tuples(*[st.floats(-300, 300, width=32)] * 3),
)
def test_every_shape_and_shift_is_added_as_numpy_would(
    height: int, width: int, seed: int, shift: tuple[float, float, float]
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    before = pixels.copy()
    got = add_colour(pixels, np.array(shift))
    assert (got.shape, got.dtype) == (pixels.shape, pixels.dtype)
    assert np.array_equal(pixels, before)
    # a half may go either way
    assert np.abs(got - (pixels + np.array(shift)).clip(0, 255)).max() <= 0.5 + 1e-4


def test_components_come_back_from_json_as_they_were(tmp_path: Path) -> None:
    fitted = fit_colour_pca(
        [save(tmp_path / "photo.png", np.random.default_rng(0).integers(0, 256, (30, 30, 3)))], MOST
    )
    assert ColourPCA.model_validate_json(fitted.model_dump_json()) == fitted
    assert covariance(fitted) == pytest.approx(covariance(fitted).T)


def test_components_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(ValidationError):
        ColourPCA.model_validate({"eigenvalues": [1, 2], "eigenvectors": np.eye(3).tolist()})
