"""What storing weights as float16, and optimising ahead, do to an exported file, on a CPU.

    python benchmarks/file_size.py [TURNS]

tf_efficientnet_lite0 and resnet50 at 224 px. The time to open a session and that of a run, TURNS (15) of each in turn;
differences of probabilities over 200 textile photos. `layout`: the level above `optimise_ahead`, for this processor
only.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import graphs
import numpy as np
import onnxruntime as ort

from finetune.export.storage import optimise_ahead, store_as_half
from finetune.models.graph import INPUT
from finetune.runtime import open_session


def with_layout(model: bytes) -> bytes:
    """Return what onnxruntime runs on this very processor."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # it warns that the file fits this processor only
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return path.read_bytes()


def opening_s(files: dict[str, bytes], turns: int) -> dict[str, float]:
    """Return the median seconds to open each file."""
    seconds: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(turns):
        for name, model in files.items():
            started = time.perf_counter()
            open_session(model, "cpu")
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    images = graphs.photos(200)
    for name in graphs.NETWORKS:
        proto = graphs.export(name)
        files = {key: each.SerializeToString() for key, each in (
            ("as exported", proto), ("float16", store_as_half(proto)), ("optimised ahead", optimise_ahead(proto)),
        )}  # fmt: skip
        files["layout"] = with_layout(files["as exported"])
        opening = opening_s(files, turns)
        sessions = {key: open_session(model, "cpu").ort for key, model in files.items()}
        rates = graphs.relative_rates(sessions, images[:4], turns)
        answers = {
            key: np.concatenate([session.run(None, {INPUT: images[at : at + 4]})[0] for at in range(0, len(images), 4)])
            for key, session in sessions.items()
        }
        for key, model in files.items():
            gap = np.abs(answers[key] - answers["as exported"]).max()
            print(
                f"{name:<24}{key:<18}{len(model) / 1e6:>8.2f} MB, opens in {1000 * opening[key]:>6.0f} ms, "
                f"{rates[key]:.2f} times as fast, largest difference {gap:.1g}",
                flush=True,
            )


if __name__ == "__main__":
    main()
