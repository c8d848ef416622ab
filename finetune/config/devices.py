"""Where a model runs, for every command that runs one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune.schema import Place

Device = Literal["auto", "cpu", "cuda", "tensorrt", "openvino"]
EngineCache = Annotated[
    Place | None,
    Field(description="folder for what tensorrt compiles once a model; null: in the user's cache"),
]
