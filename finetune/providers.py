"""onnxruntime's execution providers: the options each is given, and what keeps it from working here."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

# It reports its use to its makers unless told not to; what is classified here concerns nobody else.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort
import platformdirs

from finetune.files import make_folder

# What it logs as an error it raises, or `why_not_loaded` finds out; its own lines, in colour, would stand between those
# of a server's log.
SILENT = 4
ort.set_default_logger_severity(SILENT)

Provider = Literal["cpu", "cuda", "tensorrt", "openvino"]
# An execution provider as onnxruntime takes it: its name and its options.
Entry = tuple[str, dict[str, str]]

CPU: Entry = ("CPUExecutionProvider", {})
CUDA: Entry = (
    "CUDAExecutionProvider",
    {
        # exhaustive search would stall the first request of every new batch size for a second
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
        "arena_extend_strategy": "kSameAsRequested",
    },
)
TENSORRT, OPENVINO = "TensorrtExecutionProvider", "OpenVINOExecutionProvider"
DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
TENSORRT_LIBRARY = "nvinfer_10.dll" if sys.platform == "win32" else "libnvinfer.so.10"
LIBRARIES = {
    provider: f"onnxruntime_providers_{name}.dll" if sys.platform == "win32" else f"libonnxruntime_providers_{name}.so"
    for provider, name in ((CUDA[0], "cuda"), (TENSORRT, "tensorrt"), (OPENVINO, "openvino"))
}
# The largest batch of a TensorRT engine, which is tuned for this one and takes every smaller one.
TENSORRT_BATCH = 32


def cuda(memory_mb: int | None) -> Entry:
    """Return CUDA; memory_mb: the most that its arena may take of the GPU, None for all there is."""
    name, options = CUDA
    return name, options if memory_mb is None else {**options, "gpu_mem_limit": str(memory_mb * 2**20)}


def tensorrt(name: str, shape: Sequence[int], folder: Path) -> Entry:
    """Return TensorRT with its engines kept in `folder`; name, shape: of the model's input, without the batch.

    Options: https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html
    """

    def profile(photos: int) -> str:
        return f"{name}:{'x'.join(map(str, (photos, *shape)))}"

    return TENSORRT, {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        # without them it compiles again, for minutes, at every batch size that it meets
        "trt_profile_min_shapes": profile(1),
        "trt_profile_opt_shapes": profile(TENSORRT_BATCH),
        "trt_profile_max_shapes": profile(TENSORRT_BATCH),
    }


def openvino(threads: int) -> Entry:
    """Return OpenVINO on the CPU.

    It has a cache too, which it writes anew at every start and does not read (onnxruntime-openvino 1.24.1); compiling
    takes it half a second. Options: https://onnxruntime.ai/docs/execution-providers/OpenVINO-ExecutionProvider.html
    """
    return OPENVINO, {
        "device_type": "CPU",
        # its own choice is 16 bits on processors that have them, and other answers than parity was measured with
        "precision": "FP32",
        "num_of_threads": str(threads),
    }


def engine_folder(cache: Path | None, model_sha256: str) -> Path:
    """Make and return the folder for one model's TensorRT engines; cache: None takes the user's cache.

    onnxruntime names an engine after the graph and not after its weights, so models must not share a folder.
    """
    root = cache or platformdirs.user_cache_path("finetune-service", appauthor=False) / "engines"
    folder = root / f"tensorrt-onnxruntime-{ort.__version__}" / model_sha256
    make_folder(folder)
    return folder


def obstacle_to(provider: Provider) -> str | None:
    """Say why a provider cannot work, as far as can be told without loading it; onnxruntime would print a page."""
    match provider:
        case "cuda":
            return _cuda_obstacle()
        case "tensorrt":
            return _tensorrt_obstacle()
        case "openvino":
            return _openvino_obstacle()
    return None


def _cuda_obstacle() -> str | None:
    if CUDA[0] not in ort.get_available_providers():
        return "this onnxruntime was built without CUDA (it takes the package onnxruntime-gpu, or the gpu image)"
    return None if _loads(DRIVER) else f"no NVIDIA driver ({DRIVER})"


def _tensorrt_obstacle() -> str | None:
    if TENSORRT not in ort.get_available_providers():
        return "this onnxruntime was built without TensorRT (it takes the package onnxruntime-gpu)"
    if not _loads(DRIVER):
        return f"no NVIDIA driver ({DRIVER})"
    # pip puts the libraries where no loader looks; this package's import loads them
    with contextlib.suppress(ImportError):
        importlib.import_module("tensorrt_libs")
    if not _loads(TENSORRT_LIBRARY):
        return f"no TensorRT ({TENSORRT_LIBRARY}; pip install 'tensorrt-cu13<11')"
    return None


def _openvino_obstacle() -> str | None:
    if OPENVINO not in ort.get_available_providers():
        return (
            "this onnxruntime was built without OpenVINO (it takes the package onnxruntime-openvino in an environment "
            "of its own: it and onnxruntime or onnxruntime-gpu overwrite each other)"
        )
    return None


def why_not_loaded(provider: str) -> str:
    """Say in the system's own words what keeps onnxruntime from loading a provider, which it tells its log only.

    To be asked after onnxruntime has tried: a provider that is loaded before it finds nothing of onnxruntime.
    """
    library = Path(ort.__file__).parent / "capi" / LIBRARIES[provider]
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        # the folder is of this machine, and of no help
        return str(error).replace(f"{library.parent}{os.sep}", "")
    return f"{library.name} loads, but gives no provider"


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
