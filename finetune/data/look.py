"""What one look at a photo tells: whether it can be used, how it is stored, what its pixels are like."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from finetune.errors import ImageError
from finetune.preprocess import Readable, has_alpha, ink_transform, is_deep, open_image, to_upright_grey

# JPEG is decoded at a fraction of its size: a look costs a third of a full decode and sees the same damage.
LOOK_PX = 28
# cleanvision measures sharpness at this size, so its threshold holds here.
SHARPNESS_PX = 64
HASH_PX, HASH_SIDE = 32, 8
# Below this spread of grey levels a perceptual hash is noise.
LEAST_SPREAD = 4.0
ORIENTATION_TAG = 0x0112
EDGES = np.array([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]], dtype=np.float32)


class Facts(NamedTuple):
    """One file. problem and kind: why it cannot be used, both empty if it can; the rest holds for usable ones.

    width, height: px as stored, before EXIF turns it. by_profile: its inks are turned into colours by its profile.
    dark, bright: 99th and 5th percentile of brightness, 0..1. entropy: bits of the grey levels. sharpness: as
    cleanvision scores it, 0 (blurred) to 1.
    perceptual: 64-bit hash of the coarse pattern, alike for photos that look alike; None where there is no pattern.
    """

    sha256: str = ""
    problem: str = ""
    kind: str = ""
    format: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    by_profile: bool = False
    deep: bool = False
    alpha: bool = False
    animated: bool = False
    orientation: int = 1
    dark: float = 0.0
    bright: float = 0.0
    entropy: float = 0.0
    sharpness: float = 0.0
    perceptual: int | None = None


class Glance(NamedTuple):
    """facts: all but the measures; grey: what is left to be measured, None where the file cannot be used."""

    facts: Facts
    grey: NDArray[np.uint8] | None


def look(files: Iterable[Readable]) -> list[Facts]:
    """Decode photos as training does and measure them; a file that cannot be read has no sha256.

    All are decoded, then all are measured: in turn, the two drive each other out of the processor's caches and the
    measuring takes twice as long.
    """
    glances = [_glance(file) for file in files]
    return [facts if grey is None else facts._replace(**_measure(grey)) for facts, grey in glances]


def _glance(file: Readable) -> Glance:
    try:
        raw = file.read_bytes()
    except OSError as error:
        return Glance(Facts(problem=f"cannot be read: {error.strerror or error}", kind="unreadable"), None)
    sha256 = hashlib.sha256(raw).hexdigest()
    try:
        with open_image(raw) as image:
            header = {
                "format": image.format or "",
                "width": image.width,
                "height": image.height,
                "mode": image.mode,
                "by_profile": ink_transform(image) is not None,
                "deep": is_deep(image),
                "alpha": has_alpha(image),
                "animated": bool(getattr(image, "is_animated", False)),
            }
            if image.tell():
                image.seek(0)
            orientation = image.getexif().get(ORIENTATION_TAG, 1)
            grey = np.asarray(to_upright_grey(image, LOOK_PX))
    except ImageError as error:
        kind = "truncated" if error.kind == "damaged" and _is_cut_off(raw, str(error)) else error.kind
        return Glance(Facts(sha256=sha256, problem=str(error), kind=kind), None)
    facts = Facts(sha256=sha256, **header, orientation=_as_orientation(orientation))  # type: ignore[arg-type]
    return Glance(facts, _shrink(grey))


def _is_cut_off(raw: bytes, message: str) -> bool:
    """Pillow says so of every format but WebP, whose header tells how long the file should be."""
    if raw[:4] == b"RIFF":
        return len(raw) < 8 + int.from_bytes(raw[4:8], "little")
    return "truncated" in message.lower()


def _as_orientation(value: object) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _shrink(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Make what follows cost as much for a large photo as for a small one."""
    factor = max(grey.shape) / SHARPNESS_PX
    if factor <= 1:
        return grey
    size = (max(1, int(grey.shape[1] / factor)), max(1, int(grey.shape[0] / factor)))
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def _measure(grey: NDArray[np.uint8]) -> dict[str, Any]:
    counts = np.bincount(grey.ravel(), minlength=256).astype(np.float64)
    shares = counts / grey.size
    below = np.cumsum(shares)
    present = shares[shares > 0]
    return {
        "dark": int(np.searchsorted(below, 0.99)) / 255,
        "bright": int(np.searchsorted(below, 0.05)) / 255,
        "entropy": float(-(present * np.log2(present)).sum()),
        "sharpness": _sharpness(grey, counts),
        "perceptual": _perceptual_hash(grey),
    }


def _sharpness(grey: NDArray[np.uint8], counts: NDArray[np.float64]) -> float:
    """Score edges and how grey levels are spread, as cleanvision does (its BlurrinessProperty)."""
    deviation = float(cv2.meanStdDev(cv2.filter2D(grey, cv2.CV_8U, EDGES))[1][0, 0])
    edges = 1 - math.exp(-deviation / 100)
    levels = 1 - math.exp(-math.sqrt(max(0.0, counts @ counts / 256 - (counts.sum() / 256) ** 2)) / 100)
    return min(1.0, edges + (levels if levels > 0.18 else 0.0))


def _perceptual_hash(grey: NDArray[np.uint8]) -> int | None:
    """Which of the lowest frequencies of the cosine transform lie above their median, row by row."""
    pixels = cv2.resize(grey, (HASH_PX, HASH_PX), interpolation=cv2.INTER_AREA)
    if float(cv2.meanStdDev(pixels)[1][0, 0]) < LEAST_SPREAD:
        return None
    low = cv2.dct(pixels.astype(np.float32))[:HASH_SIDE, :HASH_SIDE].ravel()
    median = np.partition(low, low.size // 2)[low.size // 2]
    return int.from_bytes(np.packbits(low >= median).tobytes(), "big")
