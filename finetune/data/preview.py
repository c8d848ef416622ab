"""A contact sheet of what augmentation makes of the photos: `finetune check augment.preview=out.png`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from finetune.config import CheckConfig
from finetune.data.augmentation import Augmentation
from finetune.data.datamodule import DistortedPhotos
from finetune.data.manifest import Manifest
from finetune.data.pca import colour_components
from finetune.data.pixels import Decoded
from finetune.drawing import INK, PALE, blank, shortened, text_width, write
from finetune.files import replacing
from finetune.preprocess import Pixels, Preprocessing, decode
from finetune.progress import track

VERSIONS = 8
MOST_CLASSES = 20
CELL_PX = 144
GAP_PX = 6
MARGIN_PX = 24
HEADING_PX = 40
MOST_LABEL_PX = 200
FONT_PX = 17
CELL = (CELL_PX, CELL_PX)
MOUNT = (240, 240, 240)


@dataclass(frozen=True)
class Row:
    """One class. original: the photo as it is on disk; versions: what each of the first epochs makes of it."""

    label: str
    original: Image.Image
    versions: list[Image.Image]


def write_preview(config: CheckConfig, manifest: Manifest, picture: Path) -> str:
    """Draw the first training photo of each class beside what eight epochs would make of it; returns what was drawn.

    The distortions come out of the data set that training reads from, with its seeds.
    """
    rows = _rows(config, manifest)
    with replacing(picture) as beside:
        Image.fromarray(_draw(rows)).save(beside, optimize=True, quality=92)
    drawn = f"the first {len(rows)} of {len(manifest.classes)}" if len(rows) < len(manifest.classes) else "all"
    lines = [
        f"preview of {drawn} classes, as freeze=partial and full would see them in epochs 1 to {VERSIONS}: {picture}"
    ]
    if config.augment.mixup or config.augment.cutmix:
        lines.append("mixup and cutmix blend photos of a batch and are not in the preview")
    return "\n".join(lines)


def _rows(config: CheckConfig, manifest: Manifest) -> list[Row]:
    photos = manifest.of("train")
    files = manifest.files(photos)
    preprocessing = Preprocessing(
        image_size=config.data.image_size, fit=config.data.fit, alpha_over=config.data.alpha_over
    )
    components = None
    if config.augment.pca_sigma > 0:
        tracked = track(files, "colours of the training photos", total=len(files))
        components = colour_components(config.augment, tracked)
    augmentation = Augmentation(config.augment, preprocessing, components)
    pixels = Decoded(files, augmentation.stage)
    distorted = DistortedPhotos(pixels, manifest.targets(photos), augmentation, config.seed)
    first: dict[str, int] = {}
    for number, photo in enumerate(photos):
        first.setdefault(photo.label, number)
    return [
        Row(
            label,
            decode(files[first[label]], wanted_px=CELL_PX),
            [Image.fromarray(distorted[epoch, first[label], 0][0].numpy()) for epoch in range(VERSIONS)],
        )
        for label in sorted(first)[:MOST_CLASSES]
    ]


def _draw(rows: list[Row]) -> Pixels:
    """Lay the rows out under their headings; the original keeps its shape within its cell."""
    labels = [shortened(row.label, MOST_LABEL_PX, FONT_PX) for row in rows]
    originals_px = 2 * MARGIN_PX + max(text_width(label, FONT_PX) for label in labels)
    versions_px = originals_px + CELL_PX + MARGIN_PX
    width = versions_px + VERSIONS * (CELL_PX + GAP_PX) - GAP_PX + MARGIN_PX
    height = MARGIN_PX + HEADING_PX + len(rows) * (CELL_PX + GAP_PX) - GAP_PX + MARGIN_PX
    sheet = blank(width, height)
    write(sheet, "photo", (originals_px, MARGIN_PX + HEADING_PX // 2), PALE, FONT_PX)
    write(
        sheet,
        f"what is trained on in epochs 1 to {VERSIONS}",
        (versions_px, MARGIN_PX + HEADING_PX // 2),
        PALE,
        FONT_PX,
    )
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        top = MARGIN_PX + HEADING_PX + number * (CELL_PX + GAP_PX)
        write(sheet, label, (MARGIN_PX, top + CELL_PX // 2 + FONT_PX // 3), INK, FONT_PX)
        _paste(sheet, ImageOps.pad(row.original, CELL, Image.Resampling.LANCZOS, color=MOUNT), (originals_px, top))
        for column, version in enumerate(row.versions):
            cell = version.resize(CELL, Image.Resampling.LANCZOS)
            _paste(sheet, cell, (versions_px + column * (CELL_PX + GAP_PX), top))
    return sheet


def _paste(sheet: Pixels, cell: Image.Image, left_top: tuple[int, int]) -> None:
    left, top = left_top
    sheet[top : top + CELL_PX, left : left + CELL_PX] = np.asarray(cell)
