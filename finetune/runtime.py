"""onnxruntime sessions that run where they say they run."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetune.cores import CpuSession, session_options
from finetune.errors import FinetuneError, first_line
from finetune.files import sha256
from finetune.parallel import usable_cores
from finetune.providers import (
    CPU,
    CUDA,
    Entry,
    Provider,
    cuda,
    engine_folder,
    obstacle_to,
    openvino,
    tensorrt,
    why_not_loaded,
)

# after finetune.providers, which switches its telemetry off
import onnxruntime as ort  # isort: skip

Device = Literal["auto", "cpu", "cuda", "tensorrt", "openvino"]


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """An open model. provider: where it runs; why: how that came to be, for logs and status pages.

    ort: has `run` as `onnxruntime.InferenceSession` has it.
    """

    ort: Any
    provider: Provider
    why: str


# Raises what keeps a session from answering.
Trial = Callable[[Session], None]


def open_session(
    model: Path | bytes,
    device: Device,
    threads: int | None = None,
    cache: Path | None = None,
    gpu_memory_mb: int | None = None,
    trial: Trial = lambda _: None,
) -> Session:
    """Open a single-file ONNX model on a device.

    Only "auto" may choose, and takes CUDA or else the CPU; a named device raises FinetuneError where it cannot be used.
    threads: on the CPU; None takes the cores this process may use. cache: folder for the engines that
    "tensorrt" compiles, minutes the first time; None takes the user's cache. gpu_memory_mb: the most that
    CUDA's arena may take. trial: runs the session, as a library that is missing and memory that is short show then
    only; a device on which it raises is one that does not work.
    """
    match device:
        case "cpu":
            return _on_cpu(model, threads, "device=cpu", trial)
        case "tensorrt":
            return _on_tensorrt(model, cache, gpu_memory_mb, trial)
        case "openvino":
            return _on_openvino(model, threads, trial)
    obstacle = obstacle_to("cuda")
    if obstacle is None:
        try:
            session = Session(_open_on(model, [cuda(gpu_memory_mb), CPU], session_options()), "cuda", "CUDA works")
            trial(session)
            return session
        except Exception as error:  # onnxruntime raises its own types and RuntimeError, by the failing layer
            obstacle = first_line(error)
            if device == "auto":
                log.warning("device=auto takes the CPU, though there is an NVIDIA driver: %s", obstacle)
    if device == "cuda":
        raise FinetuneError(f"device=cuda does not work here: {obstacle}; mend that, or use device=cpu")
    # of a failure, onnxruntime goes on with the names of machines and files, which are nobody's business at /models
    return _on_cpu(model, threads, f"no CUDA: {obstacle.partition(' ; ')[0]}", trial)


def _on_cpu(model: Path | bytes, threads: int | None, why: str, trial: Trial) -> Session:
    session = Session(CpuSession(_source(model), threads or usable_cores()), "cpu", why)
    trial(session)
    return session


def _on_tensorrt(model: Path | bytes, cache: Path | None, gpu_memory_mb: int | None, trial: Trial) -> Session:
    _require("tensorrt")
    folder = engine_folder(cache, _sha256(model))
    log.info("TensorRT's engines are in %s", folder)
    name, shape = _input(model)
    try:
        # TensorRT leaves what it cannot compile to CUDA, on the same GPU
        opened = _open_on(model, [tensorrt(name, shape, folder), cuda(gpu_memory_mb), CPU], session_options())
        session = Session(opened, "tensorrt", "TensorRT runs what it can, CUDA the rest")
        trial(session)
    except Exception as error:
        raise _refusal("tensorrt", first_line(error)) from None
    return session


def _on_openvino(model: Path | bytes, threads: int | None, trial: Trial) -> Session:
    _require("openvino")
    options = session_options()
    # what OpenVINO cannot run would else go to onnxruntime's own kernels
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        opened = _open_on(model, [openvino(threads or usable_cores())], options)
        session = Session(opened, "openvino", "OpenVINO runs all of it")
        trial(session)
    except Exception as error:
        raise _refusal("openvino", first_line(error)) from None
    return session


def _open_on(model: Path | bytes, entries: list[Entry], options: Any) -> Any:
    """Open a session whose first provider is the first entry; raises where onnxruntime went on without it."""
    wanted = entries[0][0]
    if any(name == CUDA[0] for name, _ in entries):
        ort.preload_dlls()
    # without enable_fallback=0 a failing run would go on, slowly and in silence, on the CPU
    session = ort.InferenceSession(_source(model), options, providers=entries, enable_fallback=0)
    if session.get_providers()[0] != wanted:
        raise FinetuneError(f"onnxruntime went on without its {wanted}: {why_not_loaded(wanted)}")
    return session


def _require(provider: Provider) -> None:
    obstacle = obstacle_to(provider)
    if obstacle is not None:
        raise _refusal(provider, obstacle)


def _refusal(provider: Provider, obstacle: str) -> FinetuneError:
    return FinetuneError(f"device={provider} does not work here: {obstacle}; mend that, or use device=auto")


def _input(model: Path | bytes) -> tuple[str, tuple[int, ...]]:
    """Return the name and the shape, without the batch, of a model's only input."""
    options = session_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    (entry,) = ort.InferenceSession(_source(model), options, providers=[CPU]).get_inputs()
    return entry.name, tuple(entry.shape[1:])


def _source(model: Path | bytes) -> str | bytes:
    return str(model) if isinstance(model, Path) else model


def _sha256(model: Path | bytes) -> str:
    return sha256(model) if isinstance(model, Path) else hashlib.sha256(model).hexdigest()
