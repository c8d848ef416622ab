"""Which photos there are, what each shows, which split it belongs to and why any of them is skipped."""

from __future__ import annotations

import csv
import hashlib
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields, replace
from functools import cached_property
from pathlib import Path

from finetune.data.listing import Listed, Listing, list_source
from finetune.data.splits import Split, assign_splits
from finetune.errors import FinetuneError, ImageError
from finetune.files import digest, replacing
from finetune.parallel import ordered_map
from finetune.preprocess import decode
from finetune.progress import track
from finetune.stores import Store, StoredFile

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Photo:
    """One file. path: relative to the root, with forward slashes; problem: why it is skipped, empty if it is used."""

    path: str
    label: str
    split: str
    sha256: str
    problem: str


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

    @cached_property
    def conflicts(self) -> tuple[tuple[Photo, Photo], ...]:
        """Pairs of files with the same content in different splits or classes."""
        first: dict[str, Photo] = {}
        pairs = []
        for photo in self.photos:
            if not photo.problem:
                other = first.setdefault(photo.sha256, photo)
                if (other.split, other.label) != (photo.split, photo.label):
                    pairs.append((other, photo))
        return tuple(pairs)

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
            writer.writerow([field.name for field in fields(Photo)])
            writer.writerows(astuple(photo) for photo in self.photos)

    @classmethod
    def load(cls, path: Path, store: Store) -> Manifest:
        with path.open(newline="", encoding="utf-8") as file:
            return cls(store, tuple(Photo(**row) for row in csv.DictReader(file)))


def read_manifest(root: Path | str, val_fraction: float, test_fraction: float, seed: int) -> Manifest:
    """Scan `root`, read every photo once, and assign the splits that its folders do not name.

    Raises FinetuneError where no classifier could be trained: no folder, no photos, one class, a class too small.
    """
    listing = list_source(str(root), "folder", None)
    labels = set(listing.classes)
    photos = inspect(listing)
    named = {photo.split for photo in photos if not photo.problem}
    if not named:
        raise FinetuneError(_nothing_found(root, photos))
    if len(labels) == 1:
        raise FinetuneError(f"{root} has one class, '{labels.pop()}'; a classifier needs two or more, a folder each")
    pool = {"", "train"}
    _require_enough(root, [photo for photo in photos if photo.split in pool], labels, has_val="val" in named)
    wanted: dict[Split, float] = {} if "val" in named else {"val": val_fraction}
    if "" in named:
        wanted["test"] = test_fraction
    free = [photo for photo in photos if photo.split in pool and not photo.problem]
    assigned = assign_splits([(photo.label, photo.sha256) for photo in free], wanted, seed)
    split_of = {photo.path: split for photo, split in zip(free, assigned, strict=True)}
    return Manifest(
        listing.store, tuple(replace(photo, split=split_of.get(photo.path, photo.split)) for photo in photos)
    )


def read_labelled(root: Path | str) -> Manifest:
    """Scan a labelled folder all of whose photos are to be evaluated: every split becomes test."""
    listing = list_source(str(root), "folder", None)
    photos = inspect(listing)
    if not any(not photo.problem for photo in photos):
        raise FinetuneError(_nothing_found(root, photos))
    return Manifest(listing.store, tuple(replace(photo, split="test") for photo in photos))


def inspect(listing: Listing) -> list[Photo]:
    """Read and decode every photo; fills sha256, and problem where a file cannot be used."""

    def opened(listed: Listed) -> Photo:
        photo = Photo(listed.path, listed.label, listed.split, sha256="", problem=listed.problem)
        if listed.problem:
            return photo
        try:
            raw = listing.store.read(listed.path)
        except OSError as error:
            return replace(photo, problem=f"cannot be read: {error.strerror}")
        checked = replace(photo, sha256=hashlib.sha256(raw).hexdigest())
        try:
            decode(raw)
        except ImageError as error:
            return replace(checked, problem=str(error))
        return checked

    return list(track(ordered_map(opened, listing.photos), "reading photos", total=len(listing.photos)))


def summarise_skipped(skipped: tuple[Photo, ...], at_most: int = 10) -> str:
    """Name the skipped files with their reasons, the first few in full."""
    lines = [f"skipped {len(skipped)} {'file' if len(skipped) == 1 else 'files'}:"]
    lines += [f"  {photo.path}: {photo.problem}" for photo in skipped[:at_most]]
    if len(skipped) > at_most:
        lines.append(f"  and {len(skipped) - at_most} more")
    return "\n".join(lines)


def summarise_conflicts(conflicts: tuple[tuple[Photo, Photo], ...]) -> str:
    """Say how many files repeat one of another split or class, with an example."""
    one, other = conflicts[0]
    count = "1 file is a copy" if len(conflicts) == 1 else f"{len(conflicts)} files are copies"
    return (
        f"{count} of a photo in another split or class ({one.path} and {other.path}): "
        "what is measured on them cannot be trusted"
    )


def _nothing_found(root: Path | str, photos: list[Photo]) -> str:
    if photos:
        listed = summarise_skipped(tuple(photos))
        return f"none of the {len(photos)} files in {root} is an image that can be read\n{listed}"
    return f"{root} has no photos in class folders; put them as {root}/CLASS/photo.jpg, one folder a class"


def _require_enough(root: Path | str, training: list[Photo], labels: set[str], has_val: bool) -> None:
    least, purpose = (1, "to train on") if has_val else (2, "one to train on and one to validate with")
    # copies count once: they all go into one split
    usable = Counter(label for label, _ in {(photo.label, photo.sha256) for photo in training if not photo.problem})
    for label in sorted(labels):
        if usable[label] < least:
            count = f"{usable[label]} usable photo{'' if usable[label] == 1 else 's'}"
            raise FinetuneError(
                f"class '{label}' in {root} has {count}; it needs at least {least}, {purpose}: "
                "add photos or move the folder away"
            )
