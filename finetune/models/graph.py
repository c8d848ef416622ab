"""From a module that takes uint8 photos to an ONNX graph whose batch dimension is dynamic."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from torch import nn

INPUT = "images"
# Of the example that is traced. With one photo, exporters take the batch dimension for a constant.
EXAMPLE_PHOTOS = 2


def quick_graph(module: nn.Module, image_size: int, output: str) -> bytes:
    """Return a graph to be used here and thrown away.

    The tracing exporter takes half a second where `lasting_graph` takes seven; a probe needs one graph an image size.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # it is deprecated in favour of the other, and notes every Python constant that it traces
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (_example(image_size),),
            buffer,  # type: ignore[arg-type]  # its annotation forgets what it takes
            input_names=[INPUT],
            output_names=[output],
            dynamic_axes={INPUT: {0: "photos"}, output: {0: "photos"}},
            dynamo=False,
        )
    return buffer.getvalue()


def lasting_graph(module: nn.Module, image_size: int, output: str) -> onnx.ModelProto:
    """Return the graph that goes into a bundle: one file's worth, weights inside."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with _plain_attention(module), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export speaks to those who develop it
        program = torch.onnx.export(
            module.eval(),
            (_example(image_size),),
            input_names=[INPUT],
            output_names=[output],
            # DYNAMIC raises where the batch dimension would be frozen; AUTO would freeze it in silence
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            dynamo=True,
            external_data=False,
            # what is dropped from the graph is chosen in finetune.export.folding
            optimize=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    proto = program.model_proto
    if not isinstance(proto, onnx.ModelProto):
        raise TypeError(f"torch.onnx.export returned a {type(proto).__name__}")
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "photos"
    return proto


@contextmanager
def _plain_attention(module: nn.Module) -> Iterator[None]:
    """Have attention computed step by step: the exporter takes torch's fused one in four dimensions only."""
    fused = [part for part in module.modules() if getattr(part, "fused_attn", False)]
    for part in fused:
        part.fused_attn = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for part in fused:
            part.fused_attn = True  # type: ignore[assignment]


def _example(image_size: int) -> torch.Tensor:
    return torch.zeros(EXAMPLE_PHOTOS, image_size, image_size, 3, dtype=torch.uint8)
