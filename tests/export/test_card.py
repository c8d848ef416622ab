from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.bundle import BundleInfo, open_bundle
from finetune.calibration import BeforeAfter
from finetune.cli import run
from finetune.export.card import Measured, model_card, recorded_evaluations
from finetune.run import FinishedRun, Result
from finetune.serving.predictor import Predictor
from tests.conftest import paint_folder


@pytest.fixture(scope="module")
def info(tiny_models: Path) -> BundleInfo:
    return open_bundle(tiny_models / "tiny").info


@pytest.fixture(scope="module")
def finished(tiny_run: Path) -> FinishedRun:
    return FinishedRun(tiny_run)


def python_of(card: str) -> str:
    (lines,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return str(lines)


def test_the_card_says_what_was_measured(info: BundleInfo, finished: FinishedRun) -> None:
    card = model_card(info, finished.result, finished.manifest)
    result = finished.result
    photos = result.photos
    for said in (
        "# tiny\n",
        f"It was trained on {photos['train']} photos.",
        f"`{result.dataset}`",
        f"| test | {photos['test']} | 100.0 % | 64.6 % to 100.0 % |",
        "0. blue\n1. green\n2. red\n",
        "same answer on 100.00 %",
        "Any photo gets one of these classes",
        "Few training photos (under 20): blue (",
        info.model.preprocessing.in_words(),
    ):
        assert said in card, said
    for label in info.model.labels:
        row = [sum(p.label == label for p in finished.manifest.of(split)) for split in ("train", "val", "test")]  # type: ignore[arg-type]
        assert f"| {label} | {row[0]} | {row[1]} | {row[2]} |" in card


def test_what_is_not_known_is_left_out(info: BundleInfo, finished: FinishedRun) -> None:
    photos = {"train": 30, "val": 7, "test": 0}
    calibration = finished.result.calibration.model_copy(update={"test": None})
    without: Result = finished.result.model_copy(
        update={"test_accuracy": None, "val_accuracy": 0.81234, "photos": photos, "calibration": calibration}
    )
    card = model_card(info, without)
    assert "It has no test photos" in card
    assert "train: 30 photos, val: 7 photos." in card
    assert "| val | 7 | 81.2 % |  |" in card, "0.81234 is no share of 7 photos"
    for never in ("| test", "test: ", " None", "(None", " nan", "Few training photos", "\ntest "):
        assert never not in card, never


def test_calibration_is_told_before_and_after(info: BundleInfo, finished: FinishedRun) -> None:
    calibration = finished.result.calibration.model_copy(update={"test": BeforeAfter(before=0.125, after=0.031)})
    card = model_card(info, finished.result.model_copy(update={"calibration": calibration}))
    assert "test 12.5 % and 3.1 %." in card


def test_names_do_not_break_the_markdown(info: BundleInfo, finished: FinishedRun) -> None:
    model = info.model.model_copy(update={"labels": ("a|b", "`x`\n# y", "<b>", "1. - a-b"), "name": "my_model"})
    card = model_card(info.model_copy(update={"model": model}), finished.result)
    assert "# my\\_model\n" in card
    assert "0. a\\|b\n1. \\`x\\` \\# y\n2. \\<b\\>\n3. 1\\. - a-b\n" in card


def test_evaluations_of_these_weights_on_other_photos_are_told(
    info: BundleInfo, tiny_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    others = paint_folder(tmp_path / "others", per_class=4)
    for words in ([f"data.root={others}"], []):
        assert run(["evaluate", f"run={tmp_path / 'run'}", *words]) == 0
    finished = FinishedRun(tmp_path / "run")
    (measured,) = recorded_evaluations(finished)
    assert (measured.where, measured.photos, measured.seen) == ("others", 12, 0)
    card = model_card(info, finished.result, finished.manifest, [measured])
    assert f"| others | 12 | {100 * measured.accuracy:.1f} % |" in card
    (record,) = (tmp_path / "run" / "evaluation" / "others").glob("evaluation.json")
    record.write_text(record.read_text().replace(finished.weights_sha256, "of another run"))
    assert recorded_evaluations(finished) == ()


def test_photos_of_training_in_an_evaluation_are_told(info: BundleInfo, finished: FinishedRun) -> None:
    seen = Measured("again", 10, 1.0, None, None, seen=4)
    assert "Of again, 4 photos took part in training or in choosing." in model_card(info, finished.result, None, [seen])


def noise(height: int, width: int, channels: int) -> Image.Image:
    """Return a photo whose every pixel tells a mistake in resizing, turning or blending."""
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze())


def save_turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(300, 500, 3).save(path, "JPEG", exif=exif)


def save_transparent_palette(path: Path) -> None:
    noise(90, 70, 3).quantize(16).save(path, "PNG", transparency=3)


PHOTOS: dict[str, Callable[[Path], None]] = {
    "a JPEG upright by EXIF, decoded at a fraction": save_turned,
    "a small JPEG": lambda path: noise(40, 30, 3).save(path, "JPEG"),
    "a grey JPEG": lambda path: noise(400, 400, 1).save(path, "JPEG"),
    "a CMYK JPEG without a profile": lambda path: noise(80, 90, 3).convert("CMYK").save(path, "JPEG"),
    "a PNG with alpha": lambda path: noise(120, 80, 4).save(path, "PNG"),
    "a grey PNG with alpha": lambda path: noise(120, 80, 4).convert("LA").save(path, "PNG"),
    "a palette": lambda path: noise(90, 70, 3).quantize(16).save(path, "PNG"),
    "a palette with a transparent colour": save_transparent_palette,
    "black and white": lambda path: noise(90, 70, 1).convert("1").save(path, "PNG"),
    "a WebP": lambda path: noise(90, 70, 3).save(path, "WEBP"),
}


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_the_python_lines_answer_as_the_predictor_does(
    fit: str, info: BundleInfo, finished: FinishedRun, tiny_models: Path, tmp_path: Path
) -> None:
    preprocessing = info.model.preprocessing.model_copy(update={"fit": fit})
    model = info.model.model_copy(update={"preprocessing": preprocessing})
    code = python_of(model_card(info.model_copy(update={"model": model}), finished.result))
    assert len([line for line in code.splitlines() if line]) <= 15
    file = shutil.copy(tiny_models / "tiny" / "1" / "model.onnx", tmp_path)
    predictor = Predictor(Path(file), model.labels, preprocessing, "cpu", threads=1)
    # imports of what serving must not need fail
    hidden = "".join(f"sys.modules[{name!r}] = None\n" for name in ("torch", "timm", "finetune", "cv2", "onnx"))
    loop = "for name in sys.argv[1:]:\n    os.replace(name, 'photo.jpg')\n    exec(open('card.py').read())\n"
    runner = f"import os, sys\n{hidden}{loop}"
    (tmp_path / "card.py").write_text(code)
    wanted = []
    for number, save in enumerate(PHOTOS.values()):
        save(tmp_path / str(number))
        wanted.append(predictor.run(predictor.load(tmp_path / str(number))[None])[0].tolist())
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", runner, *map(str, range(len(PHOTOS)))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line.replace("'", '"')) for line in done.stdout.splitlines()]
    for name, answer, probabilities in zip(PHOTOS, answers, wanted, strict=True):
        assert list(answer) == list(model.labels)
        assert list(answer.values()) == pytest.approx(probabilities, abs=1e-6), name
