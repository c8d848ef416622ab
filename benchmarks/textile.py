"""Accuracy against time on textile photos: `finetune train` in 1, 3 and 10 minutes, fastai, and a plain timm loop.

    python benchmarks/textile.py RESULTS.jsonl [WAYS] [PHOTOS_PER_CLASS] [SEEDS]

WAYS (the beginnings of their names), PHOTOS_PER_CLASS, SEEDS: separated by commas; all ways, 200 and 0,1,2,3,4 if left
out. All have the same backbone and weights (tf_efficientnet_lite0) and the same photos, drawn anew for each seed, 200
others of each class to test. Time is that of the whole command, imports and test photos included; nothing is kept from
one run to another. What is in RESULTS already is not run again. fastai: `pip install '.[peers]'`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conformal_clip_data import textile_simulated_root

from finetune.models.backbone import build_backbone

PEERS = Path(__file__).parent / "peers"
TEST_PHOTOS = 200

# From photos, weights, seed and the run folder to a command line.
Way = Callable[[Path, Path, int, Path], list[str]]


def ours(*words: str) -> Way:
    def command(photos: Path, weights: Path, seed: int, run: Path) -> list[str]:
        return ["-m", "finetune", "train", f"data.root={photos}", f"output={run}", f"seed={seed}", *words]

    return command


def peer(script: str, epochs: int) -> Way:
    def command(photos: Path, weights: Path, seed: int, run: Path) -> list[str]:
        return [str(PEERS / script), str(photos), str(weights), str(epochs), str(seed)]

    return command


WAYS: dict[str, Way] = {
    "finetune default": ours(),
    "finetune 1 minute": ours("budget_minutes=1"),
    "finetune 3 minutes": ours("budget_minutes=3"),
    "finetune 10 minutes": ours("budget_minutes=10"),
    "fastai fine_tune(1)": peer("fastai_fine_tune.py", 1),
    "fastai fine_tune(3)": peer("fastai_fine_tune.py", 3),
    "fastai fine_tune(5)": peer("fastai_fine_tune.py", 5),
    "timm loop 3 epochs": peer("timm_loop.py", 3),
    "timm loop 12 epochs": peer("timm_loop.py", 12),
}


def main() -> None:
    results = Path(sys.argv[1])
    ways = sys.argv[2].split(",") if len(sys.argv) > 2 else list(WAYS)
    counts = _numbers(3, "200")
    seeds = _numbers(4, "0,1,2,3,4")
    done = read(results)
    with tempfile.TemporaryDirectory() as folder:
        weights = save_weights(Path(folder, "weights.pth"))
        for count in counts:
            for seed in seeds:
                photos = lay_out(Path(folder, f"photos{count}-{seed}"), count, seed)
                for way in (name for name in WAYS if any(name.startswith(wanted) for wanted in ways)):
                    if (way, count, seed) not in done:
                        done[way, count, seed] = measure(WAYS[way], photos, weights, seed, Path(folder))
                        write(results, done)
                        print(way, count, seed, done[way, count, seed], flush=True)
    show(done)


def measure(way: Way, photos: Path, weights: Path, seed: int, folder: Path) -> dict[str, Any]:
    """Run one command; returns its test accuracy, seconds, and the most memory that its largest process took, in MB."""
    run, cache = folder / "run", folder / "cache"
    for path in (run, cache):
        shutil.rmtree(path, ignore_errors=True)
    command = [sys.executable, *way(photos, weights, seed, run)]
    started = time.monotonic()
    child = subprocess.Popen(
        command, env=os.environ | {"XDG_CACHE_HOME": str(cache)}, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    printed = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - started
    if status:
        raise SystemExit(f"{' '.join(command)} failed with {os.waitstatus_to_exitcode(status)}")
    told = json.loads((run / "result.json").read_text()) if run.is_dir() else json.loads(printed.splitlines()[-1])
    kept = {name: told[name] for name in ("test_accuracy", "image_size", "features", "freeze") if name in told}
    return {**kept, "seconds": round(seconds, 1), "megabytes": round(usage.ru_maxrss / 1024)}


def lay_out(root: Path, count: int, seed: int) -> Path:
    """Copy `count` photos of each class to root/train and TEST_PHOTOS others to root/test."""
    for folder in sorted(path for path in textile_simulated_root().iterdir() if path.is_dir()):
        photos = sorted(folder.glob("*.jpg"))
        random.Random(seed).shuffle(photos)
        for split, chosen in (("test", photos[:TEST_PHOTOS]), ("train", photos[TEST_PHOTOS : TEST_PHOTOS + count])):
            (root / split / folder.name).mkdir(parents=True)
            for photo in chosen:
                shutil.copyfile(photo, root / split / folder.name / photo.name)
    return root


def save_weights(path: Path) -> Path:
    """Save the sample package's weights for those that take files, with the classifier that timm expects in them."""
    import timm

    backbone, _ = build_backbone("tf_efficientnet_lite0", 224, "auto")
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    torch.save(state | backbone.network.state_dict(), path)
    return path


def read(path: Path) -> dict[tuple[str, int, int], dict[str, Any]]:
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {(row.pop("way"), row.pop("photos"), row.pop("seed")): row for row in rows}


def write(path: Path, done: dict[tuple[str, int, int], dict[str, Any]]) -> None:
    lines = [json.dumps({"way": way, "photos": count, "seed": seed, **row}) for (way, count, seed), row in done.items()]
    path.write_text("\n".join(lines) + "\n")


def show(done: dict[tuple[str, int, int], dict[str, Any]]) -> None:
    together: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for (way, count, _), row in sorted(done.items(), key=lambda item: list(WAYS).index(item[0][0])):
        together[count, way].append(row)
    print(f"{'photos':>6}  {'':<22}{'accuracy':>9}{'lowest':>8}{'highest':>9}{'seconds':>9}{'MB':>7}{'seeds':>7}")
    for (count, way), rows in sorted(together.items(), key=lambda item: item[0][0]):
        accuracies = [100 * row["test_accuracy"] for row in rows]
        # a row of a machine whose times are not to be compared has none
        seconds = [row["seconds"] for row in rows if "seconds" in row]
        took = f"{statistics.median(seconds):.0f}" if seconds else "-"
        memory = statistics.median(row["megabytes"] for row in rows)
        figures = f"{statistics.median(accuracies):>8.1f}%{min(accuracies):>7.1f}%{max(accuracies):>8.1f}%"
        print(f"{count:>6}  {way:<22}{figures}{took:>9}{memory:>7.0f}{len(rows):>7}")


def _numbers(place: int, otherwise: str) -> list[int]:
    return [int(word) for word in (sys.argv[place] if len(sys.argv) > place else otherwise).split(",")]


if __name__ == "__main__":
    main()
