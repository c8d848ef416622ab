"""What a whole `finetune train` takes, over one plain onnxruntime pass over the same photos at the size it chose.

    python benchmarks/probe_cost.py [TIMES]

600 textile photos to train on and 600 to test, as benchmarks/textile.py lays them out. The pass: each photo is decoded
and resized once, and goes once through timm's own network (tf_efficientnet_lite0), in the batches and with the threads
that are fastest here; imports and the making of the graph are not counted. The command is counted whole, from its start
to its end, with a search over three sizes and nothing kept from before. In turns, TIMES (3) of each.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from textile import lay_out
from torch import Tensor, nn

from finetune.models.backbone import build_backbone, describe_backbone
from finetune.models.classifier import Normalise
from finetune.models.graph import INPUT, quick_graph
from finetune.parallel import ordered_map
from finetune.preprocess import Preprocessing, load_pixels
from finetune.run import FinishedRun
from finetune.runtime import open_session
from finetune.stores import StoredFile, open_store

BACKBONE, BATCH = "tf_efficientnet_lite0", 4


class Plain(nn.Module):
    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.normalise = Normalise(describe_backbone(BACKBONE))
        self.network, _ = build_backbone(BACKBONE, image_size, "auto")

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(self.normalise(images), "last")
        return features


def pass_s(photos: Path, image_size: int) -> float:
    """Return the seconds of one pass over every photo."""
    store = open_store(str(photos))
    files = [StoredFile(store, path.relative_to(photos).as_posix()) for path in sorted(photos.rglob("*.jpg"))]
    preprocessing = Preprocessing(image_size=image_size, fit="squash", alpha_over="white")
    with torch.no_grad():
        session = open_session(quick_graph(Plain(image_size), image_size, "features"), device="cpu").ort
    session.run(None, {INPUT: np.zeros((BATCH, image_size, image_size, 3), np.uint8)})
    started = time.monotonic()
    pixels = iter(ordered_map(lambda file: load_pixels(file, preprocessing), files))
    while batch := list(islice(pixels, BATCH)):
        session.run(None, {INPUT: np.stack(batch)})
    return time.monotonic() - started


def command_s(photos: Path, folder: Path) -> tuple[float, int]:
    """Return the seconds that the whole command takes, and the size it chose."""
    run, cache = folder / "run", folder / "cache"
    for path in (run, cache):
        shutil.rmtree(path, ignore_errors=True)
    words = [sys.executable, "-m", "finetune", "train", f"data.root={photos}", f"output={run}"]
    started = time.monotonic()
    subprocess.run(words, env=os.environ | {"XDG_CACHE_HOME": str(cache)}, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started, FinishedRun(run).result.image_size


def main() -> None:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    commands, passes = [], []
    with tempfile.TemporaryDirectory() as name:
        photos = lay_out(Path(name, "photos"), 200, 0)
        for _ in range(times):
            seconds, image_size = command_s(photos, Path(name))
            commands.append(seconds)
            passes.append(pass_s(photos, image_size))
            print(f"{image_size} px: command {commands[-1]:.1f} s, one pass {passes[-1]:.1f} s", flush=True)
    ratios = [command / plain for command, plain in zip(commands, passes, strict=True)]
    print(
        f"command {statistics.median(commands):.1f} s, one pass {statistics.median(passes):.1f} s, "
        f"{statistics.median(ratios):.2f} times as long"
    )


if __name__ == "__main__":
    main()
