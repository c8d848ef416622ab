"""How long `finetune export` takes, from command to verified bundle, on 600 test photos at 224 px.

python benchmarks/export_time.py [TURNS]

Of tf_efficientnet_lite0 with its ImageNet weights and resnet50 without any (none can be had offline; they change no
time), each with a head on 600 textile photos. Seconds are those of the whole command, imports included; beside them
those that torch alone takes for the same photos, which the verification cannot do without.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from textile import lay_out

from finetune.export.parity import torch_probabilities
from finetune.run import FinishedRun

BACKBONES = {"tf_efficientnet_lite0": "auto", "resnet50": "none"}
PHOTOS = 200


def main() -> None:
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = lay_out(folder / "photos", PHOTOS, seed=0)
        for backbone, weights in BACKBONES.items():
            run = folder / backbone
            words = [f"data.root={photos}", f"output={run}", f"model.backbone={backbone}", f"model.weights={weights}"]
            finetune(folder, "train", *words, "data.image_size=224")
            seconds = [exported(folder, run) for _ in range(turns)]
            parity = json.loads((folder / "models" / "timed" / "1" / "bundle.json").read_text())["parity"][0]
            print(
                f"{backbone}: {statistics.median(seconds):.1f} s of {len(seconds)} turns ({min(seconds):.1f} to "
                f"{max(seconds):.1f}), torch alone {in_torch(run):.1f} s; {parity['photos']} photos, difference "
                f"{parity['max_difference']:.0e}",
                flush=True,
            )


def exported(folder: Path, run: Path) -> float:
    shutil.rmtree(folder / "models", ignore_errors=True)
    started = time.monotonic()
    finetune(folder, "export", f"run={run}", f"output={folder / 'models'}", "name=timed")
    return time.monotonic() - started


def finetune(folder: Path, *words: str) -> None:
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    subprocess.run([sys.executable, "-m", "finetune", *words], env=environment, check=True, capture_output=True)


def in_torch(run: Path) -> float:
    finished = FinishedRun(run)
    files = finished.manifest.files(finished.manifest.of("test"))
    network = finished.classifier()
    started = time.monotonic()
    torch_probabilities(network, finished.result.preprocessing, files)
    return time.monotonic() - started


if __name__ == "__main__":
    main()
