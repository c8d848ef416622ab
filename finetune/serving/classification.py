"""The protocol's extension "classification": the best classes of an output, as Triton writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from finetune.serving.refusal import Refusal, quoted
from finetune.serving.tensors import Tensor


def best_classes(tensor: Tensor, count: int, labels: Sequence[str]) -> Tensor:
    """Return the best classes of (..., C) values as BYTES (..., count), best first, each "value:index:label".

    The value is written as by Triton, whose std::to_string has six digits after the point; equal values keep the
    order of their indices; a class without a label has only "value:index".
    """
    values = tensor.values
    if isinstance(values, list) or values.ndim == 0 or values.dtype.kind == "b":
        raise Refusal(400, f"output {quoted(tensor.name)}: classification takes numbers of at least one dimension")
    *outer, classes = values.shape
    shown = min(count, classes)
    rows = values.reshape(math.prod(outer), classes)
    orders = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :shown]
    best = np.take_along_axis(rows, orders, axis=1)
    elements = [
        _class(value, index, labels)
        for values_of_row, order in zip(best.tolist(), orders.tolist(), strict=True)
        for value, index in zip(values_of_row, order, strict=True)
    ]
    return Tensor(tensor.name, "BYTES", (*outer, shown), elements)


def _class(value: float, index: int, labels: Sequence[str]) -> bytes:
    number = f"{value:f}" if isinstance(value, float) else str(value)
    text = f"{number}:{index}:{labels[index]}" if index < len(labels) else f"{number}:{index}"
    # a label comes from a folder's name, which on Linux may be any bytes
    return text.encode(errors="backslashreplace")
