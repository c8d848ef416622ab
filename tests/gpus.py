"""A GPU for machines without one: the processor's sessions, which fail as CUDA does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

import finetune.runtime as runtime_module
from finetune.cores import session_options
from finetune.providers import CPU

OUT_OF_MEMORY = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 3221225472\n"
    "and more of no interest"
)


class Session:
    """before: called before each run; raises what the GPU cannot do."""

    def __init__(self, model: str | bytes, before: Callable[[], object]) -> None:
        self._session = ort.InferenceSession(model, session_options(), providers=[CPU])
        self._before = before

    def run(self, outputs: Sequence[str] | None, inputs: Mapping[str, Any]) -> Any:
        self._before()
        return self._session.run(outputs, inputs)


def install(
    monkeypatch: pytest.MonkeyPatch,
    before_run: Callable[[], object] = lambda: None,
    before_open: Callable[[], object] = lambda: None,
) -> None:
    """Let this process find a GPU, on which sessions open and run unless these raise."""

    def open_on(model: Path | bytes, *_: object) -> Session:
        before_open()
        return Session(runtime_module._source(model), before_run)

    monkeypatch.setattr(runtime_module, "obstacle_to", lambda provider: None)
    monkeypatch.setattr(runtime_module, "_open_on", open_on)


def out_of_memory() -> None:
    raise RuntimeError(OUT_OF_MEMORY)
