"""Which photos there are, what each shows, which split it belongs to and why any of them is skipped."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from finetune.data.splits import Split
from finetune.files import digest, replacing
from finetune.stores import Store, StoredFile, readable


class Photo(NamedTuple):
    """One file. path: in its store, with forward slashes; problem: why it is skipped, empty if it is used.

    group: what photos share that must not stand in two splits; empty if nothing. width, height: px as stored.
    together: a name that a group, copies and near-duplicates share; empty for a photo that stands alone. split_from:
    "source" where a folder or table names the split, "drawn" where a hash chose it.
    """

    path: str
    label: str
    split: str
    sha256: str
    problem: str
    group: str = ""
    width: int = 0
    height: int = 0
    together: str = ""
    split_from: str = ""


@dataclass(frozen=True)
class Manifest:
    """Every file found in a store, in path order."""

    store: Store
    photos: tuple[Photo, ...]

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names in sorted order; a model's output k is the k-th."""
        return tuple(sorted({photo.label for photo in self.photos}))

    @cached_property
    def skipped(self) -> tuple[Photo, ...]:
        return tuple(photo for photo in self.photos if photo.problem)

    def of(self, *splits: Split) -> tuple[Photo, ...]:
        """Return the usable photos of some splits."""
        return tuple(photo for photo in self.photos if photo.split in splits and not photo.problem)

    def targets(self, photos: tuple[Photo, ...]) -> list[int]:
        """Return each photo's class number."""
        number = {label: k for k, label in enumerate(self.classes)}
        return [number[photo.label] for photo in photos]

    def files(self, photos: Iterable[Photo]) -> list[StoredFile]:
        return [StoredFile(self.store, photo.path) for photo in photos]

    def fingerprint(self) -> str:
        """Digest of every usable photo's content, label and split: the same data set has the same one anywhere."""
        used = (f"{photo.sha256} {photo.label} {photo.split}" for photo in self.photos if not photo.problem)
        return digest(*sorted(used))

    def save(self, path: Path) -> None:
        with replacing(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(Photo._fields)
            writer.writerows(self.photos)

    @classmethod
    def load(cls, path: Path, store: Store) -> Manifest:
        with path.open(newline="", encoding="utf-8") as file:
            return cls(store, tuple(_read_row(row) for row in csv.DictReader(file)))


def _read_row(row: dict[str, str]) -> Photo:
    photo = Photo(**row)  # type: ignore[arg-type]  # every cell is text
    return photo._replace(width=int(photo.width), height=int(photo.height))


def summarise_skipped(skipped: tuple[Photo, ...], at_most: int = 10) -> str:
    """Name the skipped files with their reasons, the first few in full."""
    lines = [f"skipped {len(skipped)} {'file' if len(skipped) == 1 else 'files'}:"]
    lines += [f"  {readable(photo.path)}: {photo.problem}" for photo in skipped[:at_most]]
    if len(skipped) > at_most:
        lines.append(f"  and {len(skipped) - at_most} more")
    return "\n".join(lines)
