"""Photos as training takes them, decoded and shrunk but not yet distorted: anew each time, or kept."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from finetune.data.manifest import Manifest, Photo
from finetune.data.splits import Split
from finetune.errors import FinetuneError
from finetune.files import digest, make_folder, replacing
from finetune.memory import available_bytes
from finetune.parallel import ordered_map
from finetune.preprocess import DRAFT_GAP, AlphaOver, Pixels, Preprocessing, Readable, decode, load_pixels
from finetune.progress import track

log = logging.getLogger(__name__)

Cache = Literal["none", "ram", "disk"]
# Training itself needs memory, and a run folder holds more than photos.
MOST_OF_FREE = 0.8
# A JPEG decoded at a fraction of its size has its sides rounded up, so its shape is another by less than this.
ROUNDING_PX = 8


class Bounded(NamedTuple):
    """Photos of their own shape; one whose shorter side is longer than shorter_px is shrunk to it."""

    shorter_px: int
    alpha_over: AlphaOver


# What is done to a photo before anything random.
Stage = Preprocessing | Bounded


def load(file: Readable, stage: Stage) -> Pixels:
    """Decode a photo and bring it to its stage: (H, W, 3) uint8 RGB, read-only."""
    if isinstance(stage, Preprocessing):
        return load_pixels(file, stage)
    image = decode(file, None, stage.shorter_px // DRAFT_GAP, stage.alpha_over)
    shorter = min(image.size)
    if shorter > stage.shorter_px:
        scale = stage.shorter_px / shorter
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image)


def most_bytes(photo: Photo, stage: Stage) -> int:
    """Return the size of a photo at its stage, or a little more."""
    if isinstance(stage, Preprocessing):
        return 3 * stage.image_size**2
    shorter, longer = sorted((photo.width, photo.height))
    if shorter > stage.shorter_px:
        shorter, longer = stage.shorter_px, ceil(longer * stage.shorter_px / shorter) + ROUNDING_PX
    return 3 * shorter * longer


class Decoded(Sequence[Pixels]):
    """Photos that are decoded whenever they are asked for."""

    def __init__(self, files: Sequence[Readable], stage: Stage) -> None:
        self.files, self.stage = files, stage

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Pixels:  # type: ignore[override]  # no slices are taken
        return load(self.files[number], self.stage)


class Mapped(Sequence[Pixels]):
    """Photos that lie one behind the other in a file; shapes: (photos, 2), height and width."""

    def __init__(self, path: Path, shapes: NDArray[np.int64]) -> None:
        self.shapes = shapes
        self.ends = np.cumsum(3 * shapes.prod(axis=1))
        self.path, self.flat = path, np.memmap(path, dtype=np.uint8, mode="r")

    def __reduce__(self) -> tuple[type[Mapped], tuple[Path, NDArray[np.int64]]]:
        # another process maps the file too; numpy would send it all of the pixels
        return Mapped, (self.path, self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, number: int) -> Pixels:  # type: ignore[override]  # no slices are taken
        height, width = self.shapes[number]
        end = self.ends[number]
        return np.asarray(self.flat[end - 3 * height * width : end]).reshape(height, width, 3)


def take_pixels(
    cache: Cache, manifest: Manifest, stages: Mapping[Split, Stage], folder: Path
) -> dict[Split, Sequence[Pixels]]:
    """Return the photos of some splits, in the manifest's order; folder: where cache=disk keeps them.

    The pixels are the same whatever the cache. Raises FinetuneError where they would not fit.
    """
    if cache == "none":
        return {split: Decoded(manifest.files(manifest.of(split)), stage) for split, stage in stages.items()}
    if cache == "ram":
        _require_room(cache, manifest, stages, available_bytes(), "of memory")
        return {split: list(_load_all(manifest, split, stage)) for split, stage in stages.items()}
    files = {split: folder / f"{_key(manifest, split, stage)}.bin" for split, stage in stages.items()}
    _clear_all_but({path.stem for path in files.values()}, folder)
    missing = {split: stage for split, stage in stages.items() if not _shapes_of(files[split]).is_file()}
    if missing:
        _require_room(cache, manifest, missing, shutil.disk_usage(folder).free, f"of disk space in {folder}")
    else:
        log.info("data.cache=disk: the decoded photos in %s are used again", folder)
    for split, stage in missing.items():
        _write(_load_all(manifest, split, stage), files[split])
    return {split: Mapped(path, np.load(_shapes_of(path))) for split, path in files.items()}


def _require_room(cache: Cache, manifest: Manifest, stages: Mapping[Split, Stage], free: int, where: str) -> None:
    """Announce the size, or refuse it."""
    sizes = [most_bytes(photo, stage) for split, stage in stages.items() for photo in manifest.of(split)]
    needed = f"{len(sizes)} photos decoded once, {_in_words(sum(sizes))} {where}, of which {_in_words(free)} is free"
    if sum(sizes) > MOST_OF_FREE * free:
        raise FinetuneError(
            f"data.cache={cache} would take too much: {needed}, and a fifth is to stay so; "
            f"use data.cache={'disk' if cache == 'ram' else 'ram'} or none, or a smaller data.image_size"
        )
    log.info("data.cache=%s: %s", cache, needed)


def _in_words(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _load_all(manifest: Manifest, split: Split, stage: Stage) -> Iterator[Pixels]:
    files = manifest.files(manifest.of(split))
    loaded = ordered_map(lambda file: load(file, stage), files)
    return iter(track(loaded, f"decoding photos of {split}", total=len(files)))


def _key(manifest: Manifest, split: Split, stage: Stage) -> str:
    return digest(repr(stage), PIL.__version__, *(photo.sha256 for photo in manifest.of(split)))[:32]


def _shapes_of(path: Path) -> Path:
    """Return the file of the photos' shapes; written last, it says that the photos are whole."""
    return path.with_suffix(".npy")


def _write(photos: Iterable[Pixels], path: Path) -> None:
    shapes = []
    with replacing(path) as beside, beside.open("wb") as file:
        for pixels in photos:
            file.write(pixels.tobytes())
            shapes.append(pixels.shape[:2])
    with replacing(_shapes_of(path)) as beside:
        np.save(beside, np.array(shapes, dtype=np.int64))


def _clear_all_but(keys: set[str], folder: Path) -> None:
    """Make room: a run that was killed, or configured otherwise before it trained, may have left files."""
    make_folder(folder)
    for path in folder.iterdir():
        if path.stem not in keys:
            path.unlink()
