"""The Open Inference Protocol, version 2: what it says of a model, and how it asks one, whatever carries it."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

import finetune
from finetune.bundle import INPUT, OUTPUT
from finetune.config import LimitsConfig
from finetune.errors import ImageError
from finetune.serving.asking import Facts, Row, ask
from finetune.serving.batcher import Probabilities
from finetune.serving.bodies import Patience
from finetune.serving.live import LiveModel
from finetune.serving.protocol import InferRequest
from finetune.serving.refusal import Refusal
from finetune.serving.repository import Repository
from finetune.serving.tensors import Tensor

ENCODED = "encoded_images"
EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")


async def infer(
    model: LiveModel, asked: InferRequest, limits: LimitsConfig, patience: Patience, facts: Facts
) -> Mapping[str, Probabilities]:
    """Return a model's outputs by name; raises Refusal 400, 413, 503 or 504, ClientLeft, or what the model raises.

    facts: takes what is worth a line in the log.
    """
    # an unknown output is refused before the model runs
    asked.wanted((OUTPUT,))
    photos, answering = _answering(model, asked, limits.photos)
    if asked.timeout_s is not None:
        patience.shorten(asked.timeout_s)
    rows = await ask(model, photos, answering, patience, facts)
    return {OUTPUT: np.stack(_require_readable(rows))}


def describe_server(repository: Repository) -> dict[str, Any]:
    """Return the server's metadata, and where each model runs and why there."""
    models = [model.describe() for model in repository.everything]
    devices = [{key: model[key] for key in ("name", "version", "provider", "why")} for model in models]
    return {
        "name": "finetune-service",
        "version": finetune.__version__,
        "extensions": EXTENSIONS,
        "parameters": {"models": devices},
    }


def describe_model(model: LiveModel, answering: Sequence[LiveModel]) -> dict[str, Any]:
    """Return a model's metadata: its inputs, either of which is given, and its output.

    answering: all that the name asked for may be answered by.
    """
    side_px = model.predictor.preprocessing.image_size
    return {
        "name": model.name,
        "versions": [other.version for other in answering if other.name == model.name],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": INPUT, "datatype": "UINT8", "shape": [-1, side_px, side_px, 3]},
            {"name": ENCODED, "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, len(model.predictor.labels)]}],
    }


def require_no_content(parameters: Iterable[str]) -> None:
    """Raise Refusal 400 where a `load` brings a model's configuration or files."""
    if any(name == "config" or name.startswith("file:") for name in parameters):
        raise Refusal(400, "a model's configuration and files are what lies in the repository; send none")


def configuration(model: LiveModel, answering: Sequence[LiveModel]) -> dict[str, Any]:
    """Return a model as Triton's ModelConfig; answering: as `describe_model` has it."""
    side_px = model.predictor.preprocessing.image_size
    decoded = {"name": INPUT, "data_type": "TYPE_UINT8", "format": "FORMAT_NHWC", "dims": [side_px, side_px, 3]}
    encoded = {"name": ENCODED, "data_type": "TYPE_STRING", "format": "FORMAT_NONE", "dims": [1]}
    return {
        "name": model.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": {"specific": {"versions": [int(m.version) for m in answering if m.name == model.name]}},
        "max_batch_size": model.request_photos,
        "input": [{**decoded, "optional": True}, {**encoded, "optional": True}],
        "output": [
            {
                "name": OUTPUT,
                "data_type": "TYPE_FP32",
                "dims": [len(model.predictor.labels)],
                "label_filename": "labels.txt",
            }
        ],
        "dynamic_batching": {"max_queue_delay_microseconds": round(1000 * model.delay_ms)},
    }


def _answering(model: LiveModel, asked: InferRequest, most: int) -> tuple[int, Awaitable[list[Row]]]:
    """Return the number of photos of a request, and what will answer them; raises Refusal 400 or 413."""
    if len(asked.inputs) != 1 or not set(asked.inputs) <= {INPUT, ENCODED}:
        raise Refusal(400, f"give one input: {INPUT} (UINT8 [N, H, W, 3]) or {ENCODED} (BYTES [N])")
    (tensor,) = asked.inputs.values()
    photos = tensor.shape[0] if tensor.shape else 0
    if photos < 1:
        raise Refusal(400, f"{tensor.name} has no photo")
    if photos > most:
        raise Refusal(413, f"too many photos in one request; at most {most} are taken")
    if tensor.name == INPUT:
        return photos, model.run(_decoded(tensor, model.predictor.preprocessing.image_size))
    if tensor.datatype != "BYTES" or tensor.shape[1:] not in ((), (1,)):
        raise Refusal(400, f"{ENCODED} must be BYTES [N], it is {tensor.datatype} {list(tensor.shape)}")
    return photos, model.classify(list(tensor.values))


def _decoded(tensor: Tensor, side_px: int) -> Any:
    if tensor.datatype != "UINT8" or tensor.shape[1:] != (side_px, side_px, 3):
        raise Refusal(
            400, f"{INPUT} must be UINT8 [N, {side_px}, {side_px}, 3], it is {tensor.datatype} {list(tensor.shape)}"
        )
    return tensor.values


def _require_readable(rows: list[Row]) -> list[Any]:
    errors = [f"photo {number}: {row}" for number, row in enumerate(rows) if isinstance(row, ImageError)]
    if errors:
        raise Refusal(400, "; ".join(errors))
    return rows
