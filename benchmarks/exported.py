"""Exported networks in onnxruntime over the same networks in torch, eager and channels_last: photos a second.

    python benchmarks/exported.py [BACKBONES]

BACKBONES: separated by commas; ten common ones if left out. Weights are random: they do not change the time. Both run
in turns in one process on all of its cores, at 224 px; torch keeps the memory that it freed
(finetune/models/allocator.py), which is worth up to 2.8 times to it. On a machine with CUDA, `--device cuda` compares
there: torch eager and compiled, float32 without TF32 and float16.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from finetune.export.graph import exported_graph
from finetune.models.allocator import keep_freed_memory
from finetune.models.backbone import build_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.runtime import open_session

BACKBONES = (
    "resnet18,resnet50,regnety_016,mobilenetv3_large_100,efficientnet_b0,tf_efficientnet_lite0,convnext_tiny,"
    "vit_tiny_patch16_224,vit_small_patch16_224,swin_tiny_patch4_window7_224"
)
IMAGE_SIZE = 224
BATCH_SIZES = {"cpu": (1, 8), "cuda": (1, 32)}
TURNS, SECONDS = 5, 1.0

Way = Callable[[np.ndarray], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="?", default=BACKBONES)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    keep_freed_memory()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    print(f"torch {torch.__version__} on {_processor(given.device)}")
    for name in given.backbones.split(","):
        torch.manual_seed(0)
        backbone, _ = build_backbone(name, IMAGE_SIZE, "none")
        network = Classifier(describe_backbone(name), backbone, "last", classes=10).eval()
        compare(name, network, given.device)


def compare(name: str, network: Classifier, device: str) -> None:
    session = open_session(exported_graph(network, IMAGE_SIZE)[0].SerializeToString(), device=device).ort  # type: ignore[arg-type]
    network = network.to(device).to(memory_format=torch.channels_last)
    ways: dict[str, Way] = {"onnxruntime": lambda images: session.run(None, {"images": images})[0]}
    ways["torch"] = _in_torch(network.probabilities, device, None)
    if device == "cuda":
        compiled = torch.compile(network.probabilities)
        ways["torch compiled"] = _in_torch(compiled, device, None)
        ways["torch float16"] = _in_torch(network.probabilities, device, torch.float16)
        ways["torch float16 compiled"] = _in_torch(compiled, device, torch.float16)
    for batch_size in BATCH_SIZES[device]:
        images = np.random.default_rng(0).integers(0, 256, (batch_size, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
        rates = in_turns(ways, images)
        answers = {way: np.asarray(run(images)) for way, run in ways.items()}
        told = [
            f"{way} {rate:.1f}/s ({rates['onnxruntime'] / rate:.2f} times, {_difference(answers, way):.0e})"
            for way, rate in rates.items()
        ]
        print(f"{name:<30} batch {batch_size:>2}  {', '.join(told)}", flush=True)


def in_turns(ways: dict[str, Way], images: np.ndarray) -> dict[str, float]:
    """Return photos a second of each, the median of turns that alternate."""
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for run in ways.values():
        run(images)
    for _ in range(TURNS):
        for way, run in ways.items():
            started, photos = time.perf_counter(), 0
            while time.perf_counter() - started < SECONDS:
                run(images)
                photos += len(images)
            rates[way].append(photos / (time.perf_counter() - started))
    return {way: statistics.median(found) for way, found in rates.items()}


def _in_torch(forward: Callable[[Tensor], Tensor], device: str, autocast: torch.dtype | None) -> Way:
    def run(images: np.ndarray) -> object:
        with torch.inference_mode(), torch.autocast(device, dtype=autocast, enabled=autocast is not None):
            return forward(torch.from_numpy(images).to(device)).float().cpu().numpy()

    return run


def _difference(answers: dict[str, np.ndarray], way: str) -> float:
    return float(np.abs(answers[way] - answers["onnxruntime"]).max())


def _processor(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU cores"


if __name__ == "__main__":
    main()
