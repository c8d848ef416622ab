"""What the activations of a graph reach on photos."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.calibrate import create_calibrator

from finetune.export.photos import PhotoReader
from finetune.preprocess import Pixels


def largest_activations(proto: onnx.ModelProto, batches: Iterable[Pixels]) -> dict[str, float]:
    """Return the largest absolute value of every float tensor between two nodes, by the tensor's name."""
    with TemporaryDirectory() as name:
        source = Path(name) / "model.onnx"
        onnx.save(proto, source)
        augmented = str(Path(name) / "augmented.onnx")
        calibrator = create_calibrator(source, [], augmented, CalibrationMethod.MinMax, extra_options={})
        calibrator.collect_data(PhotoReader(batches))
        found = calibrator.compute_data()
    return {tensor: float(np.abs(data.range_value).max()) for tensor, data in found.items()}
