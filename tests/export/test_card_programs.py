"""The card's C++ and curl, typed as they stand."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from finetune.bundle import open_bundle
from finetune.preprocess import Pixels
from finetune.serving.predictor import Predictor, open_predictor
from tests.conftest import CLASSES
from tests.serving.conftest import start

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
HEADERS = next(
    (
        folder
        for folder in (Path("/usr/include/onnxruntime"), CACHE / "finetune-service/onnxruntime-headers")
        if folder.is_dir()
    ),
    None,
)
# pip's onnxruntime has the library, under its whole version only
LIBRARY = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"), None)


@pytest.fixture(scope="module")
def card(tiny_models: Path) -> str:
    return (tiny_models / "tiny" / "1" / "README.md").read_text()


@pytest.fixture
def predictor(tiny_models: Path) -> Predictor:
    return open_predictor(open_bundle(tiny_models / "tiny"), "cpu", threads=1)


@pytest.fixture
def photo(tiny_models: Path) -> Path:
    return tiny_models.parent / "photos" / "red" / "0.jpg"


def compiled(card: str, folder: Path) -> dict[str, str]:
    """Compile the card's program in a folder by the card's own command; return what its process needs to be told."""
    assert LIBRARY is not None
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(LIBRARY)
    (program,) = re.findall(r"```cpp\n(.*?)```", card, re.DOTALL)
    (command,) = re.findall(r"`(g\+\+ .*?)`", card)
    (folder / "classify.cpp").write_text(program)
    found = {"CPATH": str(HEADERS), "LIBRARY_PATH": str(folder), "LD_LIBRARY_PATH": str(folder)}
    environment = os.environ | found
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "a warning"
    return environment


def save_ppm(path: Path, pixels: Pixels) -> Path:
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.skipif(HEADERS is None, reason="no headers of onnxruntime here (scripts/onnxruntime-headers)")
@pytest.mark.skipif(LIBRARY is None, reason="this onnxruntime has no library that can be linked")
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here (Debian: apt-get install g++)")
def test_the_cpp_program_answers_as_the_predictor_does(
    card: str, predictor: Predictor, photo: Path, tiny_models: Path, tmp_path: Path
) -> None:
    environment = compiled(card, tmp_path)

    def classify(file: Path) -> subprocess.CompletedProcess[str]:
        words = [tmp_path / "a.out", tiny_models / "tiny" / "1" / "model.onnx", file]
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)

    # values of any kind: 10 and 32, which a reader of text would take for blanks, stand first
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    noise[0, 0] = (10, 32, 0)
    for pixels in (predictor.load(photo), noise):
        done = classify(save_ppm(tmp_path / "photo.ppm", pixels))
        assert done.returncode == 0, done.stderr
        rows = [line.split() for line in done.stdout.splitlines()]
        assert [row[0] for row in rows] == [str(number) for number in range(len(CLASSES))]
        assert [float(row[1]) for row in rows] == pytest.approx(predictor.run(pixels[None])[0].tolist(), abs=1e-5)
    small = classify(save_ppm(tmp_path / "small.ppm", noise[:32]))
    assert small.returncode == 2
    assert small.stderr.endswith("small.ppm is no binary PPM of 64 x 64 px with 8 bits\n")


def test_the_curl_line_is_answered_as_the_predictor_does(
    card: str, predictor: Predictor, photo: Path, tiny_models: Path, tmp_path: Path
) -> None:
    (command,) = re.findall(r"```bash\n(curl .*)\n```", card)
    shutil.copy(photo, tmp_path / "photo.jpg")
    server = start(tiny_models, tmp_path / "log")
    try:
        typed = command.replace("http://localhost:8000", server.address)
        done = subprocess.run(typed, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    finally:
        server.process.terminate()
        server.process.wait(timeout=30)
    (answer,) = json.loads(done.stdout)["predictions"]
    wanted = dict(zip(CLASSES, predictor.run(predictor.load(photo)[None])[0].tolist(), strict=True))
    assert {score["label"]: score["probability"] for score in answer["top"]} == pytest.approx(wanted, abs=1e-5)
