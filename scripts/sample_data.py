"""Lay out the sample photos as a person would have them: OUTPUT/{train,test}/CLASS/*.jpg.

python scripts/sample_data.py OUTPUT [PHOTOS_PER_CLASS_AND_SPLIT]

The photos are those of the PyPI package conformal-clip-data (MIT): simulated textile, with defects that are local,
global or absent. Which of them are taken is decided by seed 0.
"""

from __future__ import annotations

import argparse
import random
import shutil
from pathlib import Path

from conformal_clip_data import textile_simulated_root

SEED = 0


def write_sample(output: Path, per_class: int = 200) -> None:
    """Copy `per_class` photos of each class into train/ and as many others into test/, unless that has been done."""
    complete = output / ".complete"
    if complete.is_file() and complete.read_text() == str(per_class):
        return
    if output.exists() and not complete.is_file() and any(output.iterdir()):
        raise SystemExit(f"{output} holds other files; name a new folder")
    shutil.rmtree(output, ignore_errors=True)
    shuffle = random.Random(SEED)
    for folder in sorted(path for path in textile_simulated_root().iterdir() if path.is_dir()):
        photos = sorted(folder.glob("*.jpg"))
        shuffle.shuffle(photos)
        for split, chosen in (("train", photos[:per_class]), ("test", photos[per_class : 2 * per_class])):
            target = output / split / folder.name
            target.mkdir(parents=True)
            for photo in chosen:
                shutil.copyfile(photo, target / photo.name)
    complete.write_text(str(per_class))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("per_class", type=int, nargs="?", default=200)
    given = parser.parse_args()
    write_sample(given.output, given.per_class)
