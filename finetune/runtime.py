"""onnxruntime sessions that run where they say they run."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# It reports its use to its makers unless told not to; what is classified here concerns nobody else.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

from finetune.errors import FinetuneError
from finetune.parallel import usable_cores

log = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda"]

CUDA = (
    "CUDAExecutionProvider",
    {
        # exhaustive search would stall the first request of every new batch size for a second
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
        "arena_extend_strategy": "kSameAsRequested",
    },
)
DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
CPU: tuple[str, dict[str, str]] = ("CPUExecutionProvider", {})


@dataclass(frozen=True)
class Session:
    """An open model. provider: "cuda" or "cpu"; why: how that came to be, for logs and status pages."""

    ort: Any
    provider: Literal["cuda", "cpu"]
    why: str


def open_session(model: Path | bytes, device: Device, threads: int | None = None) -> Session:
    """Open a single-file ONNX model on a device; "cuda" raises FinetuneError where it cannot, "auto" falls to the CPU.

    threads: on the CPU; None takes the cores this process may use.
    """
    if device == "cpu":
        return _on_cpu(model, threads, "device=cpu")
    obstacle = _cuda_obstacle()
    if obstacle is None:
        try:
            return _on_cuda(model)
        except Exception as error:  # onnxruntime raises its own types and RuntimeError, by the failing layer
            obstacle = str(error).strip().splitlines()[0]
    if device == "cuda":
        raise FinetuneError(f"device=cuda does not work here: {obstacle}; mend that, or use device=cpu")
    return _on_cpu(model, threads, f"no CUDA: {obstacle}")


def _on_cpu(model: Path | bytes, threads: int | None, why: str) -> Session:
    options = _options()
    options.intra_op_num_threads = threads or usable_cores()
    return Session(ort.InferenceSession(_source(model), options, providers=[CPU]), "cpu", why)


def _on_cuda(model: Path | bytes) -> Session:
    ort.preload_dlls()
    # without enable_fallback=0 a failing run would go on, slowly and in silence, on the CPU
    session = ort.InferenceSession(_source(model), _options(), providers=[CUDA, CPU], enable_fallback=0)
    if session.get_providers()[0] != CUDA[0]:
        raise FinetuneError("onnxruntime could not load its CUDA libraries (driver, CUDA 13 or cuDNN is missing)")
    return Session(session, "cuda", "CUDA works")


def _cuda_obstacle() -> str | None:
    """Say why CUDA cannot work, as far as can be told without loading it; onnxruntime would print a page of errors."""
    if CUDA[0] not in ort.get_available_providers():
        return "this onnxruntime was built without CUDA (it takes the package onnxruntime-gpu, or the gpu image)"
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return f"no NVIDIA driver ({DRIVER})"
    return None


def _options() -> Any:
    options = ort.SessionOptions()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def _source(model: Path | bytes) -> str | bytes:
    return str(model) if isinstance(model, Path) else model
