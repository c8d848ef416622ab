"""The one way from an image file to the pixels a model sees.

Validation, evaluation, feature extraction, parity and the server all call `load_pixels`; nothing else decodes or
resizes a photo for a model, so training and serving cannot disagree.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict

from finetune.errors import ImageError

Pixels = NDArray[np.uint8]


class Readable(Protocol):
    """Something with a file's bytes: a `Path`, or a file that lies elsewhere; as text, where it lies."""

    def read_bytes(self) -> bytes: ...


# Pillow registers its rarer formats only when the common ones have failed; a list of accepted formats needs them named.
Image.init()
# It asks format after format; the common ones first halve the time that opening a photo takes.
Image.ID.sort(key=lambda name: name not in ("JPEG", "PNG", "WEBP"))
MAX_PIXELS = 100_000_000
# Pillow warns above this and refuses above twice as much. Ours, below, says more, but does not see a PNG in an ICO.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
# It also warns of odd metadata, which costs nobody a photo. Once for all, as `catch_warnings` is no good in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Scaling 16 and 32 bits to 8 passes through several bytes a pixel.
MAX_DEEP_PIXELS = 25_000_000
# Below this ratio of decoded to wanted size, JPEG's own reduced decoding would cost sharpness.
DRAFT_GAP = 2
SRGB = ImageCms.createProfile("sRGB")

AlphaOver = Literal["white", "black"]
Interpolation = Literal["bicubic", "bilinear", "lanczos", "nearest"]


class Preprocessing(BaseModel):
    """How a decoded photo becomes a model's input; stored in every bundle.

    fit="squash" scales both sides to `image_size`; fit="crop" cuts the centre square whose side is `crop_pct` of the
    shorter one, 0 to 1, and scales that.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int
    fit: Literal["squash", "crop"]
    crop_pct: float = 1.0
    interpolation: Interpolation = "bicubic"
    alpha_over: AlphaOver = "white"

    @property
    def wanted_px(self) -> int:
        """How long the shorter side of a decoded photo should be at least."""
        return math.ceil(self.image_size / self.crop_pct)

    @property
    def resampling(self) -> Image.Resampling:
        return Image.Resampling[self.interpolation.upper()]

    def in_words(self) -> str:
        """Return the description a person needs to rebuild this elsewhere."""
        resized = f"resized to {self.image_size} px (Pillow {self.interpolation}), uint8"
        if self.fit == "squash":
            return f"RGB, upright by EXIF, both sides {resized}"
        share = "" if self.crop_pct == 1 else f" of {100 * self.crop_pct:g} % of the shorter side"
        return f"RGB, upright by EXIF, the centre square{share} {resized}"


def load_pixels(
    source: Readable | bytes,
    preprocessing: Preprocessing,
    formats: tuple[str, ...] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Pixels:
    """Decode a photo and bring it to the model's size; returns (image_size, image_size, 3) uint8 RGB.

    formats: Pillow format names to accept, all by default; max_pixels: up to MAX_PIXELS. Raises ImageError with the
    file and the reason.
    """
    image = decode(source, formats, preprocessing.wanted_px, preprocessing.alpha_over, max_pixels)
    size = (preprocessing.image_size, preprocessing.image_size)
    if preprocessing.fit == "squash":
        return np.asarray(image.resize(size, preprocessing.resampling))
    bleed = (1 - preprocessing.crop_pct) / 2
    return np.asarray(ImageOps.fit(image, size, preprocessing.resampling, bleed))


def decode(
    source: Readable | bytes,
    formats: tuple[str, ...] | None = None,
    wanted_px: int | None = None,
    alpha_over: AlphaOver = "white",
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Decode a photo to an upright RGB image: `open_image`, then `to_upright_rgb`; an ImageError names the file."""
    raw = source if isinstance(source, bytes) else source.read_bytes()
    try:
        with open_image(raw, formats, max_pixels) as image:
            return to_upright_rgb(image, wanted_px, alpha_over)
    except ImageError as error:
        if isinstance(source, bytes):
            raise
        raise ImageError(error.reason, error.kind, file=source) from None


@contextmanager
def open_image(
    raw: bytes, formats: tuple[str, ...] | None = None, max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """Read an image's header; what fails in the block, decoding too, becomes an ImageError with the reason.

    Refused before any pixel is decoded where the header shows more than max_pixels.
    """
    if not raw:
        raise ImageError("empty file (0 bytes)", kind="empty")
    try:
        with Image.open(io.BytesIO(raw), formats=formats) as image:
            _require_size(image, max_pixels)
            yield image
    except UnidentifiedImageError:
        raise ImageError("not an image in a format that can be read", kind="not_an_image") from None
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"more than {MAX_PIXELS // 10**6} megapixels", kind="too_many_pixels") from None
    except Exception as error:  # Pillow's decoders raise almost any type on damaged files
        raise ImageError(f"damaged: {' '.join(str(error).split()) or type(error).__name__}", kind="damaged") from None


def to_upright_rgb(image: Image.Image, wanted_px: int | None = None, alpha_over: AlphaOver = "white") -> Image.Image:
    """Decode an opened image: upright by EXIF, alpha over a colour, 16 bits scaled to 8, the first frame, 8-bit RGB.

    wanted_px: the shorter side needed; a larger JPEG may be decoded at a fraction of its size, never below twice this.
    """
    if wanted_px is not None:
        _draft(image, wanted_px, "RGB")
    image.load()
    # in place, as it would copy an image that is upright already
    ImageOps.exif_transpose(image, in_place=True)
    return _to_rgb(image, alpha_over)


def to_upright_grey(image: Image.Image, wanted_px: int) -> Image.Image:
    """Return what `to_upright_rgb` would, in levels of grey; the colours of a JPEG are not even decoded."""
    _draft(image, wanted_px, "L")
    return to_upright_rgb(image).convert("L")


def is_deep(image: Image.Image) -> bool:
    """Whether a channel of an opened image has more than 8 bits; Pillow decodes three of 16 bits to 8 by itself."""
    return _is_wide(image) or any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _is_wide(image: Image.Image) -> bool:
    """Whether the decoded pixels have more than 8 bits."""
    return image.mode.startswith("I;16") or image.mode in ("I", "F")


def ink_transform(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """Return what turns inks into sRGB as the photo's profile says; None where it has none that can be used."""
    profile = image.info.get("icc_profile")
    if image.mode != "CMYK" or not profile:
        return None
    try:
        inks = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.buildTransform(inks, SRGB, "CMYK", "RGB")
    except (OSError, ImageCms.PyCMSError):
        # a damaged profile says nothing; the photo still shows what it shows, and the audit says so
        return None


def has_alpha(image: Image.Image) -> bool:
    return "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa")


def _require_size(image: Image.Image, max_pixels: int) -> None:
    """Judge by the header: a few bytes can claim gigabytes of pixels."""
    limit = min(max_pixels, MAX_DEEP_PIXELS) if _is_wide(image) else max_pixels
    if image.width * image.height > limit:
        depth = " of more than 8 bits" if _is_wide(image) else ""
        message = f"{image.width}x{image.height}{depth} is more than {limit / 1e6:g} megapixels"
        raise ImageError(message, kind="too_many_pixels")


def _draft(image: Image.Image, wanted_px: int, mode: Literal["RGB", "L"]) -> None:
    """Let the JPEG decoder skip detail that the resize would throw away; no other format is changed."""
    scale = min(1.0, DRAFT_GAP * wanted_px / min(image.size))
    image.draft(mode, (max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def _to_rgb(image: Image.Image, alpha_over: AlphaOver) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if _is_wide(image):
        image = _narrow(image)
    if has_alpha(image):
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, alpha_over), rgba).convert("RGB")
    by_profile = ink_transform(image)
    return image.convert("RGB") if by_profile is None else by_profile.apply(image)


def _narrow(image: Image.Image) -> Image.Image:
    """Scale levels to 8 bits: 16-bit ones by their type's range, 32-bit ones by the usual range that holds them."""
    values = np.asarray(image, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ImageError("damaged: some of its pixels are no numbers", kind="damaged")
    highest = float(values.max(initial=0))
    ranges = [65535.0] if image.mode.startswith("I;16") else [1.0, 255.0, 65535.0, highest]
    if image.mode == "I":
        ranges.remove(1.0)
    top = next(limit for limit in ranges if highest <= limit)
    return Image.fromarray(np.clip(values / top * 255, 0, 255).round().astype(np.uint8))
