"""How much faster torch evaluates on a CPU when freed memory stays with the process.

python benchmarks/cpu_memory.py [IMAGE_SIZE]

Each setting runs in a process of its own, in turns, several times; the figure is the ratio of the best rates.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

TURNS = 3
BATCHES = (1, 4, 8)
PHOTOS = 32


def measure(kept: bool, image_size: int) -> dict[int, float]:
    """Return photos a second for each batch size."""
    import timm
    import torch

    from finetune.models.allocator import keep_freed_memory

    if kept:
        keep_freed_memory()
    network = timm.create_model("tf_efficientnet_lite0").eval().to(memory_format=torch.channels_last)
    rates = {}
    with torch.inference_mode():
        for batch in BATCHES:
            images = torch.rand(batch, 3, image_size, image_size).to(memory_format=torch.channels_last)
            network(images)
            started = time.perf_counter()
            for _ in range(PHOTOS // batch):
                network(images)
            rates[batch] = PHOTOS / (time.perf_counter() - started)
    return rates


def main() -> None:
    image_size = int(sys.argv[1]) if len(sys.argv) > 1 else 448
    best: dict[bool, dict[int, float]] = {False: {}, True: {}}
    for _ in range(TURNS):
        for kept in (False, True):
            command = [sys.executable, __file__, "--one", str(int(kept)), str(image_size)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            for batch, rate in json.loads(printed).items():
                best[kept][int(batch)] = max(rate, best[kept].get(int(batch), 0.0))
    print("photos at a time   returned   kept   ratio")
    for batch in BATCHES:
        returned, kept_rate = best[False][batch], best[True][batch]
        print(f"{batch:>16}{returned:>9.1f}/s{kept_rate:>6.1f}/s{kept_rate / returned:>7.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2] == "1", int(sys.argv[3]))))
    else:
        main()
