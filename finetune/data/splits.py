"""Seeded splits that stay where they are as a folder grows.

A photo's split is decided by a hash of the seed and of its content (or of what it belongs together with) and by nothing
else, so photos that come or go move none but those that they belong together with. The price: a class gives its
fraction on average, not to the photo. Of n photos, n * fraction +- 2 * sqrt(n * fraction * (1 - fraction)) fall into a
split, 95 times in 100.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from finetune.files import digest

Split = Literal["train", "val", "test"]
# Where parts of one set are fixed to several splits, its other photos go to the one that is least harmed.
PRECEDENCE: tuple[Split, ...] = ("test", "val", "train")


@dataclass(frozen=True)
class Shares:
    """What is given away of the photos nobody has placed. fold: (which validates, of how many), in place of val."""

    val: float
    test: float
    fold: tuple[int, int] | None = None


class Member(NamedTuple):
    """One photo. together: a name that photos of one split share; split: where it stands already, if it does."""

    label: str
    together: str
    split: Split | None = None


def assign_splits(members: Sequence[Member], shares: Shares, seed: int) -> list[Split]:
    """Return a split for each photo; those of one name get the same, unless they stand apart already.

    Two exceptions keep small classes usable: a class that the hash leaves with nothing to train on, or then nothing to
    validate with, borrows one set of photos from its fullest other split, until it has one of its own.
    """
    fixed: dict[str, set[Split]] = defaultdict(set)
    labels: dict[str, set[str]] = defaultdict(set)
    for member in members:
        labels[member.together].add(member.label)
        if member.split:
            fixed[member.together].add(member.split)
    placed = {name: next(split for split in PRECEDENCE if split in splits) for name, splits in fixed.items()}
    free = {name: _by_hash(name, shares, seed) for name in labels if name not in placed}
    validates = shares.val > 0 or shares.fold is not None
    _borrow({**placed, **free}, free, labels, ["train", "val"] if validates else ["train"], seed)
    everywhere = {**placed, **free}
    return [member.split or everywhere[member.together] for member in members]


def _by_hash(name: str, shares: Shares, seed: int) -> Split:
    """Test is cut from the lower end and validation from the upper: changing one share moves nothing of the other."""
    place = _fraction(str(seed), name)
    if place < shares.test:
        return "test"
    if shares.fold:
        fold, folds = shares.fold
        return "val" if int(_fraction(str(seed), name, "fold") * folds) == fold else "train"
    return "val" if place >= 1 - shares.val else "train"


def _fraction(*parts: str) -> float:
    return int(digest(*parts)[:13], 16) / 16**13


def _borrow(
    placed: dict[str, Split],
    free: dict[str, Split],
    labels: dict[str, set[str]],
    needed: Iterable[Split],
    seed: int,
) -> None:
    """Move sets among `free` until every class has one in each needed split, where it has enough of them."""
    names: dict[str, list[str]] = defaultdict(list)
    for name in sorted(labels, key=lambda name: digest(str(seed), name)):
        for label in labels[name]:
            names[label].append(name)
    for split in needed:
        for label in sorted(names):
            if not any(placed[name] == split for name in names[label]):
                lent = _to_lend(label, split, placed, free, labels, names)
                if lent:
                    placed[lent] = free[lent] = split


def _to_lend(
    label: str,
    split: Split,
    placed: dict[str, Split],
    free: dict[str, Split],
    labels: dict[str, set[str]],
    names: dict[str, list[str]],
) -> str | None:
    """Return a set of the class from its fullest split; none is taken that a class has as its only one to train on."""
    counts: dict[Split, int] = defaultdict(int)
    for name in names[label]:
        counts[placed[name]] += 1

    def spared(name: str) -> bool:
        if placed[name] != "train" or split == "train":
            return True
        return all(sum(placed[other] == "train" for other in names[shared]) > 1 for shared in labels[name])

    lendable = [name for name in names[label] if name in free and spared(name)]
    return max(lendable, key=lambda name: counts[placed[name]], default=None)
