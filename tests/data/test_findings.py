"""Every kind of finding on a folder made to have it, and nothing found in the ordinary photos beside it."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from finetune.cli import run
from finetune.data.audit import audit
from finetune.data.findings import KINDS, Severity
from finetune.data.look import look
from finetune.errors import FinetuneError
from finetune.preprocess import decode
from tests.conftest import paint, paint_folder, source


@dataclass(frozen=True)
class Made:
    """What a maker put into a folder. paths: of the one case expected; skipped: those of them that are left out."""

    paths: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    detail: str = ""
    also: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)


Maker = Callable[[Path], Made]
MAKERS: dict[str, Maker] = {}
# Found while a source is listed, before any photo is looked at, and so tested with the listing.
OF_LISTING = {"link_outside", "link_loop", "unreadable_folder", "outside_classes"}


def makes(kind: str) -> Callable[[Maker], Maker]:
    def keep(maker: Maker) -> Maker:
        MAKERS[kind] = maker
        return maker

    return keep


def scene(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Draw a picture of coarse shapes with some grain, as a photo has."""
    draw = random.Random(seed)
    image = Image.new("RGB", size, (draw.randrange(60, 200),) * 3)
    pen = ImageDraw.Draw(image)
    for _ in range(25):
        x, y = draw.randrange(size[0]), draw.randrange(size[1])
        width, height = draw.randrange(20, size[0] // 2), draw.randrange(20, size[1] // 2)
        pen.ellipse((x - width // 2, y - height // 2, x + width // 2, y + height // 2), fill=_colour(draw))
    grain = np.random.default_rng(seed).normal(0, 8, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def _colour(draw: random.Random) -> tuple[int, int, int]:
    return draw.randrange(256), draw.randrange(256), draw.randrange(256)


def noise(low: int, high: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Grey noise of the levels low..high - 1."""
    pixels = np.random.default_rng(1).integers(low, high, (size[1], size[0]), dtype=np.uint8)
    return Image.fromarray(pixels).convert("RGB")


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def put(root: Path, path: str, raw: bytes) -> Made:
    (root / path).write_bytes(raw)
    return Made((path,))


def put_bad(root: Path, path: str, raw: bytes, detail: str) -> Made:
    return Made(put(root, path, raw).paths, skipped=(path,), detail=detail)


# Files that cannot be used


@makes("unreadable")
def _(root: Path) -> Made:
    os.mkfifo(root / "red/x.jpg")
    return Made(("red/x.jpg",), skipped=("red/x.jpg",), detail="not a regular file")


@makes("empty")
def _(root: Path) -> Made:
    return put_bad(root, "red/x.jpg", b"", "empty file (0 bytes)")


@makes("not_an_image")
def _(root: Path) -> Made:
    return put_bad(root, "red/x.jpg", b"a list of photos\n", "not an image in a format that can be read")


@makes("truncated")
def _(root: Path) -> Made:
    raw = encoded(scene(1), "JPEG")
    return put_bad(root, "red/x.jpg", raw[: len(raw) // 2], "truncated")


@makes("damaged")
def _(root: Path) -> Made:
    raw = bytearray(encoded(scene(1), "PNG"))
    raw[len(raw) // 2 : len(raw) // 2 + 40] = bytes(40)
    return put_bad(root, "red/x.png", bytes(raw), "damaged: ")


@makes("too_many_pixels")
def _(root: Path) -> Made:
    raw = bytearray(encoded(scene(1), "PNG"))
    raw[16:24] = struct.pack(">II", 20_000, 20_000)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    return put_bad(root, "red/x.png", bytes(raw), "more than 100 megapixels")


# Photos and each other


@makes("label_conflict")
def _(root: Path) -> Made:
    for label in ("blue", "red"):
        put(root, f"{label}/x.jpg", encoded(scene(1), "JPEG"))
    both = ("blue/x.jpg", "red/x.jpg")
    return Made(both, skipped=both, detail="blue or red")


@makes("split_leak")
def _(root: Path) -> Made:
    in_splits(root)
    for split in ("test", "train"):
        put(root, f"{split}/red/x.jpg", encoded(scene(1), "JPEG"))
    return Made(("test/red/x.jpg", "train/red/x.jpg"), skipped=("train/red/x.jpg",), detail="stays in test")


@makes("near_leak")
def _(root: Path) -> Made:
    in_splits(root)
    put(root, "test/red/x.jpg", encoded(scene(1), "JPEG", quality=50))
    put(root, "train/red/x.jpg", encoded(scene(1), "JPEG", quality=95))
    return Made(("test/red/x.jpg", "train/red/x.jpg"), detail="train and test", also=("near_duplicates",))


@makes("group_leak")
def _(root: Path) -> Made:
    in_splits(root)
    put(root, "test/red/bolt-1.jpg", encoded(scene(1), "JPEG"))
    put(root, "train/red/bolt-2.jpg", encoded(scene(2), "JPEG"))
    paths = ("test/red/bolt-1.jpg", "train/red/bolt-2.jpg")
    return Made(paths, detail="train and test", data={"group_pattern": "[a-z]+-"}, also=("ungrouped",))


@makes("ungrouped")
def _(root: Path) -> Made:
    put(root, "red/bolt-1.jpg", encoded(scene(1), "JPEG"))
    return Made((), detail="blue/0.jpg: in no group, as ", data={"group_pattern": "[a-z]+-"})


@makes("near_label_conflict")
def _(root: Path) -> Made:
    put(root, "blue/x.jpg", encoded(scene(1), "JPEG", quality=50))
    put(root, "red/x.jpg", encoded(scene(1), "JPEG", quality=95))
    return Made(("blue/x.jpg", "red/x.jpg"), detail="blue and red")


@makes("look_alike")
def _(root: Path) -> Made:
    paths = tuple(f"red/x{quality}.jpg" for quality in range(84, 96))
    for quality, path in enumerate(paths, 84):
        put(root, path, encoded(scene(1), "JPEG", quality=quality))
    return Made(paths, detail="12 photos")


@makes("exact_duplicates")
def _(root: Path) -> Made:
    for name in ("x", "y", "z"):
        put(root, f"red/{name}.jpg", encoded(scene(1), "JPEG"))
    return Made(("red/x.jpg", "red/y.jpg", "red/z.jpg"), detail="3 copies")


@makes("near_duplicates")
def _(root: Path) -> Made:
    photo = scene(1)
    put(root, "red/x.jpg", encoded(photo, "JPEG", quality=95))
    put(root, "red/y.jpg", encoded(photo, "JPEG", quality=50))
    put(root, "red/z.png", encoded(photo.resize((160, 120)), "PNG"))
    return Made(("red/x.jpg", "red/y.jpg", "red/z.png"), detail="3 photos")


# Classes


@makes("untrainable")
def _(root: Path) -> Made:
    (root / "grey").mkdir()
    return Made((), detail="class 'grey' in")


@makes("class_names_alike")
def _(root: Path) -> Made:
    (root / "blue").rename(root / "Red ")
    return Made((), detail="'Red ' and 'red'")


@makes("missing_in_split")
def _(root: Path) -> Made:
    in_splits(root)
    for file in (root / "test/red").iterdir():
        file.unlink()
    return Made((), detail="test has no photo of red")


@makes("imbalance")
def _(root: Path) -> Made:
    in_splits(root, train={"red": 20, "blue": 2, "green": 3})
    return Made((), detail="'red' has 20 training photos, 'blue' 2")


# Photos by themselves


@makes("wrong_extension")
def _(root: Path) -> Made:
    return put(root, "red/x.jpg", encoded(scene(1), "PNG"))


@pytest.mark.parametrize("name", ["x.txt", "x.mp4", "x.PDF"])
def test_a_photo_that_claims_to_be_no_photo_lies_too(name: str, photos: Path) -> None:
    put(photos, f"red/{name}", encoded(scene(1), "JPEG"))
    (finding,) = audit(source(photos), 0).findings
    assert (finding.kind, finding.cases[0].detail) == ("wrong_extension", "it is JPEG")


@makes("tiny")
def _(root: Path) -> Made:
    return put(root, "red/x.png", encoded(noise(0, 256, (40, 31)), "PNG"))


@makes("extreme_aspect")
def _(root: Path) -> Made:
    return put(root, "red/x.png", encoded(noise(0, 256, (200, 69)), "PNG"))


@makes("dark")
def _(root: Path) -> Made:
    return put(root, "red/x.png", encoded(noise(0, 80), "PNG"))


@makes("bright")
def _(root: Path) -> Made:
    return put(root, "red/x.png", encoded(noise(244, 256), "PNG"))


@makes("blurry")
def _(root: Path) -> Made:
    blurred = scene(1).filter(ImageFilter.GaussianBlur(24))
    return put(root, "red/x.jpg", encoded(blurred, "JPEG", quality=95))


@makes("low_information")
def _(root: Path) -> Made:
    return put(root, "red/x.png", encoded(noise(100, 107), "PNG"))


@makes("animated")
def _(root: Path) -> Made:
    raw = encoded(scene(1), "GIF", save_all=True, append_images=[scene(2)])
    return Made(put(root, "red/x.gif", raw).paths, detail="GIF", also=("palette",))


@makes("cmyk")
def _(root: Path) -> Made:
    return put(root, "red/x.jpg", encoded(scene(1).convert("CMYK"), "JPEG"))


@makes("deep")
def _(root: Path) -> Made:
    grey = np.asarray(scene(1).convert("L")).astype(np.uint16) * 257
    return put(root, "red/x.png", encoded(Image.fromarray(grey), "PNG"))


@makes("palette")
def _(root: Path) -> Made:
    return put(root, "red/x.png", encoded(scene(1).quantize(64), "PNG"))


@makes("alpha")
def _(root: Path) -> Made:
    clear = scene(1)
    clear.putalpha(128)
    return put(root, "red/x.png", encoded(clear, "PNG"))


@makes("rotated")
def _(root: Path) -> Made:
    return Made(put(root, "red/x.jpg", turned(6)).paths, detail="orientation 6")


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(scene(1), "JPEG", exif=exif)


def in_splits(root: Path, train: dict[str, int] | None = None) -> None:
    """Replace the class folders by train, val and test, each with its own photos of every class."""
    seed = 0
    for label in ("blue", "green", "red"):
        for file in (root / label).iterdir():
            file.unlink()
        (root / label).rmdir()
        for split, count in (("train", (train or {}).get(label, 4)), ("val", 2), ("test", 2)):
            for number in range(count):
                seed += 1
                paint(root / split / label / f"{number}.jpg", label, seed)


# The tests


def test_nothing_is_found_in_ordinary_photos(photos: Path) -> None:
    put(photos, "red/scene.jpg", encoded(scene(1), "JPEG"))
    result = audit(source(photos), 0)
    assert result.findings == ()
    assert result.manifest.skipped == ()


def test_every_kind_has_its_photos() -> None:
    assert set(MAKERS) | OF_LISTING == set(KINDS)
    assert not set(MAKERS) & OF_LISTING


@pytest.mark.parametrize("kind", MAKERS)
def test_is_found_where_it_is_and_nowhere_else(kind: str, photos: Path) -> None:
    made = MAKERS[kind](photos)
    result = audit(source(photos, **made.data), 0)
    assert {finding.kind for finding in result.findings} == {kind, *made.also}
    (case,) = result.of(kind)
    assert case.paths == made.paths
    assert made.detail in case.detail
    skipped = {photo.path for photo in result.manifest.skipped}
    assert skipped == set(made.skipped)
    used = [photo for photo in result.manifest.photos if photo.path not in skipped]
    # a set that cannot be trained gets no splits
    assert {photo.split for photo in used} == ({""} if kind == "untrainable" else {"train", "val", "test"})
    assert set(made.paths) - skipped <= {photo.path for photo in used}


@pytest.mark.parametrize("kind", MAKERS)
def test_weighs_what_it_does(kind: str, photos: Path) -> None:
    """What is called skipped leaves photos out, and nothing else does."""
    made = MAKERS[kind](photos)
    expected: set[Severity] = (
        {"skipped"} if made.skipped else {"fatal"} if kind == "untrainable" else {"warning", "note"}
    )
    assert KINDS[kind].severity in expected


@pytest.mark.parametrize("kind", ["truncated", "near_duplicates", "class_names_alike"])
def test_the_command_writes_it_down(kind: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = MAKERS[kind](photos)
    assert run(["check", f"data.root={photos}", "output=found"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if KINDS[kind].title in line)
    assert line.split()[0] == KINDS[kind].severity
    assert line.split()[-1] == "1"
    (finding,) = json.loads(Path("found/audit.json").read_text())["findings"]
    assert (finding["kind"], finding["severity"], finding["count"]) == (kind, KINDS[kind].severity, 1)
    assert finding["cases"][0]["paths"] == list(made.paths)
    page = Path("found/audit.html").read_text()
    assert KINDS[kind].title in page
    assert all(path in page for path in made.paths)
    assert page.count("data:image/jpeg;base64,") == len(set(made.paths) - set(made.skipped))
    titles = {other.title for other in KINDS.values() if f">{other.title}<" in page}
    assert titles <= {KINDS[kind].title}


BAD_FILES = ["unreadable", "empty", "not_an_image", "truncated", "damaged", "too_many_pixels"]


@pytest.mark.parametrize("kind", BAD_FILES)
def test_on_problem_error_stops_at_a_file_that_cannot_be_used(
    kind: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = MAKERS[kind](photos)
    assert run(["check", f"data.root={photos}", "data.on_problem=error"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"finetune check: {made.paths[0]} in {photos}: ")
    assert made.detail in err
    assert err.endswith("(data.on_problem=error stops here)\n")
    assert not Path("audit").exists()


def test_on_problem_error_lets_good_photos_pass(photos: Path) -> None:
    assert run(["check", f"data.root={photos}", "data.on_problem=error"]) == 0


def test_on_problem_error_names_the_first_of_several(photos: Path) -> None:
    (photos / "green/x.jpg").write_bytes(b"")
    (photos / "blue/x.jpg").write_bytes(b"no image")
    with pytest.raises(FinetuneError, match=r"^blue/x\.jpg in "):
        audit(source(photos, on_problem="error"), 0)


# Where a kind begins and ends


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("x.png", encoded(noise(0, 256, (40, 32)), "PNG")),
        ("x.png", encoded(noise(0, 256, (70, 200)), "PNG")),
        ("x.png", encoded(noise(0, 88), "PNG")),
        ("x.png", encoded(noise(240, 256), "PNG")),
        ("x.png", encoded(noise(100, 109), "PNG")),
        ("x.jpeg", encoded(scene(1), "JPEG")),
        ("X.JPG", encoded(scene(1), "JPEG")),
        ("x.jfif", encoded(scene(1), "JPEG")),
        ("x", encoded(scene(1), "JPEG")),
        ("x.data", encoded(scene(1), "PNG")),
        ("x.jpg", encoded(scene(1), "MPO", save_all=True, append_images=[scene(2)])),
        ("x.webp", encoded(scene(1), "WEBP")),
        ("x.tif", encoded(scene(1), "TIFF")),
        ("x.bmp", encoded(scene(1), "BMP")),
        ("x.png", encoded(scene(1).convert("L"), "PNG")),
        ("x.jpg", turned(1)),
        ("x.jpg", turned(9)),
        ("x.jpg", encoded(scene(1).filter(ImageFilter.GaussianBlur(2)), "JPEG")),
    ],
    ids=[
        "32 px", "aspect 0.35", "not dark", "not bright", "over 3 bits", "jpeg", "capitals", "jfif", "no extension",
        "unknown extension", "a phone's JPEG", "webp", "tif", "bmp", "grey", "upright", "no such orientation", "soft",
    ],
)  # fmt: skip
def test_photos_that_only_come_close(name: str, raw: bytes, photos: Path) -> None:
    put(photos, f"red/{name}", raw)
    result = audit(source(photos), 0)
    assert result.findings == ()
    assert f"red/{name}" in {photo.path for photo in result.manifest.of("train", "val", "test")}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_a_photo_cut_off_is_called_so_in_every_format(format: str) -> None:
    raw = encoded(scene(1, (80, 60)), format)
    # cut in its colour table, a GIF is no image to Pillow; nor is a JPEG that ends just between two of its segments
    ends = range(800 if format == "GIF" else 250, len(raw) - 40, 97)
    assert len(ends) > 5
    files = [Path(f"{end}.jpg") for end in ends]
    for end, file in zip(ends, files, strict=True):
        file.write_bytes(raw[:end])
    assert {facts.kind for facts in look(files)} == {"truncated"}


@pytest.mark.parametrize(("format", "place"), [("JPEG", 20), ("PNG", 60), ("WEBP", 24)])
def test_a_whole_photo_that_does_not_decode_is_not_called_cut_off(format: str, place: int) -> None:
    raw = encoded(scene(1, (80, 60)), format)
    Path("photo.jpg").write_bytes(raw[:place] + bytes(4) + raw[place + 4 :])
    assert look([Path("photo.jpg")])[0].kind == "damaged"


def test_a_link_to_nowhere_cannot_be_read(photos: Path) -> None:
    (photos / "red/x.jpg").symlink_to("nowhere.jpg")
    assert_unreadable(photos, "red/x.jpg")


def test_a_file_whose_name_is_no_text_cannot_be_read(photos: Path) -> None:
    Path(os.fsdecode(os.fsencode(photos) + b"/red/\xff.jpg")).write_bytes(encoded(scene(1), "JPEG"))
    assert_unreadable(photos, "red/\\udcff.jpg")


def assert_unreadable(root: Path, path: str) -> None:
    result = audit(source(root), 0)
    assert [case.paths for case in result.of("unreadable")] == [(path,)]
    assert [photo.path for photo in result.manifest.skipped] == [path]


@pytest.mark.parametrize("size", [(1, 1000), (1000, 1), (1, 1)])
def test_the_page_shows_even_a_line_of_pixels(size: tuple[int, int], photos: Path) -> None:
    put(photos, "red/x.png", encoded(noise(0, 256, size), "PNG"))
    assert run(["check", f"data.root={photos}"]) == 0
    (tiny,) = (
        found for found in json.loads(Path("audit/audit.json").read_text())["findings"] if found["kind"] == "tiny"
    )
    assert tiny["cases"] == [{"paths": ["red/x.png"], "detail": f"{size[0]}x{size[1]} px"}]
    assert "data:image/jpeg;base64," in Path("audit/audit.html").read_text()


def test_near_duplicates_can_be_left_to_copies_alone(photos: Path) -> None:
    MAKERS["near_duplicates"](photos)
    assert audit(source(photos, near_duplicates=None), 0).findings == ()


def test_near_duplicates_stand_in_one_split(photos: Path) -> None:
    made = MAKERS["near_duplicates"](photos)
    for seed in range(6):
        manifest = audit(source(photos), seed).manifest
        assert len({photo.split for photo in manifest.photos if photo.path in made.paths}) == 1


def test_imbalance_begins_at_ten_to_one(photos: Path) -> None:
    in_splits(photos, train={"red": 19, "blue": 2, "green": 3})
    assert audit(source(photos), 0).findings == ()


def ink_profile() -> bytes:
    """An ICC profile (v2, lut8) of a press whose cyan ink is red, whose black is black and whose others do not show."""
    white, red, black = (255, 128, 128), (138, 208, 195), (0, 128, 128)
    clut = bytes(value for inks in range(16) for value in (black if inks & 1 else red if inks & 8 else white))
    identity = bytes(range(256))
    ones = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + ones + identity * 4 + clut + identity * 3
    tags = struct.pack(">I4sII", 1, b"A2B0", 144, len(lut))
    header = struct.pack(">I4sI4s4s4s", 144 + len(lut), bytes(4), 0x02100000, b"prtr", b"CMYK", b"Lab ")
    header += struct.pack(">6H4s", 2024, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    header += struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    return header + tags + lut


def test_cmyk_with_a_profile_is_found_and_shown_by_it(photos: Path) -> None:
    cyan = Image.new("CMYK", (64, 64), (255, 0, 0, 0))
    plain, profiled = encoded(cyan, "TIFF"), encoded(cyan, "TIFF", icc_profile=ink_profile())
    assert decode(plain).getpixel((9, 9)) == (0, 255, 255)
    assert decode(profiled).getpixel((9, 9)) == pytest.approx((255, 0, 0), abs=15)
    inks = scene(1).convert("CMYK")
    put(photos, "red/x.tif", encoded(inks, "TIFF", icc_profile=ink_profile()))
    put(photos, "red/y.tif", encoded(ImageOps.mirror(inks), "TIFF", icc_profile=b"no profile"))
    assert [case.paths for case in audit(source(photos), 0).of("cmyk")] == [("red/x.tif",), ("red/y.tif",)]


def test_a_folder_of_every_kind_of_bad_file_still_trains_on_the_good_ones(tmp_path: Path) -> None:
    root = paint_folder(tmp_path / "photos")
    for kind in BAD_FILES:
        made = MAKERS[kind](root)
        (path,) = made.paths
        (root / path).rename(root / path.replace("x.", f"{kind}."))
    result = audit(source(root), 0)
    assert {finding.kind: len(finding.cases) for finding in result.findings} == dict.fromkeys(BAD_FILES, 1)
    assert len(result.manifest.skipped) == len(BAD_FILES)
    assert len(result.require_trainable().of("train", "val", "test")) == 24
