"""How well `budget_minutes=` is kept: seconds of the whole command over seconds that were given.

    python benchmarks/budget.py [MINUTES] [SIZES] [CLASSES]

MINUTES, SIZES (data.image_size), CLASSES: separated by commas; 0.5,1,2 and auto,448,896 and 3,60 if left out. The
textile photos of the sample package, 900 to learn from and 600 to test; more than three classes are drawn at random, so
that fits take long and find little. Every feature is computed anew. Exit code 1 where a command took more than 1.1
times what it was given.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

from textile import lay_out

TOLERANCE = 1.1
PHOTOS, SEED, TEXTILE_CLASSES = 300, 0, 3


def main() -> int:
    minutes = [float(word) for word in _words(1, "0.5,1,2")]
    worst = 0.0
    print(f"{'classes':>7}{'minutes':>9}{'size':>6}{'seconds':>9}{'of limit':>10}{'accuracy':>10}  learned from")
    with tempfile.TemporaryDirectory() as folder:
        for classes in _words(3, "3,60"):
            photos = lay_out(Path(folder, classes), PHOTOS, SEED)
            if int(classes) != TEXTILE_CLASSES:
                draw_classes(photos, int(classes))
            for size, budget in product(_words(2, "auto,448,896"), minutes):
                print(f"{classes:>7}", end="")
                worst = max(worst, measure(photos, budget, size))
    print(f"at most {worst:.2f} of the limit ({TOLERANCE} is allowed)")
    return int(worst > TOLERANCE)


def draw_classes(photos: Path, classes: int) -> None:
    """Put every photo of train/ and test/ into one of so many folders, whatever it shows."""
    draw = random.Random(SEED)
    for split in ("train", "test"):
        for photo in sorted((photos / split).glob("*/*.jpg")):
            folder = photos / split / f"class{draw.randrange(classes)}"
            folder.mkdir(exist_ok=True)
            photo.rename(folder / f"{photo.parent.name}-{photo.name}")
    for emptied in (path for path in photos.glob("*/*") if not any(path.iterdir())):
        emptied.rmdir()


def measure(photos: Path, minutes: float, size: str) -> float:
    """Train once and print a row; returns the seconds that it took over those that it was given."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            f"data.root={photos}",
            f"output={folder}/run",
            f"probe.cache={folder}/cache",
            f"data.image_size={size}",
        ]
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "finetune", "train", *words, f"budget_minutes={minutes}"],
            capture_output=True,
            text=True,
        )
        seconds = time.monotonic() - started
        print(
            f"{minutes:>9g}{size:>6}{seconds:>9.1f}{seconds / (60 * minutes):>10.2f}{_outcome(Path(folder), done)}",
            flush=True,
        )
    return seconds / (60 * minutes)


def _outcome(folder: Path, done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode:
        return f"{'-':>10}  {done.stderr.splitlines()[-1]}"
    result = json.loads((folder / "run" / "result.json").read_text())
    learned, train = result["photos"]["train"] - result["left_out"], result["photos"]["train"]
    accuracy = f"{100 * result['test_accuracy']:>9.1f}%"
    return f"{accuracy}  {learned} of {train} photos, {result['freeze']} at {result['image_size']} px"


def _words(place: int, otherwise: str) -> list[str]:
    return (sys.argv[place] if len(sys.argv) > place else otherwise).split(",")


if __name__ == "__main__":
    sys.exit(main())
