from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.data.augmentation import Augmentation
from finetune.data.manifest import Manifest
from finetune.errors import FinetuneError
from finetune.models.backbone import build_backbone, describe_backbone
from finetune.preprocess import Preprocessing, load_pixels
from finetune.training.features import KeptFeatures, Views
from tests.conftest import augment_config, manifest_of

CPU = torch.device("cpu")


def kept(folder: Path, size: int = 64, seed: int = 0, views: str = "") -> KeptFeatures:
    """views: the preset that distorts."""
    torch.manual_seed(seed)
    spec = describe_backbone("test_resnet")
    backbone, _ = build_backbone("test_resnet", size, "none")
    preprocessing = Preprocessing(image_size=size, fit="squash")
    augmentation = (
        Views(Augmentation(augment_config(views, pca_sigma=0.0), preprocessing, None), seed, views) if views else None
    )
    return KeptFeatures(spec, backbone, preprocessing, CPU, folder, augmentation)


def computed(source: KeptFeatures) -> int:
    return len(source.store._records)


@pytest.fixture
def manifest(photos: Path) -> Manifest:
    return manifest_of(photos, val_fraction=0.25, test_fraction=0.25)


def test_onnxruntime_gives_the_features_that_torch_gives(manifest: Manifest, tmp_path: Path) -> None:
    source = kept(tmp_path / "kept")
    photos = manifest.of("train")
    pixels = np.stack([load_pixels(path, source.preprocessing) for path in manifest.files(photos)])
    for features in source.backbone.feature_sets:
        with torch.inference_mode():
            wanted = source.backbone(source.module.normalise(torch.from_numpy(pixels)), features).numpy()
        np.testing.assert_allclose(source.of(manifest, photos, features), wanted, atol=2e-5)


def test_features_are_computed_once_whatever_the_order(manifest: Manifest, tmp_path: Path) -> None:
    photos = manifest.of("train")
    first = kept(tmp_path / "kept").of(manifest, photos, "all")
    again = kept(tmp_path / "kept")
    assert again.missing(photos) == 0
    again._compute = lambda _: pytest.fail("computed again")  # type: ignore[method-assign]
    np.testing.assert_array_equal(again.of(manifest, photos[::-1], "all"), first[::-1])


def test_only_the_photos_that_came_since_are_computed(manifest: Manifest, tmp_path: Path) -> None:
    photos = manifest.of("train")
    kept(tmp_path / "kept").of(manifest, photos[2:], "last")
    source = kept(tmp_path / "kept")
    assert source.missing(photos) == 2
    source.of(manifest, photos, "last")
    assert computed(source) == len(photos)


def test_a_photo_that_is_there_twice_is_computed_once(manifest: Manifest, tmp_path: Path) -> None:
    source = kept(tmp_path / "kept")
    photos = manifest.of("train")
    rows = source.of(manifest, (*photos, photos[0]), "last")
    np.testing.assert_array_equal(rows[0], rows[-1])
    assert computed(source) == len(photos)


@pytest.mark.parametrize("change", ["weights", "size"])
def test_features_of_anything_else_are_computed_anew(manifest: Manifest, tmp_path: Path, change: str) -> None:
    photos = manifest.of("train")
    kept(tmp_path / "kept").of(manifest, photos, "last")
    other = kept(tmp_path / "kept", size=96 if change == "size" else 64, seed=1 if change == "weights" else 0)
    assert other.missing(photos) == len(photos)


def test_distorted_views_differ_from_each_other_and_are_kept_by_what_distorts(
    manifest: Manifest, tmp_path: Path
) -> None:
    photos = manifest.of("train")
    source = kept(tmp_path / "kept", views="light")
    plain = source.of(manifest, photos, "all")
    views = [source.of_view(manifest, photos, view, "all") for view in range(2)]
    assert all(not np.allclose(first, second) for first, second in ((plain, views[0]), (plain, views[1]), views))
    again = kept(tmp_path / "kept", views="light")
    again._compute = lambda _: pytest.fail("computed again")  # type: ignore[method-assign]
    np.testing.assert_array_equal(again.of_view(manifest, photos, 1, "all"), views[1])
    other = kept(tmp_path / "kept", views="strong")
    assert not np.allclose(other.of_view(manifest, photos, 1, "all"), views[1])


def test_features_that_are_no_numbers_stop_the_run(manifest: Manifest, tmp_path: Path) -> None:
    source = kept(tmp_path / "kept")
    with torch.no_grad():
        next(source.backbone.parameters()).fill_(1e38)
    with pytest.raises(FinetuneError, match="not finite numbers"):
        source.of(manifest, manifest.of("train"), "last")
