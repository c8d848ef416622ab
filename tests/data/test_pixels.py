from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from finetune.cli import run
from finetune.data import pixels as module
from finetune.data.manifest import Manifest, Photo
from finetune.data.pixels import Bounded, Cache, Stage, load, most_bytes, take_pixels
from finetune.data.splits import Split
from finetune.errors import FinetuneError
from finetune.preprocess import Pixels, Preprocessing, decode
from tests.conftest import TINY, manifest_of, paint

SQUASH = Preprocessing(image_size=32, fit="squash")
STAGES: dict[Split, Stage] = {"train": Bounded(48, "white"), "val": SQUASH}


@pytest.fixture
def manifest(photos: Path) -> Manifest:
    # of several shapes, and one that is turned by EXIF
    paint(photos / "red" / "wide.jpg", "red", 1, (200, 50))
    paint(photos / "red" / "tall.png", "red", 2, (30, 90))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(paint(photos / "red" / "t.jpg", "red", 3, (120, 70))).save(photos / "red" / "turned.jpg", exif=exif)
    return manifest_of(photos)


def taken(cache: Cache, manifest: Manifest, folder: Path = Path("pixels")) -> dict[Split, Sequence[Pixels]]:
    return take_pixels(cache, manifest, STAGES, folder)


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_what_is_kept_is_what_would_be_decoded(cache: Cache, manifest: Manifest) -> None:
    kept, decoded = taken(cache, manifest), taken("none", manifest)
    for split in STAGES:
        assert len(kept[split]) == len(decoded[split]) == len(manifest.of(split)) > 0
        for number in range(len(kept[split])):
            assert kept[split][number].dtype == np.uint8
            assert np.array_equal(kept[split][number], decoded[split][number])


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_what_is_kept_needs_no_photos(cache: Cache, manifest: Manifest, photos: Path) -> None:
    before = [np.array(pixels) for pixels in taken("none", manifest)["train"]]
    kept = taken(cache, manifest)["train"]
    shutil.rmtree(photos)
    assert all(np.array_equal(a, b) for a, b in zip(before, kept, strict=True))


def test_a_photo_is_shrunk_to_its_bound_and_never_enlarged(tmp_path: Path) -> None:
    sizes = {"wide.jpg": (400, 100), "small.jpg": (40, 30), "large.jpg": (1000, 801)}
    got = {
        name: load(paint(tmp_path / name, "red", 1, size), Bounded(48, "white")).shape for name, size in sizes.items()
    }
    assert got["wide.jpg"] == (48, 192, 3)
    assert got["small.jpg"] == (30, 40, 3)
    assert got["large.jpg"][0] == 48
    assert got["large.jpg"][1] == pytest.approx(60, abs=1)


def test_a_photo_within_its_bound_is_decoded_as_it_is(tmp_path: Path) -> None:
    path = paint(tmp_path / "a.png", "red", 1, (48, 90))
    assert np.array_equal(load(path, Bounded(48, "white")), np.asarray(decode(path)))


@given(
    width=st.integers(1, 900),
    height=st.integers(1, 900),
    bound=st.integers(2, 300).map(lambda px: 2 * px),
    extension=st.sampled_from(["jpg", "png"]),
)
def test_a_photo_never_takes_more_than_was_announced(
    width: int, height: int, bound: int, extension: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"photo.{extension}"
    Image.new("RGB", (width, height)).save(path)
    stage = Bounded(bound, "white")
    announced = most_bytes(Photo("a", "b", "train", "", "", "", width, height), stage)
    assert load(path, stage).nbytes <= announced
    if min(width, height) <= bound:
        assert announced == 3 * width * height


def test_the_size_is_announced_before_anything_is_decoded(
    manifest: Manifest, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(photos)
    with caplog.at_level(logging.INFO), pytest.raises(FileNotFoundError):
        taken("ram", manifest)
    assert caplog.messages[0].startswith("data.cache=ram: ")
    assert " photos decoded once, 0 MB of memory, of which " in caplog.messages[0]


def test_what_would_not_fit_into_memory_is_refused(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = sum(most_bytes(photo, stage) for split, stage in STAGES.items() for photo in manifest.of(split))
    taking = sum(pixels.nbytes for photos in taken("none", manifest).values() for pixels in photos)
    assert 0.8 * needed < taking <= needed
    monkeypatch.setattr(module, "available_bytes", lambda: needed / 0.8 + 1)
    assert taken("ram", manifest)
    monkeypatch.setattr(module, "available_bytes", lambda: needed / 0.8 - 1)
    with pytest.raises(FinetuneError) as refused:
        taken("ram", manifest)
    assert str(refused.value).startswith("data.cache=ram would take too much: ")
    assert str(refused.value).endswith("use data.cache=disk or none, or a smaller data.image_size")


def test_what_would_not_fit_on_the_disk_is_refused(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 9, 9))  # type: ignore[attr-defined]
    with pytest.raises(FinetuneError) as refused:
        taken("disk", manifest)
    assert "data.cache=disk would take too much: " in str(refused.value)
    assert str(refused.value).endswith("use data.cache=ram or none, or a smaller data.image_size")
    assert list(Path("pixels").iterdir()) == []


def test_what_a_killed_run_has_left_is_used(
    manifest: Manifest, photos: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = taken("disk", manifest)
    shutil.rmtree(photos)
    # it needs no more room either
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 0))  # type: ignore[attr-defined]
    with caplog.at_level(logging.INFO):
        after = taken("disk", manifest)
    assert caplog.messages[-1:] == ["data.cache=disk: the decoded photos in pixels are used again"]
    assert all(np.array_equal(a, b) for a, b in zip(before["train"], after["train"], strict=True))


def test_a_file_without_its_shapes_was_not_finished_and_is_written_again(manifest: Manifest) -> None:
    before = [np.array(pixels) for pixels in taken("disk", manifest)["train"]]
    for index in Path("pixels").glob("*.npy"):
        index.with_suffix(".bin").write_bytes(b"half")
        index.unlink()
    Path("pixels", ".0123-89ab.bin").write_bytes(b"killed in the middle")
    assert all(np.array_equal(a, b) for a, b in zip(before, taken("disk", manifest)["train"], strict=True))
    assert len(list(Path("pixels").iterdir())) == 4


def test_another_photo_or_another_size_is_not_what_was_kept(manifest: Manifest) -> None:
    taken("disk", manifest)
    larger = take_pixels("disk", manifest, {"val": Preprocessing(image_size=40, fit="squash")}, Path("pixels"))
    assert larger["val"][0].shape == (40, 40, 3)
    fewer = Manifest(manifest.store, manifest.photos[:-1])
    kept = take_pixels("disk", fewer, STAGES, Path("pixels"))
    assert [len(kept[split]) for split in STAGES] == [len(fewer.of(split)) for split in STAGES]


def test_training_comes_to_the_same_weights_whatever_the_cache_and_leaves_none(photos: Path) -> None:
    weights = set()
    for cache in ("none", "ram", "disk"):
        words = [f"data.root={photos}", f"output={cache}", f"data.cache={cache}", *TINY, "freeze=full"]
        assert run(["train", *words, "trainer.max_epochs=1", "data.batch_size=8", "trainer.accelerator=cpu"]) == 0
        weights.add((Path(cache) / "weights.safetensors").read_bytes())
        assert not (Path(cache) / "pixels").exists()
    assert len(weights) == 1
