"""Golden photos and answers that travel in a bundle, so that it can be asked on any machine whether it still agrees.

golden/0.jpg ...   a few of the photos that were compared, each scaled down
golden/photos.json what they show, the digest of the pixels they decode to, and the right answers
golden/answers.npz the right answers to the photos themselves, which stay at home, by the sha256 of each

Right is what the trained model says, or, of a file that was reduced, what that file said where it was exported.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from finetune.errors import FinetuneError
from finetune.files import as_json, make_folder, write_text
from finetune.preprocess import Pixels, Preprocessing, Readable, decode, load_pixels

FOLDER, PHOTOS, ANSWERS = "golden", "photos.json", "answers.npz"
# Of a golden photo's shorter side over the model's: decoding and resizing are to be proved too.
SCALE = 2
JPEG_QUALITY = 90
# Of the table of answers; beyond it, every so many photos are kept.
MOST_NUMBERS = 1_000_000

Probabilities = NDArray[np.float32]


class GoldenPhoto(BaseModel):
    """probabilities: the right ones, of the pixels whose sha256 stands here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    label: str
    pixels_sha256: str
    probabilities: tuple[float, ...]


class Answers(NamedTuple):
    """The right answers to photos: sha256 of their files, (N, 32) uint8, and (N, classes)."""

    sha256: NDArray[np.uint8]
    probabilities: Probabilities

    def of(self, digests: Sequence[str]) -> dict[int, Probabilities]:
        """Return the answers to those of some photos that are known, by their place among them."""
        known = {row.tobytes(): number for number, row in enumerate(self.sha256)}
        places = {place: known.get(bytes.fromhex(digest)) for place, digest in enumerate(digests)}
        return {place: self.probabilities[number] for place, number in places.items() if number is not None}


def write_photos(
    version: Path,
    photos: Sequence[tuple[str, Readable]],
    preprocessing: Preprocessing,
    answer: Callable[[NDArray[np.uint8]], Probabilities],
) -> None:
    """Write photos, each a label and a file, with what `answer` says of their pixels (N, H, W, 3)."""
    folder = make_folder(version / FOLDER)
    golden = []
    for number, (label, file) in enumerate(photos):
        raw = _small_jpeg(file, preprocessing)
        (folder / f"{number}.jpg").write_bytes(raw)
        pixels = load_pixels(raw, preprocessing)
        (probabilities,) = answer(np.stack([pixels]))
        golden.append(
            GoldenPhoto(
                file=f"{number}.jpg",
                label=label,
                pixels_sha256=digest_pixels(pixels),
                probabilities=tuple(map(float, probabilities)),
            )
        )
    write_text(folder / PHOTOS, as_json([photo.model_dump() for photo in golden]))


def write_answers(version: Path, digests: Sequence[str], probabilities: Probabilities) -> None:
    """Write the right answers to photos, given the sha256 of each."""
    folder = make_folder(version / FOLDER)
    every = -(-probabilities.size // MOST_NUMBERS)
    rows = np.frombuffer(b"".join(map(bytes.fromhex, digests)), np.uint8).reshape(-1, hashlib.sha256().digest_size)
    np.savez_compressed(folder / ANSWERS, sha256=rows[::every], probabilities=probabilities[::every])


def read_photos(version: Path) -> list[GoldenPhoto]:
    """Return the golden photos of a bundle's version; none where it was exported without them."""
    path = version / FOLDER / PHOTOS
    if not path.is_file():
        return []
    try:
        return TypeAdapter(list[GoldenPhoto]).validate_json(path.read_bytes())
    except ValidationError as error:
        raise FinetuneError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def read_answers(version: Path) -> Answers | None:
    """Return the answers that travel in a bundle's version; None where there are none."""
    path = version / FOLDER / ANSWERS
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return Answers(arrays["sha256"], arrays["probabilities"])
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise FinetuneError(f"{path} cannot be read: {error}") from None


def digest_file(file: Readable) -> str:
    """Return the sha256 of a photo's file, by which its answer is kept."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def digest_pixels(pixels: Pixels) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def spread_over_classes(labels: Sequence[str], count: int) -> list[int]:
    """Return the places of `count` photos, the first of each class, then the second of each, and so on."""
    seen: dict[str, int] = {}
    turns: list[tuple[int, int]] = []
    for place, label in enumerate(labels):
        seen[label] = seen.get(label, 0) + 1
        turns.append((seen[label], place))
    return [place for _, place in sorted(turns)[:count]]


def _small_jpeg(file: Readable, preprocessing: Preprocessing) -> bytes:
    """Scale a photo down to what still has to be resized, without its metadata, which may say where it was taken."""
    image = decode(file, wanted_px=SCALE * preprocessing.wanted_px, alpha_over=preprocessing.alpha_over)
    scale = min(1.0, SCALE * preprocessing.wanted_px / min(image.size))
    image = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BOX
    )
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
