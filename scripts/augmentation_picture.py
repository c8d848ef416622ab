"""Draw docs/augment.png: what `finetune check augment.preview=` writes, of three photos that come with scikit-image.

python scripts/augmentation_picture.py OUTPUT.png [AUGMENT]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import skimage.data
from PIL import Image, ImageOps

from finetune.cli import run

# Public domain and CC0; they lie in the package itself.
PHOTOS = {"cat": "chelsea.png", "coffee": "coffee.png", "rocket": "rocket.jpg"}
COLOURS = 256


def draw(output: Path, augment: str = "strong") -> None:
    """Let `finetune check` draw the photos as classes of one photo each, and save with few colours, as a small file."""
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "val"):
            for label, name in PHOTOS.items():
                place = Path(folder, "photos", split, label)
                place.mkdir(parents=True)
                photo = Image.open(Path(skimage.data.__file__).parent / name)
                # a copy of a training photo may not validate; its mirror image is another photo
                (photo if split == "train" else ImageOps.mirror(photo)).save(place / Path(name).with_suffix(".png"))
        sheet = Path(folder, "sheet.png")
        words = ["check", f"data.root={folder}/photos", f"augment={augment}", f"augment.preview={sheet}"]
        if run(words) != 0:
            sys.exit(1)
        with Image.open(sheet) as image:
            image.quantize(COLOURS, kmeans=1).save(output, optimize=True)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), *sys.argv[2:])
