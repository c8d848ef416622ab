"""The one way from a source of photos to a manifest, and everything that was found on that way."""

from __future__ import annotations

import gc
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.config import SourceConfig
from finetune.data.findings import KINDS, Case, Finding, judge
from finetune.data.folders import ClassFrom
from finetune.data.listing import Listing, list_source
from finetune.data.look import Facts
from finetune.data.manifest import Manifest, Photo, summarise_skipped
from finetune.data.relations import Relations, relate
from finetune.data.scan import scan
from finetune.data.splits import Member, Shares, Split, assign_splits
from finetune.errors import FinetuneError, nearest

SPLITS: tuple[Split, ...] = ("train", "val", "test")
# Python's is 700. Among as many rows as there are photos its search for rings of garbage takes a third of the time.
OBJECTS_BETWEEN_COLLECTIONS = 100_000
# Largest over smallest class of the training photos.
HEAVY_IMBALANCE = 10


@dataclass(frozen=True)
class Audit:
    """A manifest and what was found; findings stand in the order of `KINDS`, the gravest first."""

    manifest: Manifest
    findings: tuple[Finding, ...]

    def of(self, kind: str) -> tuple[Case, ...]:
        return next((finding.cases for finding in self.findings if finding.kind == kind), ())

    def require_trainable(self) -> Manifest:
        """Return the manifest; raises FinetuneError where no classifier could be trained from it."""
        fatal = self.of("untrainable")
        if fatal:
            raise FinetuneError("\n".join(case.detail for case in fatal))
        return self.manifest


@contextmanager
def _seldom_collecting() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@_seldom_collecting()
def audit(config: SourceConfig, seed: int) -> Audit:
    """List, look at, judge and split every photo of a source; raises FinetuneError where there is none to look at."""
    listing = list_source(config.root, config.class_from, config.group_pattern)
    if config.folds and any(photo.split == "val" for photo in listing.photos):
        raise FinetuneError(
            f"data.folds={config.folds} chooses the validation photos, but {config.root} names its own; leave one out"
        )
    photos, facts = _look(listing, config)
    found: dict[str, list[Case]] = defaultdict(list)
    for note in listing.notes:
        found[note.kind].append(Case((), f"{note.path}: {note.message}"))
    for photo, seen in zip(photos, facts, strict=True):
        if photo.problem:
            found[seen.kind].append(Case((photo.path,), photo.problem))
        else:
            for kind, detail in judge(photo.path, seen):
                found[kind].append(Case((photo.path,), detail))
    relations = relate(photos, facts, config.near_duplicates)
    found.update(relations.found)
    photos = relations.photos
    if config.class_from != "none":
        found["untrainable"] = [Case((), message) for message in _untrainable(config.root, listing, photos)]
        if not found["untrainable"]:
            photos = split_photos(photos, relations, config, seed)
            found["untrainable"] = [Case((), message) for message in _without_validation(config, photos)]
        _judge_classes(listing.classes, photos, found)
    ordered = tuple(Finding(kind, tuple(found[kind])) for kind in KINDS if found.get(kind))
    return Audit(Manifest(listing.store, tuple(photos)), ordered)


def read_labelled(root: str, class_from: ClassFrom, split: Split | None = None) -> Manifest:
    """Look at a labelled source that is to be evaluated, one split of it or all: every photo becomes test."""
    listing = list_source(root, class_from, None)
    listed = [photo for photo in listing.photos if split in (None, photo.split)]
    if listing.photos and not listed:
        named = sorted({photo.split for photo in listing.photos if photo.split})
        there = f"it has {', '.join(named)}" if named else "it names no splits; without split= all of it is taken"
        raise FinetuneError(f"data.root={root} has no photos for split={split}: {there}")
    photos = [
        Photo(photo.path, photo.label, "test", seen.sha256, seen.problem, photo.group, seen.width, seen.height)
        for photo, seen in zip(listed, scan(listing.store, listed), strict=True)
    ]
    if all(photo.problem for photo in photos):
        raise FinetuneError(_nothing_found(root, listing, photos))
    return Manifest(listing.store, tuple(photos))


def _look(listing: Listing, config: SourceConfig) -> tuple[list[Photo], list[Facts]]:
    photos, facts = [], []
    for listed, seen in zip(listing.photos, scan(listing.store, listing.photos), strict=True):
        if seen.problem and config.on_problem == "error":
            raise FinetuneError(f"{listed.path} in {config.root}: {seen.problem} (data.on_problem=error stops here)")
        known = (listed.path, listed.label, listed.split, seen.sha256, seen.problem, listed.group)
        photos.append(Photo(*known, seen.width, seen.height))
        facts.append(seen)
    return photos, facts


def _untrainable(root: str, listing: Listing, photos: Sequence[Photo]) -> list[str]:
    """Say why nothing could be trained, before splits are made."""
    if all(photo.problem for photo in photos):
        return [_nothing_found(root, listing, photos)]
    if len(listing.classes) == 1:
        return [f"{root} has one class, '{listing.classes[0]}'; a classifier needs two or more, a folder each"]
    has_val = any(photo.split == "val" and not photo.problem for photo in photos)
    least, purpose = (1, "to train on") if has_val else (2, "one to train on and one to validate with")
    # copies count once: they all go into one split
    pool = {(p.label, p.sha256) for p in photos if p.split in ("", "train") and not p.problem}
    usable = Counter(label for label, _ in pool)
    return [
        f"class '{label}' in {root} has {usable[label]} usable photo{'' if usable[label] == 1 else 's'}; it needs at "
        f"least {least}, {purpose}: add photos or move the folder away"
        for label in listing.classes
        if usable[label] < least
    ]


def _nothing_found(root: str, listing: Listing, photos: Sequence[Photo]) -> str:
    if photos:
        listed = summarise_skipped(tuple(photos))
        return f"none of the {len(photos)} files in {root} is an image that can be read\n{listed}"
    outside = [f"\n{note.path} {note.message}" for note in listing.notes if note.kind == "outside_classes"]
    none = (
        " (photos without labels can be predicted: finetune predict; and checked: data.class_from=none)"
        if outside
        else ""
    )
    return (
        f"{root} has no photos in class folders; put them as {root}/CLASS/photo.jpg, one folder a class"
        f"{''.join(outside)}{none}"
    )


def split_photos(photos: Sequence[Photo], relations: Relations, config: SourceConfig, seed: int) -> list[Photo]:
    """Give every usable photo that has no place yet a split."""
    used = [number for number, photo in enumerate(photos) if not photo.problem]
    named = {photos[number].split for number in used}
    before = _splits_before(config.splits_from) if config.splits_from else {}
    # photos for train give the validation ones up where no other can
    open_ = {""} if named & {"", "val"} else {"", "train"}
    members = [
        Member(
            photos[number].label,
            relations.together[number],
            before.get(photos[number].sha256) or _fixed(photos[number].split, open_),
        )
        for number in used
    ]
    shares = Shares(
        val=config.val_fraction if "val" not in named else 0.0,
        test=config.test_fraction if "" in named else 0.0,
        fold=(config.fold, config.folds) if config.folds else None,
    )
    sharing = Counter(relations.together[number] for number in used)
    placed = list(photos)
    for number, split in zip(used, assign_splits(members, shares, seed), strict=True):
        photo, name = photos[number], relations.together[number]
        placed[number] = photo._replace(
            split=split,
            together=name if sharing[name] > 1 else "",
            split_from="source" if photo.split == split else "drawn",
        )
    return placed


def _fixed(split: str, open_: set[str]) -> Split | None:
    return next((known for known in SPLITS if known == split and split not in open_), None)


def _splits_before(place: Path) -> dict[str, Split]:
    """Return the split of every content in a former manifest."""
    path = place / "manifest.csv" if place.is_dir() else place
    if not path.is_file():
        beside = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
        raise FinetuneError(f"data.splits_from={place} is no run folder or manifest.csv{nearest(place.name, beside)}")
    try:
        former = Manifest.load(path, store=None)  # type: ignore[arg-type]  # only its rows are wanted
    except (TypeError, UnicodeDecodeError):
        raise FinetuneError(f"data.splits_from={place} is not a manifest.csv of `finetune train`") from None
    return {
        photo.sha256: split for photo in former.photos if (split := _fixed(photo.split, set())) and not photo.problem
    }


def _without_validation(config: SourceConfig, photos: Iterable[Photo]) -> list[str]:
    lacking = [split for split in ("train", "val") if not any(p.split == split and not p.problem for p in photos)]
    return [
        f"no photo of {config.root} is left for {split}: those that belong together (copies, near-duplicates, groups) "
        "make too few sets; add photos, or see data.group_pattern, data.near_duplicates and data.splits_from"
        for split in lacking
    ]


def _judge_classes(classes: Sequence[str], photos: Sequence[Photo], found: dict[str, list[Case]]) -> None:
    spelt: dict[str, list[str]] = defaultdict(list)
    for label in classes:
        spelt["".join(label.casefold().split())].append(label)
    found["class_names_alike"] = [
        Case((), " and ".join(f"'{name}'" for name in names)) for names in spelt.values() if len(names) > 1
    ]
    counts = Counter((photo.split, photo.label) for photo in photos if not photo.problem)
    for split in SPLITS:
        lacking = [label for label in classes if not counts[split, label]]
        if lacking and len(lacking) < len(classes):
            found["missing_in_split"].append(Case((), f"{split} has no photo of {', '.join(lacking)}"))
    sizes = {label: counts["train", label] for label in classes if counts["train", label]}
    if sizes and max(sizes.values()) >= HEAVY_IMBALANCE * min(sizes.values()):
        most, least = max(sizes, key=lambda label: sizes[label]), min(sizes, key=lambda label: sizes[label])
        found["imbalance"].append(Case((), f"'{most}' has {sizes[most]} training photos, '{least}' {sizes[least]}"))


def as_json(result: Audit, config: SourceConfig, seed: int) -> dict[str, Any]:
    """Return `audit.json`: counts by class and split, and every finding with its photos."""
    manifest = result.manifest
    counts = Counter((photo.label, photo.split) for photo in manifest.photos if not photo.problem)
    return {
        "root": manifest.store.address,
        "seed": seed,
        "files": len(manifest.photos),
        "used": len(manifest.photos) - len(manifest.skipped),
        "skipped": len(manifest.skipped),
        "classes": {label: {split: counts[label, split] for split in SPLITS} for label in manifest.classes if label},
        "data": config.model_dump(mode="json"),
        "findings": [
            {
                "kind": finding.kind,
                "severity": finding.severity,
                "title": KINDS[finding.kind].title,
                "advice": KINDS[finding.kind].advice,
                "count": len(finding.cases),
                "cases": [{"paths": list(case.paths), "detail": case.detail} for case in finding.cases],
            }
            for finding in result.findings
        ],
    }
