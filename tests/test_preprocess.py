from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from finetune.errors import ImageError
from finetune.parallel import ordered_map
from finetune.preprocess import DRAFT_GAP, Pixels, Preprocessing, decode, load_pixels

SQUASH = Preprocessing(image_size=32, fit="squash")
CROP = Preprocessing(image_size=32, fit="crop")
RED, WHITE = (200, 0, 0), (255, 255, 255)


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def gradient(width: int, height: int) -> Image.Image:
    """A smooth photo that differs in every corner."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([255 * x / width, 255 * y / height, 127 + 60 * np.sin(6 * x / width + 4 * y / height)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def palette(transparency: int | bytes | None = None, file_format: str = "PNG") -> bytes:
    """A photo whose left half is black (index 0) and whose right half is red (index 1)."""
    image = Image.new("P", (8, 8), 0)
    image.putpalette([0, 0, 0, *RED])
    image.paste(1, (4, 0, 8, 8))
    return encoded(image, file_format, **({} if transparency is None else {"transparency": transparency}))


def corners(raw: bytes) -> tuple[Any, Any]:
    """Return the pixels at the top left and the bottom right."""
    image = decode(raw)
    assert image.mode == "RGB"
    return image.getpixel((0, 0)), image.getpixel((image.width - 1, image.height - 1))


def reason(raw: bytes, **options: Any) -> str:
    with pytest.raises(ImageError) as refused:
        decode(raw, **options)
    return str(refused.value)


# Modes and formats


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM", "TGA", "ICO"])
def test_lossless_rgb_comes_back_as_it_was(file_format: str) -> None:
    photo = noise(32, 32)
    options = {"sizes": [(32, 32)]} if file_format == "ICO" else {}
    assert np.array_equal(np.asarray(decode(encoded(photo, file_format, **options))), np.asarray(photo))


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "AVIF", "JPEG2000"])
def test_lossy_rgb_comes_back_nearly_as_it_was(file_format: str) -> None:
    photo = gradient(64, 48)
    got = np.asarray(decode(encoded(photo, file_format, quality=95)), dtype=float)
    assert np.abs(got - np.asarray(photo, dtype=float)).mean() < 3


def test_grey_gets_three_equal_channels() -> None:
    assert corners(encoded(Image.new("L", (4, 4), 77))) == ((77, 77, 77), (77, 77, 77))


def test_grey_with_alpha_lies_over_white() -> None:
    photo = Image.new("LA", (4, 4), (100, 255))
    photo.putpixel((0, 0), (100, 0))
    assert corners(encoded(photo)) == (WHITE, (100, 100, 100))


def test_transparent_rgba_lies_over_white() -> None:
    photo = Image.new("RGBA", (4, 4), (*RED, 255))
    photo.putpixel((0, 0), (0, 0, 0, 0))
    assert corners(encoded(photo)) == (WHITE, RED)


def test_half_transparent_rgba_is_mixed_with_white() -> None:
    assert corners(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 51))))[0] == (204, 204, 204)


def test_palette_colours_are_looked_up() -> None:
    assert corners(palette()) == ((0, 0, 0), RED)


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(file_format: str) -> None:
    assert corners(palette(transparency=0, file_format=file_format)) == (WHITE, RED)


def test_a_half_transparent_palette_entry_is_mixed_with_white() -> None:
    assert corners(palette(transparency=b"\x33\xff")) == ((204, 204, 204), RED)


@pytest.mark.parametrize("mode", ["L", "1"])
def test_a_transparent_grey_level_is_white(mode: str) -> None:
    photo = Image.new(mode, (4, 4), 0)
    photo.putpixel((3, 3), 255)
    photo.putpixel((0, 3), 255)
    photo.putpixel((2, 2), 0)
    assert decode(encoded(photo, transparency=255)).getpixel((3, 3)) == WHITE
    assert corners(encoded(photo, transparency=0))[0] == WHITE


def test_a_transparent_rgb_colour_is_white() -> None:
    assert corners(encoded(Image.new("RGB", (4, 4), RED), transparency=RED))[0] == WHITE


def test_cmyk_jpeg_has_the_colours_it_shows() -> None:
    got = corners(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))[0]
    assert np.abs(np.subtract(got, (255, 0, 0))).max() <= 3


def test_one_bit_is_black_and_white() -> None:
    photo = Image.new("1", (4, 4), 0)
    photo.putpixel((3, 3), 1)
    assert corners(encoded(photo)) == ((0, 0, 0), WHITE)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_to_8(file_format: str) -> None:
    photo = Image.fromarray(np.array([[0, 257], [32896, 65535]], dtype=np.uint16))
    assert photo.mode == "I;16"
    got = np.asarray(decode(encoded(photo, file_format)))
    assert got[..., 0].tolist() == [[0, 1], [128, 255]]
    assert np.ptp(got, axis=-1).max() == 0


def test_32_bit_grey_is_scaled_by_its_own_range() -> None:
    photo = Image.fromarray(np.array([[0, 100_000], [50_000, 200_000]], dtype=np.int32))
    assert np.asarray(decode(encoded(photo, "TIFF")))[..., 0].tolist() == [[0, 128], [64, 255]]


def test_floats_between_0_and_1_are_scaled_to_8_bits() -> None:
    photo = Image.fromarray(np.array([[0, 0.2], [0.6, 1]], dtype=np.float32))
    assert np.asarray(decode(encoded(photo, "TIFF")))[..., 0].tolist() == [[0, 51], [153, 255]]


@pytest.mark.parametrize(("kind", "highest"), [("f4", 200), ("i4", 255), ("f4", 60_000), ("i4", 300)])
def test_32_bit_levels_of_the_usual_ranges_are_scaled_by_these(kind: str, highest: int) -> None:
    top = 255 if highest <= 255 else 65535
    photo = Image.fromarray(np.array([[0, highest], [highest // 2, 0]], dtype=kind))
    got = np.asarray(decode(encoded(photo, "TIFF")))[..., 0].tolist()
    assert got == [[0, round(highest / top * 255)], [round(highest // 2 / top * 255), 0]]


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers_are_damage(odd: float) -> None:
    photo = Image.fromarray(np.array([[0, 0.2], [odd, 1]], dtype=np.float32))
    assert reason(encoded(photo, "TIFF")) == "damaged: some of its pixels are no numbers"


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_an_animation_shows_its_first_frame(file_format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 0, 200))]
    raw = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **lossless(file_format))
    with Image.open(io.BytesIO(raw)) as opened:
        assert getattr(opened, "n_frames", 1) == 2
    assert corners(raw) == (RED, RED)


def lossless(file_format: str) -> dict[str, bool]:
    return {"lossless": True} if file_format == "WEBP" else {}


# How a photo taken upright is stored under each EXIF orientation.
STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("wanted_px", [None, 16])
def test_an_exif_rotated_jpeg_is_upright(orientation: int, wanted_px: int | None) -> None:
    upright = np.asarray(gradient(128, 96))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    got = decode(encoded(stored, "JPEG", quality=95, exif=exif), wanted_px=wanted_px)
    assert got.size == ((128, 96) if wanted_px is None else (64, 48))
    want = np.asarray(Image.fromarray(upright).resize(got.size, Image.Resampling.BOX), dtype=float)
    assert np.abs(np.asarray(got, dtype=float) - want).mean() < 4


def test_damaged_metadata_does_not_cost_the_photo() -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0"
    assert decode(encoded(gradient(16, 16), "JPEG", exif=exif)).size == (16, 16)


# What is no photo


def png_header(width: int, height: int) -> bytes:
    """A PNG that ends after its header: any decoding of it would fail."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    parts = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (header, data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_zero_bytes() -> None:
    assert reason(b"") == "empty file (0 bytes)"


def test_text() -> None:
    assert reason(b"not a photo\n" * 100) == "not an image in a format that can be read"


def test_a_truncated_jpeg_is_damaged() -> None:
    raw = encoded(noise(64, 48), "JPEG")
    assert reason(raw[: len(raw) // 2]).startswith("damaged: image file is truncated")


def test_a_jpeg_cut_in_its_header() -> None:
    assert reason(encoded(noise(64, 48), "JPEG")[:20]) == "not an image in a format that can be read"


def test_20000_by_20000_is_refused_from_the_header() -> None:
    assert reason(png_header(20_000, 20_000)) == "more than 100 megapixels"


@pytest.mark.parametrize("format", ["ICO", "ICNS"])
def test_what_an_icon_holds_is_refused_before_it_is_decoded(format: str) -> None:
    bomb = png_header(20_000, 20_000)
    if format == "ICO":
        # a 16 px entry, as its directory says
        raw = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(bomb), 22) + bomb
    else:
        raw = b"icns" + struct.pack(">I", 16 + len(bomb)) + b"ic08" + struct.pack(">I", 8 + len(bomb)) + bomb
    assert reason(raw) == "more than 100 megapixels"


def test_deep_photos_have_a_lower_limit() -> None:
    buffer = io.BytesIO()
    Image.new("F", (6000, 5000)).save(buffer, "TIFF", compression="tiff_lzw")
    assert reason(buffer.getvalue()) == "6000x5000 of more than 8 bits is more than 25 megapixels"


def test_a_little_more_than_the_limit_is_refused_from_the_header() -> None:
    assert reason(png_header(12_000, 10_000)) == "12000x10000 is more than 100 megapixels"
    assert reason(png_header(10_001, 10_000)) == "10001x10000 is more than 100 megapixels"
    assert reason(png_header(100_000_001, 1)) == "100000001x1 is more than 100 megapixels"


def test_the_limit_itself_is_not_refused_for_its_size() -> None:
    assert reason(png_header(10_000, 10_000)).startswith("damaged: ")


def test_a_photo_between_pillows_limit_and_ours_is_no_warning() -> None:
    raw = encoded(Image.new("1", (9_500, 9_500)))  # 90 megapixels; Pillow warns above 89
    assert decode(raw).size == (9_500, 9_500)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF"])
def test_only_the_formats_that_are_allowed_are_read(file_format: str) -> None:
    raw = encoded(gradient(16, 16), file_format)
    assert load_pixels(raw, SQUASH, formats=("BMP", file_format)).shape == (32, 32, 3)
    with pytest.raises(ImageError, match=r"^not an image in a format that can be read$"):
        load_pixels(raw, SQUASH, formats=("BMP", "WEBP"))


def test_a_rare_format_can_be_allowed_by_name() -> None:
    assert decode(encoded(noise(8, 8), "PCX"), formats=("PCX",)).size == (8, 8)


def test_decoding_in_threads_leaves_the_warning_filters_as_they_were() -> None:
    raw = encoded(noise(300, 300), "JPEG")
    before = list(warnings.filters)
    for _ in range(3):
        list(ordered_map(decode, [raw] * 50))
    assert warnings.filters == before


# Geometry


def test_squash_shows_all_of_the_photo() -> None:
    photo = Image.new("RGB", (96, 32), RED)
    photo.paste((0, 0, 200), (48, 0, 96, 32))
    got = load_pixels(encoded(photo), SQUASH)
    assert got.shape == (32, 32, 3)
    assert got[:, :14].reshape(-1, 3).tolist() == [list(RED)] * (32 * 14)
    assert got[:, 18:].reshape(-1, 3).tolist() == [[0, 0, 200]] * (32 * 14)


@pytest.mark.parametrize("upright", [True, False])
def test_crop_is_the_centre_square(upright: bool) -> None:
    photo = Image.new("RGB", (96, 32), RED)
    photo.paste(noise(32, 32), (32, 0))
    want = np.asarray(noise(32, 32))
    if upright:
        photo, want = photo.transpose(Image.Transpose.TRANSPOSE), want.transpose(1, 0, 2)
    assert np.array_equal(load_pixels(encoded(photo), CROP), want)


def test_crop_scales_the_shorter_side() -> None:
    photo = gradient(200, 64)
    want = photo.resize((32, 32), Image.Resampling.BICUBIC, box=(68, 0, 132, 64))
    assert np.array_equal(load_pixels(encoded(photo), CROP), np.asarray(want))


def test_squash_is_pillows_bicubic() -> None:
    photo = noise(70, 50)
    want = photo.resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(load_pixels(encoded(photo), SQUASH), np.asarray(want))


@pytest.mark.parametrize("preprocessing", [SQUASH, CROP])
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (31, 33), (32, 32)])
def test_every_shape_becomes_the_square(size: tuple[int, int], preprocessing: Preprocessing) -> None:
    got = load_pixels(encoded(Image.new("RGB", size, RED)), preprocessing)
    assert (got.shape, got.dtype) == ((32, 32, 3), np.dtype(np.uint8))
    assert got.reshape(-1, 3).tolist() == [list(RED)] * 1024


@pytest.mark.parametrize("preprocessing", [SQUASH, CROP])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_a_path_and_its_bytes_give_the_same_pixels(
    preprocessing: Preprocessing, file_format: str, tmp_path: Path
) -> None:
    path = tmp_path / "photo"
    path.write_bytes(encoded(noise(300, 200), file_format))
    assert np.array_equal(load_pixels(path, preprocessing), load_pixels(path.read_bytes(), preprocessing))


def test_the_description_names_what_is_done() -> None:
    assert SQUASH.in_words() == "RGB, upright by EXIF, both sides resized to 32 px (Pillow bicubic), uint8"
    assert CROP.in_words() == "RGB, upright by EXIF, the centre square resized to 32 px (Pillow bicubic), uint8"
    less = Preprocessing(image_size=32, fit="crop", crop_pct=0.875, interpolation="bilinear")
    assert less.in_words().startswith("RGB, upright by EXIF, the centre square of 87.5 % of the shorter side resized")
    assert less.in_words().endswith("to 32 px (Pillow bilinear), uint8")


def test_a_crop_takes_its_share_of_the_shorter_side() -> None:
    photo = Image.new("RGB", (300, 200), "red")
    photo.paste("blue", (60, 10, 240, 190))  # the middle 160 px, and what resizing looks at beside them
    raw = io.BytesIO()
    photo.save(raw, "PNG")
    whole = load_pixels(raw.getvalue(), Preprocessing(image_size=40, fit="crop"))
    part = load_pixels(raw.getvalue(), Preprocessing(image_size=40, fit="crop", crop_pct=0.8))
    assert (whole[0, 0] == (255, 0, 0)).all()
    assert (part == (0, 0, 255)).all()


# JPEG's reduced decoding


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 700), height=st.integers(1, 700), wanted=st.integers(1, 200))
def test_a_reduced_jpeg_keeps_twice_the_wanted_size_and_its_shape(width: int, height: int, wanted: int) -> None:
    got = decode(encoded(Image.new("RGB", (width, height)), "JPEG"), wanted_px=wanted)
    assert min(got.size) >= min(DRAFT_GAP * wanted, width, height)
    factor = min(scale for scale in (1, 2, 4, 8) if -(-width // scale) == got.width)
    assert got.size == (-(-width // factor), -(-height // factor))


def test_a_large_jpeg_is_reduced_and_a_large_png_is_not() -> None:
    photo = gradient(800, 640)
    assert decode(encoded(photo, "JPEG"), wanted_px=40).size == (100, 80)
    assert decode(encoded(photo, "JPEG"), wanted_px=41).size == (200, 160)
    assert decode(encoded(photo, "JPEG")).size == (800, 640)
    assert decode(encoded(photo), wanted_px=40).size == (800, 640)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("preprocessing", [SQUASH, CROP])
def test_a_reduced_jpeg_gives_nearly_the_pixels_of_the_whole_one(mode: str, preprocessing: Preprocessing) -> None:
    raw = encoded(gradient(900, 600).convert(mode), "JPEG", quality=95)
    assert decode(raw, wanted_px=32).size < (900, 600)
    whole = encoded(decode(raw))
    difference = np.abs(load_pixels(raw, preprocessing).astype(float) - load_pixels(whole, preprocessing))
    assert difference.mean() < 1
    assert difference.max() <= 4


# Damage


def exif_rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    return exif


WHOLE = {
    "JPEG": encoded(noise(24, 18), "JPEG", exif=exif_rotated()),
    "progressive JPEG": encoded(noise(24, 18), "JPEG", progressive=True),
    "PNG": encoded(noise(24, 18), "PNG", exif=exif_rotated()),
    "palette PNG": encoded(noise(24, 18).quantize(8), "PNG", transparency=3),
    "16-bit PNG": encoded(Image.fromarray(np.arange(432, dtype=np.uint16).reshape(18, 24) * 150), "PNG"),
    "WebP": encoded(noise(24, 18), "WEBP", exif=exif_rotated()),
    "GIF": encoded(noise(24, 18), "GIF", save_all=True, append_images=[gradient(24, 18)]),
    "BMP": encoded(noise(24, 18), "BMP"),
    "TIFF": encoded(noise(24, 18), "TIFF"),
    "TIFF deflate": encoded(noise(24, 18), "TIFF", compression="tiff_deflate"),
    "TIFF JPEG": encoded(noise(24, 18), "TIFF", compression="jpeg"),
}


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A small photo with some bits flipped, parts cut out, bytes put in, and perhaps its end gone."""
    raw = bytearray(WHOLE[draw(st.sampled_from(sorted(WHOLE)))])
    for _ in range(draw(st.integers(1, 5))):
        # headers decide most, so half of the damage is there
        reach = draw(st.sampled_from([60, len(raw)]))
        place = draw(st.integers(0, max(0, min(reach, len(raw)) - 1)))
        match draw(st.sampled_from(["flip", "cut", "insert", "end"])):
            case "flip" if raw:
                raw[place] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del raw[place : place + draw(st.integers(1, 20))]
            case "insert":
                raw[place:place] = draw(st.binary(min_size=1, max_size=10))
            case "end":
                del raw[len(raw) - draw(st.integers(0, 40)) :]
    return bytes(raw)


def pixels_or_reason(raw: bytes, preprocessing: Preprocessing) -> None:
    """Fail unless these bytes give the square of pixels, or one line that says why not."""
    try:
        pixels = load_pixels(raw, preprocessing)
    except ImageError as error:
        said = str(error)
        assert said.removeprefix("damaged: ").strip()
        assert said == " ".join(said.splitlines()).strip()
    else:
        assert (pixels.shape, pixels.dtype) == ((32, 32, 3), np.dtype(np.uint8))


@settings(max_examples=1500, deadline=None)
@given(raw=damaged(), preprocessing=st.sampled_from([SQUASH, CROP]))
def test_a_damaged_photo_gives_pixels_or_a_reason(raw: bytes, preprocessing: Preprocessing) -> None:
    pixels_or_reason(raw, preprocessing)


@settings(max_examples=300, deadline=None)
@given(raw=st.binary(max_size=200))
def test_any_bytes_give_pixels_or_a_reason(raw: bytes) -> None:
    pixels_or_reason(raw, SQUASH)


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_the_photos_that_are_damaged_above_are_whole(name: str) -> None:
    assert load_pixels(WHOLE[name], SQUASH).shape == (32, 32, 3)


@pytest.mark.parametrize("name", ["JPEG", "PNG"])
def test_a_photo_cut_anywhere_gives_pixels_or_a_reason(name: str) -> None:
    for end in range(0, len(WHOLE[name]), 7):
        pixels_or_reason(WHOLE[name][:end], CROP)
