from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import finetune.golden
from finetune.errors import FinetuneError
from finetune.golden import (
    digest_pixels,
    read_answers,
    read_photos,
    spread_over_classes,
    write_answers,
    write_photos,
)
from finetune.preprocess import Preprocessing, load_pixels

PREPROCESSING = Preprocessing(image_size=32, fit="crop")


def photo(path: Path, size: tuple[int, int] = (400, 300)) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    Image.fromarray(noise).save(path, exif=exif)
    return path


def test_golden_photos_are_small_tell_nothing_else_and_know_their_answers(tmp_path: Path) -> None:
    asked = []

    def answer(images: np.ndarray) -> np.ndarray:
        asked.append(images)
        return np.array([[0.25, 0.75]], np.float32)

    write_photos(
        tmp_path, [("cat", photo(tmp_path / "a.jpg")), ("dog", photo(tmp_path / "b.png"))], PREPROCESSING, answer
    )
    golden = read_photos(tmp_path)
    assert [(one.file, one.label, one.probabilities) for one in golden] == [
        ("0.jpg", "cat", (0.25, 0.75)),
        ("1.jpg", "dog", (0.25, 0.75)),
    ]
    for one, pixels in zip(golden, asked, strict=True):
        raw = (tmp_path / "golden" / one.file).read_bytes()
        assert b"taken at home" not in raw
        assert min(Image.open(io.BytesIO(raw)).size) == 64
        found = load_pixels(raw, PREPROCESSING)
        assert np.array_equal(pixels[0], found)
        assert digest_pixels(found) == one.pixels_sha256


def test_answers_are_found_by_the_photo_s_content(tmp_path: Path) -> None:
    digests = [f"{number:064x}" for number in range(5)]
    probabilities = np.random.default_rng(0).random((5, 3), dtype=np.float32)
    write_answers(tmp_path, digests, probabilities)
    answers = read_answers(tmp_path)
    assert answers is not None
    found = answers.of(["f" * 64, digests[3], digests[0]])
    assert found.keys() == {1, 2}
    assert np.array_equal(found[1], probabilities[3])
    assert np.array_equal(found[2], probabilities[0])


def test_a_large_table_is_thinned_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune.golden, "MOST_NUMBERS", 30)
    write_answers(tmp_path, [f"{number:064x}" for number in range(100)], np.ones((100, 1), np.float32))
    answers = read_answers(tmp_path)
    assert answers is not None
    assert [int(row.tobytes().hex(), 16) for row in answers.sha256] == list(range(0, 100, 4))


def test_a_table_that_holds_objects_is_refused(tmp_path: Path) -> None:
    (tmp_path / "golden").mkdir()
    np.savez(tmp_path / "golden" / "answers.npz", sha256=np.array([{}], dtype=object), probabilities=np.ones(1))
    with pytest.raises(FinetuneError, match=r"answers.npz cannot be read: Object arrays cannot be loaded"):
        read_answers(tmp_path)


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(0, 10))
def test_photos_are_taken_from_every_class_in_turn(labels: list[str], count: int) -> None:
    places = spread_over_classes(labels, count)
    assert len(places) == len(set(places)) == min(count, len(labels))
    taken = [sum(labels[place] == label for place in places) for label in set(labels)]
    there = [labels.count(label) for label in set(labels)]
    # none has two more than another, unless that one has no more
    assert all(most - least <= 1 or least == has for most in taken for least, has in zip(taken, there, strict=True))


def test_a_damaged_table_of_answers_is_refused_with_its_path(tmp_path: Path) -> None:
    write_answers(tmp_path, ["0" * 64], np.ones((1, 2), np.float32))
    table = tmp_path / "golden" / "answers.npz"
    for damaged in (b"", b"no archive", table.read_bytes()[:100]):
        table.write_bytes(damaged)
        with pytest.raises(FinetuneError, match=r"answers\.npz cannot be read"):
            read_answers(tmp_path)
