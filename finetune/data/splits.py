"""Seeded, stratified splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

from finetune.files import digest


def assign_splits(
    photos: Sequence[tuple[str, str]], fractions: Mapping[Literal["train", "val", "test"], float], seed: int
) -> list[Literal["train", "val", "test"]]:
    """Return a split for each (label, sha256): each class gives its rounded fraction, the rest trains.

    The order within a class is that of a hash of seed and content, so neither names nor folder order matter. A class of
    two or more photos always has one to train and one to validate with; the test split is the first to go without.
    """
    assigned: list[Literal["train", "val", "test"]] = ["train"] * len(photos)
    by_class: dict[str, list[int]] = defaultdict(list)
    for number, (label, _) in enumerate(photos):
        by_class[label].append(number)
    for members in by_class.values():
        order = sorted(members, key=lambda number: digest(str(seed), photos[number][1]))
        total = len(order)
        # "val" is served first and never left empty, so that a tiny class can still be validated
        for split in sorted(fractions, key=lambda name: name != "val"):
            wanted = round(total * fractions[split])
            least = 1 if split == "val" else 0
            count = min(max(wanted, least), len(order) - 1)
            for number in order[:count]:
                assigned[number] = split
            order = order[count:]
    return assigned
