from __future__ import annotations

import os
from pathlib import Path

import pytest

from finetune.errors import FinetuneError
from finetune.providers import engine_folder, openvino, tensorrt


def test_tensorrt_compiles_once_for_every_batch_size(tmp_path: Path) -> None:
    name, options = tensorrt("images", (224, 224, 3), tmp_path)
    assert name == "TensorrtExecutionProvider"
    assert options == {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(tmp_path),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(tmp_path),
        "trt_profile_min_shapes": "images:1x224x224x3",
        "trt_profile_opt_shapes": "images:32x224x224x3",
        "trt_profile_max_shapes": "images:32x224x224x3",
    }


def test_openvino_computes_on_the_cpu_in_32_bits() -> None:
    assert openvino(3) == (
        "OpenVINOExecutionProvider",
        {"device_type": "CPU", "precision": "FP32", "num_of_threads": "3"},
    )


def test_models_share_no_engines(tmp_path: Path) -> None:
    folders = {engine_folder(tmp_path, digest) for digest in ("1a", "2b")}
    assert len(folders) == 2
    assert all(folder.is_dir() and folder.is_relative_to(tmp_path) for folder in folders)
    assert engine_folder(None, "1a").is_relative_to(os.environ["XDG_CACHE_HOME"])


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FinetuneError, match=r"file/tensorrt.* cannot be made: .*choose a folder that can be written"):
        engine_folder(tmp_path / "file", "1a")
