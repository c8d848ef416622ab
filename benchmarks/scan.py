"""How long `finetune check` needs for many photos: the first time, and again when nothing changed.

    python benchmarks/scan.py [files]

Copies sample photos (250 px JPEG of 20 KB), each made different by a comment in its header, into two class folders.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import conformal_clip_data
import yaml
from PIL import Image

from finetune.config import SourceConfig
from finetune.data.audit import audit
from finetune.data.scan import TOGETHER
from finetune.manual import conf_dir
from finetune.parallel import process_map, usable_cores


def write_photos(root: Path, files: int) -> None:
    """Write `files` different JPEG files; a comment segment behind the first two bytes makes them so."""
    originals = [path.read_bytes() for path in sorted(Path(conformal_clip_data.__file__).parent.rglob("*.jpg"))]
    for number in range(files):
        raw = originals[number % len(originals)]
        comment = str(number).encode()
        segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        path = root / f"class {number % 2}" / f"{number // 2 // 1000}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw[:2] + segment + raw[2:])


def timed(root: Path) -> float:
    values = yaml.safe_load((conf_dir() / "source.yaml").read_text())
    config = SourceConfig.model_validate({**values, "root": str(root)})
    started = time.perf_counter()
    audit(config, seed=0)
    return time.perf_counter() - started


def decode(paths: Sequence[Path]) -> None:
    """What no look can do without: Pillow decodes photos, in grey and at a quarter of their size, as the look does."""
    for path in paths:
        with Image.open(path) as image:
            image.draft("L", (56, 56))
            image.load()


def timed_decoding(root: Path) -> float:
    paths = sorted(root.rglob("*.jpg"))
    started = time.perf_counter()
    for _ in process_map(decode, [paths[k : k + TOGETHER] for k in range(0, len(paths), TOGETHER)]):
        pass
    return time.perf_counter() - started


def main() -> None:
    files = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "photos"
        write_photos(root, files)
        time.sleep(3)  # a file younger than two seconds is not trusted to stay as it is
        subprocess.run(["sync"], check=True)
        rows = [
            ("Pillow decodes them, nothing else", timed_decoding(root)),
            ("first time", timed(root)),
            ("again, nothing changed", timed(root)),
        ]
    print(f"{files:,} photos, {usable_cores()} cores")
    for name, seconds in rows:
        print(f"{name:<34}{seconds:8.1f} s{files / seconds:12,.0f} photos/s")
    print(f"largest memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
