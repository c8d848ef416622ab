from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.data.manifest import Manifest
from finetune.models.backbone import build_backbone, describe_backbone
from finetune.preprocess import Preprocessing, load_pixels
from finetune.training.features import KeptFeatures
from tests.conftest import manifest_of

CPU = torch.device("cpu")


def kept(folder: Path, size: int = 64, seed: int = 0) -> KeptFeatures:
    torch.manual_seed(seed)
    spec = describe_backbone("test_resnet")
    backbone, _ = build_backbone("test_resnet", size, "none")
    return KeptFeatures(spec, backbone, Preprocessing(image_size=size, fit="squash"), CPU, folder)


@pytest.fixture
def manifest(photos: Path) -> Manifest:
    return manifest_of(photos, val_fraction=0.25, test_fraction=0.25)


def test_onnxruntime_gives_the_features_that_torch_gives(manifest: Manifest, tmp_path: Path) -> None:
    source = kept(tmp_path / "kept")
    photos = manifest.of("train")
    pixels = np.stack([load_pixels(path, source.preprocessing) for path in manifest.files(photos)])
    with torch.inference_mode():
        wanted = source.module(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(source.of(manifest, photos, "training"), wanted, atol=2e-5)


def test_features_are_computed_once(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = manifest.of("train")
    first = kept(tmp_path / "kept").of(manifest, photos, "training")
    again = kept(tmp_path / "kept")
    monkeypatch.setattr(again, "_batches", lambda *_: pytest.fail("computed again"))
    np.testing.assert_array_equal(again.of(manifest, photos, "training"), first)


@pytest.mark.parametrize("change", ["weights", "size", "photos"])
def test_features_of_anything_else_are_computed_anew(manifest: Manifest, tmp_path: Path, change: str) -> None:
    photos = manifest.of("train")
    kept(tmp_path / "kept").of(manifest, photos, "training")
    other = kept(tmp_path / "kept", size=96 if change == "size" else 64, seed=1 if change == "weights" else 0)
    other.of(manifest, photos[1:] if change == "photos" else photos, "training")
    assert len(list((tmp_path / "kept").glob("*.npy"))) == 2
