from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import finetune.runtime as runtime_module
from finetune.cli import run
from finetune.errors import FinetuneError
from finetune.providers import CUDA, DRIVER, OPENVINO
from finetune.runtime import open_session

GPU_HERE = Path("/proc/driver/nvidia").exists()


def model_of(tiny_models: Path) -> Path:
    return tiny_models / "tiny" / "1" / "model.onnx"


@pytest.mark.skipif(GPU_HERE, reason="an NVIDIA driver is here")
def test_tensorrt_is_refused_without_a_gpu_and_never_replaced(
    tiny_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FinetuneError, match="device=tensorrt does not work here: "):
        open_session(model_of(tiny_models), "tensorrt")
    assert run(["serve", f"models={tiny_models}", "port=0", "device=tensorrt", "logs=text"]) == 2
    assert "device=tensorrt does not work here: " in capsys.readouterr().err


@pytest.mark.skipif(OPENVINO in ort.get_available_providers(), reason="OpenVINO is here")
def test_openvino_is_refused_with_what_to_install(
    tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"model={tiny_models / 'tiny'}", f"input={tiny_models.parent / 'photos'}", f"output={tmp_path / 'a.csv'}"]
    assert run(["predict", *words, "device=openvino"]) == 2
    said = capsys.readouterr().err
    assert "device=openvino does not work here: this onnxruntime was built without OpenVINO" in said
    assert "it takes the package onnxruntime-openvino" in said
    assert not (tmp_path / "a.csv").exists()


@pytest.mark.skipif(CUDA[0] not in ort.get_available_providers(), reason="takes onnxruntime-gpu")
@pytest.mark.skipif(GPU_HERE or sys.platform != "linux", reason="an NVIDIA driver is here, or may be")
def test_a_driver_that_is_none_is_told_in_the_loaders_words(tiny_models: Path, tmp_path: Path) -> None:
    """An empty library in the driver's place, in a process of its own, whose every line is one of the log."""
    if not shutil.which("cc"):
        pytest.skip("there is no compiler")
    made = ["cc", "-shared", "-fPIC", "-x", "c", "/dev/null", f"-Wl,-soname,{DRIVER}", "-o", str(tmp_path / DRIVER)]
    subprocess.run(made, check=True, capture_output=True)
    words = ["serve", f"models={tiny_models}", "port=0", "logs=json", "device=cuda"]
    done = subprocess.run(
        [sys.executable, "-m", "finetune", *words],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    said = [json.loads(line)["message"] for line in done.stderr.splitlines()]
    assert "device=cuda does not work here: onnxruntime went on without its CUDAExecutionProvider: " in said[-1]
    assert "libonnxruntime_providers_cuda.so: undefined symbol: cu" in said[-1]
    assert str(Path(ort.__file__).parent) not in said[-1]
    assert "TensorRT" not in said[-1]


@pytest.mark.skipif(GPU_HERE, reason="an NVIDIA driver is here")
def test_a_provider_that_onnxruntime_drops_is_no_session(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its libraries onnxruntime takes the next provider and says so in its log only."""
    monkeypatch.setattr(runtime_module, "obstacle_to", lambda provider: None)
    for device in ("tensorrt", "openvino", "cuda"):
        with pytest.raises(FinetuneError, match=f"device={device} does not work here: "):
            open_session(model_of(tiny_models), device, cache=tmp_path)  # type: ignore[arg-type]


def test_a_run_in_torch_takes_no_compiler(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", f"run={tiny_run}", "device=tensorrt"]) == 2
    assert "device=tensorrt runs exported models only: give model=MODELS/NAME too" in capsys.readouterr().err


def test_tensorrts_profile_is_made_from_the_models_own_input(tiny_models: Path) -> None:
    model = model_of(tiny_models)
    assert runtime_module._input(model) == runtime_module._input(model.read_bytes()) == ("images", (64, 64, 3))


@pytest.mark.skipif(OPENVINO not in ort.get_available_providers(), reason="takes onnxruntime-openvino")
def test_openvino_answers_as_the_cpu_does(tiny_models: Path) -> None:
    model = model_of(tiny_models)
    session = open_session(model, "openvino", threads=1)
    assert session.provider == "openvino"
    for photos in (1, 3):
        images = np.random.default_rng(0).integers(0, 256, (photos, 64, 64, 3), dtype=np.uint8)
        wanted = open_session(model, "cpu", threads=1).ort.run(None, {"images": images})[0]
        np.testing.assert_allclose(session.ort.run(None, {"images": images})[0], wanted, atol=1e-4)
