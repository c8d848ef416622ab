from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.cli import run
from finetune.data.augmentation import Augmentation
from finetune.data.datamodule import PhotoData
from finetune.data.pca import fit_colour_pca
from finetune.data.pixels import take_pixels
from finetune.data.preview import CELL_PX, GAP_PX, HEADING_PX, MARGIN_PX, MOST_CLASSES, MOUNT, VERSIONS
from finetune.preprocess import Pixels, Preprocessing
from tests.conftest import CLASSES, augment_config, manifest_of, paint, paint_folder


def sheet(root: Path, *words: str, name: str = "sheet.png") -> Pixels:
    """Return what `finetune check` draws, its cells as large as the photos are."""
    picture = root.parent / name
    assert run(["check", f"data.root={root}", f"data.image_size={CELL_PX}", f"augment.preview={picture}", *words]) == 0
    with Image.open(picture) as image:
        return np.asarray(image.convert("RGB"))


def cell(pixels: Pixels, row: int, column: int) -> Pixels:
    """Return one picture of a sheet; column 0 is the original, those after it are counted from the right."""
    left = pixels.shape[1] - MARGIN_PX - (VERSIONS - column + 1) * (CELL_PX + GAP_PX) + GAP_PX
    if column == 0:
        left -= MARGIN_PX - GAP_PX
    top = MARGIN_PX + HEADING_PX + row * (CELL_PX + GAP_PX)
    return pixels[top : top + CELL_PX, left : left + CELL_PX]


@pytest.mark.parametrize("choice", ["standard", "[strong,rotate]", "alexnet"])
def test_the_sheet_shows_what_training_gets_to_see_in_its_first_epochs(choice: str, photos: Path) -> None:
    drawn = sheet(photos, f"augment={choice}", "seed=4")
    manifest = manifest_of(photos, seed=4)
    train = manifest.of("train")
    preprocessing = Preprocessing(image_size=CELL_PX, fit="squash")
    components = fit_colour_pca(manifest.files(train), 10_000)
    augmentation = Augmentation(augment_config(choice), preprocessing, components)
    pixels = take_pixels("none", manifest, {"train": augmentation.stage}, Path("unused"))
    data = PhotoData(manifest, pixels, augmentation, 1, num_workers=0, seed=4)
    loader = data.train_dataloader()
    first = [next(n for n, photo in enumerate(train) if photo.label == label) for label in CLASSES]
    for epoch in range(VERSIONS):
        data.sampler.set_epoch(epoch)
        seen = dict(zip((number for _, number, _ in data.sampler.places(epoch)), loader, strict=True))
        for row, number in enumerate(first):
            pixels, target = seen[number]
            assert manifest.classes[int(target)] == CLASSES[row]
            assert torch.equal(torch.from_numpy(cell(drawn, row, epoch + 1).copy()), pixels[0])


def test_a_wide_photo_keeps_its_shape_beside_its_squares(tmp_path: Path) -> None:
    root = paint_folder(tmp_path / "photos", 4)
    for number in range(4):
        paint(root / "red" / f"{number}.jpg", "red", number, size=(400, 100))
    original = cell(sheet(root, "augment=none"), CLASSES.index("red"), 0)
    mount = (original == MOUNT).all(axis=2)
    assert mount[: CELL_PX * 3 // 8 - 1].all()
    assert mount[CELL_PX * 5 // 8 + 1 :].all()
    assert not mount[CELL_PX * 3 // 8 + 1 : CELL_PX * 5 // 8 - 1].any()


def test_many_classes_are_cut_short_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(MOST_CLASSES + 2):
        for index in range(3):
            paint(tmp_path / "photos" / f"class {number:02}" / f"{index}.png", "red", 10 * number + index, size=(8, 8))
    drawn = sheet(tmp_path / "photos", "augment=none", "data.image_size=32")
    assert f"preview of the first {MOST_CLASSES} of {MOST_CLASSES + 2} classes" in capsys.readouterr().out
    assert drawn.shape[0] == 2 * MARGIN_PX + HEADING_PX + MOST_CLASSES * (CELL_PX + GAP_PX) - GAP_PX


def test_a_long_class_name_does_not_push_the_photos_out(tmp_path: Path) -> None:
    root = paint_folder(tmp_path / "photos", 4)
    short = sheet(root, "augment=none").shape[1]
    (root / "red").rename(root / ("a name without an end" * 10))
    assert short < sheet(root, "augment=none").shape[1] < short + 200


def test_class_names_of_any_script_can_be_told_apart(tmp_path: Path) -> None:
    names = ["ö", "ü", "кот", "пес", "犬", "猫"]
    for number, name in enumerate(names):
        for index in range(3):
            paint(tmp_path / "photos" / name / f"{index}.png", "red", 10 * number + index, size=(8, 8))
    drawn = sheet(tmp_path / "photos", "augment=none")
    margins = [drawn[MARGIN_PX + HEADING_PX + row * (CELL_PX + GAP_PX) :][:CELL_PX, :60] for row in range(len(names))]
    assert all(margin.min() < 100 for margin in margins)
    assert len({margin.tobytes() for margin in margins}) == len(names)


@pytest.mark.parametrize("name", ["a.jpg", "b.JPEG", "folder/that/is/new/c.png"])
def test_the_picture_is_of_the_kind_and_at_the_place_that_was_named(name: str, photos: Path) -> None:
    assert sheet(photos, "augment=light", name=name).std() > 10
    assert not list((photos.parent / name).parent.glob(".*"))


def test_another_kind_is_refused_before_any_photo_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "data.root=nowhere", "augment.preview=sheet.gif"]) == 2
    assert "augment.preview=sheet.gif is wrong: its name must end in .png or .jpg" in capsys.readouterr().err


def test_what_a_photo_alone_cannot_show_is_said(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = sheet(photos, "augment=light")
    assert "blend" not in capsys.readouterr().out
    assert np.array_equal(sheet(photos, "augment=[light,cutmix]"), plain)
    assert "mixup and cutmix blend photos of a batch and are not in the preview" in capsys.readouterr().out
