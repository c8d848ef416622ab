"""A folder in which most files are damaged at random still trains, and each file of it is accounted for."""

from __future__ import annotations

import csv
import io
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.cli import run
from finetune.data.findings import KINDS
from finetune.errors import ImageError
from finetune.preprocess import Preprocessing, load_pixels
from tests.conftest import CLASSES, TINY, paint_folder

DAMAGED = 1000
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")
SIZES = ((24, 32), (132, 176))
REASONS = ("damaged", "truncated", "not_an_image", "too_many_pixels")


def damage(raw: bytes, draw: random.Random) -> bytes:
    """Flip bits, cut the end off, or put bytes in or take them out, in one to four places."""
    spoilt = bytearray(raw)
    for _ in range(draw.randint(1, 4)):
        # headers decide most, and are a small part of a file
        place = draw.randrange(min(len(spoilt), draw.choice((64, 600, len(spoilt)))) or 1)
        match draw.choice(("flip", "flip", "cut", "insert", "remove", "fill")):
            case "flip" if spoilt:
                spoilt[place] ^= 1 << draw.randrange(8)
            case "cut" if draw.random() < 0.3:
                del spoilt[place:]
            case "insert":
                spoilt[place:place] = draw.randbytes(draw.randint(1, 40))
            case "remove":
                del spoilt[place : place + draw.randint(1, 40)]
            case "fill":
                spoilt[place : place + 4] = draw.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"))
    return bytes(spoilt)


def add_damaged(root: Path) -> None:
    draw = random.Random(0)
    pixels = np.random.default_rng(0)
    for number in range(DAMAGED):
        format, turn = FORMATS[number % len(FORMATS)], number // len(FORMATS)
        # half of them so large that a look decodes a JPEG at a fraction of its size
        size = SIZES[turn % len(SIZES)]
        photo = Image.fromarray(pixels.integers(0, 256, (*size, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        photo.save(buffer, format)
        path = root / CLASSES[turn % len(CLASSES)] / f"damaged-{number:04}.{format.lower()}"
        path.write_bytes(damage(buffer.getvalue(), draw))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `finetune check` and `finetune train` leave of such photos."""
    folder = tmp_path_factory.mktemp("damaged")
    root = paint_folder(folder / "photos")
    add_damaged(root)
    assert run(["check", f"data.root={root}", f"output={folder / 'audit'}"]) == 0
    assert run(["train", f"data.root={root}", f"output={folder / 'run'}", *TINY]) == 0
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "run/manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_it_trains_on_what_is_left(folder: Path) -> None:
    result = json.loads((folder / "run/result.json").read_text())
    used = [row for row in rows(folder) if not row["problem"]]
    assert result["photos"] == Counter(row["split"] for row in used)
    assert result["skipped"] == DAMAGED + 24 - len(used)


def test_every_file_is_used_or_has_a_reason(folder: Path) -> None:
    there = {path.relative_to(folder / "photos").as_posix() for path in folder.glob("photos/*/*")}
    listed = rows(folder)
    assert len(listed) == len(there) == DAMAGED + 24
    assert {row["path"] for row in listed} == there
    assert all((row["split"] in ("train", "val", "test")) != bool(row["problem"]) for row in listed)
    good = [row for row in listed if "damaged-" not in row["path"]]
    assert not any(row["problem"] for row in good)


def test_the_damage_is_of_many_kinds(folder: Path) -> None:
    """Else the other tests would prove little."""
    damaged = [row for row in rows(folder) if "damaged-" in row["path"]]
    skipped = Counter(row["path"].rsplit(".")[-1].upper() for row in damaged if row["problem"])
    assert min(skipped[format] for format in FORMATS) >= 20
    assert len(damaged) - skipped.total() >= 100
    told = json.loads((folder / "audit/audit.json").read_text())
    assert set(REASONS) <= {finding["kind"] for finding in told["findings"]}


def test_what_is_skipped_is_what_a_model_could_not_be_shown(folder: Path) -> None:
    """A look decodes large JPEGs at a fraction of their size, training as a model needs them: both must agree."""
    preprocessing = Preprocessing(image_size=64, fit="squash")
    for row in rows(folder):
        if row["problem"]:
            with pytest.raises(ImageError) as refused:
                load_pixels(folder / "photos" / row["path"], preprocessing)
            assert refused.value.reason == row["problem"]
        else:
            assert load_pixels(folder / "photos" / row["path"], preprocessing).shape == (64, 64, 3)


def test_the_audit_counts_the_same(folder: Path) -> None:
    told = json.loads((folder / "audit/audit.json").read_text())
    listed = rows(folder)
    assert told["files"] == DAMAGED + 24
    assert told["skipped"] == sum(bool(row["problem"]) for row in listed)
    counts = Counter((row["label"], row["split"]) for row in listed if not row["problem"])
    assert told["classes"] == {
        label: {split: counts[label, split] for split in ("train", "val", "test")} for label in CLASSES
    }
    reasons = {row["path"]: row["problem"] for row in listed if row["problem"]}
    named = [
        (path, case["detail"])
        for finding in told["findings"]
        if KINDS[finding["kind"]].severity == "skipped"
        for case in finding["cases"]
        for path in case["paths"]
    ]
    assert len(named) == len(reasons)
    assert dict(named) == reasons


def test_training_leaves_the_same_audit_beside_its_run(folder: Path) -> None:
    beside, told = (json.loads((folder / part / "audit.json").read_text()) for part in ("run", "audit"))
    assert beside["findings"] == told["findings"]
    assert beside["classes"] == told["classes"]
