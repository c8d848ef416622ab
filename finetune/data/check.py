"""`finetune check`: what training would use, skip and refuse."""

from __future__ import annotations

from collections import Counter

from finetune.config import CheckConfig
from finetune.data.manifest import read_manifest, summarise_conflicts, summarise_skipped
from finetune.data.splits import Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def main(config: CheckConfig) -> str:
    """Return the table of photos by class and split, and what is wrong with the others."""
    data = config.data
    manifest = read_manifest(data.root, data.val_fraction, data.test_fraction, config.seed)
    counts = Counter((photo.label, photo.split) for photo in manifest.photos if not photo.problem)
    width = max(len("class"), *(len(label) for label in manifest.classes))
    lines = [f"{'class':<{width}}" + "".join(f"{split:>8}" for split in SPLITS)]
    lines += [
        f"{label:<{width}}" + "".join(f"{counts[label, split]:>8}" for split in SPLITS) for label in manifest.classes
    ]
    lines.append(f"{'all':<{width}}" + "".join(f"{len(manifest.of(split)):>8}" for split in SPLITS))
    lines.append("")
    every_one = len(manifest.skipped)
    lines.append(summarise_skipped(manifest.skipped, every_one) if every_one else "every file can be read")
    if manifest.conflicts:
        lines.append(summarise_conflicts(manifest.conflicts))
    return "\n".join(lines)
