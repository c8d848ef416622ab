from __future__ import annotations

import json

import albumentations as A
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from finetune.data.transforms import ColourAdd, LocalWarp, PCAColourShift, TrivialAugment
from finetune.preprocess import Pixels

VALUES = (0.09, 0.03, 0.01)
VECTORS = ((0.6, 0.8, 0.0), (-0.8, 0.6, 0.0), (0.0, 0.0, 1.0))


@pytest.fixture(params=[PCAColourShift, ColourAdd, LocalWarp, TrivialAugment])
def transform(request: pytest.FixtureRequest) -> A.ImageOnlyTransform:
    return PCAColourShift(VALUES, VECTORS, 1.0) if request.param is PCAColourShift else request.param()


def photo(width: int = 80, height: int = 60, low: int = 0, high: int = 256) -> Pixels:
    return np.random.default_rng(0).integers(low, high, (height, width, 3)).astype(np.uint8)


def test_a_transform_comes_back_from_json_with_the_same_draws(transform: A.ImageOnlyTransform) -> None:
    before = A.Compose([transform])
    after = A.from_dict(json.loads(json.dumps(A.to_dict(before))))
    for seed in range(5):
        before.set_random_seed(seed)
        after.set_random_seed(seed)
        assert np.array_equal(before(image=photo())["image"], after(image=photo())["image"])


def test_the_draws_of_a_transform_are_written_as_json_and_replayed(transform: A.ImageOnlyTransform) -> None:
    recorded = A.ReplayCompose([transform])
    for seed in range(5):
        recorded.set_random_seed(seed)
        first = recorded(image=photo())
        replayed = A.ReplayCompose.replay(json.loads(json.dumps(first["replay"])), image=photo())
        assert np.array_equal(replayed["image"], first["image"])


def test_a_transform_keeps_the_photo_and_gives_pixels_that_may_be_written_to(transform: A.ImageOnlyTransform) -> None:
    given = photo()
    transform.set_random_seed(1)
    got = transform(image=given)["image"]
    assert np.array_equal(given, photo())
    assert (got.shape, got.dtype, got.flags.writeable) == (given.shape, np.dtype(np.uint8), True)


def test_the_colour_shift_is_replayed_on_another_photo() -> None:
    recorded = A.ReplayCompose([PCAColourShift(VALUES, VECTORS, 1.0)])
    recorded.set_random_seed(0)
    original, other = photo(low=110, high=146), photo(20, 10, low=110, high=146)
    first = recorded(image=original)
    again = A.ReplayCompose.replay(first["replay"], image=other)
    (vector,) = np.unique((first["image"].astype(int) - original).reshape(-1, 3), axis=0)
    assert np.array_equal(again["image"], other + vector)


def test_colours_and_a_warp_of_nothing_are_the_photo() -> None:
    assert np.array_equal(PCAColourShift(VALUES, VECTORS, 0.0)(image=photo())["image"], photo())
    assert np.array_equal(ColourAdd(0.0)(image=photo())["image"], photo())
    assert np.array_equal(LocalWarp(0.0)(image=photo())["image"], photo())


def test_trivial_augment_is_torchvisions_and_draws_its_seed_alone() -> None:
    transform = TrivialAugment()
    recorded = A.ReplayCompose([transform])
    seen = set()
    for seed in range(60):
        recorded.set_random_seed(seed)
        first = recorded(image=photo())
        drawn = first["replay"]["transforms"][0]["params"]["seed"]
        torch.manual_seed(drawn)
        policy = v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)
        assert np.array_equal(first["image"], np.asarray(policy(Image.fromarray(photo()))))
        seen.add(first["image"].tobytes())
    assert len(seen) > 40


def test_trivial_augment_leaves_torchs_generator_as_it_was() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    TrivialAugment()(image=photo())
    assert torch.equal(torch.rand(3), wanted)
