"""The one way from an image file to the pixels a model sees.

Validation, evaluation, feature extraction, parity and the server all call `load_pixels`; nothing else decodes or
resizes a photo for a model, so training and serving cannot disagree.
"""

from __future__ import annotations

import io
import warnings
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict

from finetune.errors import ImageError

Pixels = NDArray[np.uint8]


class Readable(Protocol):
    """Something with a file's bytes: a `Path`, or a file that lies elsewhere."""

    def read_bytes(self) -> bytes: ...


# Pillow registers its rarer formats only when the common ones have failed; a list of accepted formats needs them named.
Image.init()
# Pillow's own limit is in two steps, the first a warning; ours, below, is one and is checked from the header.
Image.MAX_IMAGE_PIXELS = None
# It also warns of odd metadata, which costs nobody a photo. Once for all, as `catch_warnings` is no good in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

MAX_PIXELS = 100_000_000
# Scaling 16 and 32 bits to 8 passes through several bytes a pixel.
MAX_DEEP_PIXELS = 25_000_000
# Below this ratio of decoded to wanted size, JPEG's own reduced decoding would cost sharpness.
DRAFT_GAP = 2


class Preprocessing(BaseModel):
    """How a decoded photo becomes a model's input; stored in every bundle.

    fit="squash" scales both sides to `image_size`; fit="crop" scales the shorter side and cuts the centre square.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int
    fit: Literal["squash", "crop"]
    interpolation: Literal["bicubic"] = "bicubic"

    def in_words(self) -> str:
        """Return the description a person needs to rebuild this elsewhere."""
        if self.fit == "squash":
            return f"RGB, upright by EXIF, both sides resized to {self.image_size} px (Pillow bicubic), uint8"
        return (
            f"RGB, upright by EXIF, shorter side resized to {self.image_size} px (Pillow bicubic), "
            f"centre {self.image_size} px square, uint8"
        )


def load_pixels(
    source: Readable | bytes, preprocessing: Preprocessing, formats: tuple[str, ...] | None = None
) -> Pixels:
    """Decode a photo and bring it to the model's size; returns (image_size, image_size, 3) uint8 RGB.

    formats: Pillow format names to accept, all by default. Raises ImageError with the reason.
    """
    image = decode(source, formats, wanted_px=preprocessing.image_size)
    size = preprocessing.image_size
    if preprocessing.fit == "squash":
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    else:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def decode(
    source: Readable | bytes, formats: tuple[str, ...] | None = None, wanted_px: int | None = None
) -> Image.Image:
    """Decode a photo to an upright RGB image, alpha over white, 16-bit scaled to 8, first frame of an animation.

    wanted_px: the shorter side needed; a larger JPEG may be decoded at a fraction of its size, never below twice this.
    Raises ImageError with the reason, before decoding where the header shows more than MAX_PIXELS.
    """
    raw = source if isinstance(source, bytes) else source.read_bytes()
    if not raw:
        raise ImageError("empty file (0 bytes)")
    try:
        with Image.open(io.BytesIO(raw), formats=formats) as image:
            _require_size(image)
            if wanted_px is not None:
                _draft(image, wanted_px)
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise ImageError("not an image in a format that can be read") from None
    except ImageError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise almost any type on damaged files
        raise ImageError(f"damaged: {' '.join(str(error).split()) or type(error).__name__}") from None


def _require_size(image: Image.Image) -> None:
    """Judge by the header: a few bytes can claim gigabytes of pixels."""
    limit = MAX_DEEP_PIXELS if _is_deep(image) else MAX_PIXELS
    if image.width * image.height > limit:
        depth = " of more than 8 bits" if _is_deep(image) else ""
        raise ImageError(f"{image.width}x{image.height}{depth} is more than {limit // 10**6} megapixels")


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or image.mode in ("I", "F")


def _draft(image: Image.Image, wanted_px: int) -> None:
    """Let the JPEG decoder skip detail that the resize would throw away; no other format is changed."""
    shorter = min(image.size)
    if shorter > DRAFT_GAP * wanted_px:
        scale = DRAFT_GAP * wanted_px / shorter
        image.draft("RGB", (max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if _is_deep(image):
        values = np.asarray(image, dtype=np.float32)
        # 16-bit photos are scaled by their type's range; 32-bit ones have no agreed range, so by their own.
        top = 65535.0 if image.mode.startswith("I;16") or values.max(initial=0) <= 65535 else float(values.max())
        if image.mode == "F" and values.max(initial=0) <= 1:
            top = 1.0
        image = Image.fromarray(np.clip(values / top * 255, 0, 255).round().astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
