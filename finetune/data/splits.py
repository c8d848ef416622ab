"""Seeded, stratified splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

from finetune.files import digest

Split = Literal["train", "val", "test"]


def assign_splits(photos: Sequence[tuple[str, str]], fractions: Mapping[Split, float], seed: int) -> list[Split]:
    """Return a split for each (label, sha256): each class gives its rounded fraction, the rest trains.

    The order within a class is that of a hash of seed and content, so neither names nor folder order matter. A class of
    two or more photos always has one to train and one to validate with; the test split is the first to go without.
    Copies of one photo in a class stay together.
    """
    assigned: list[Split] = ["train"] * len(photos)
    by_class: dict[str, list[int]] = defaultdict(list)
    for number, (label, _) in enumerate(photos):
        by_class[label].append(number)
    for members in by_class.values():
        copies: dict[str, list[int]] = defaultdict(list)
        for number in members:
            copies[photos[number][1]].append(number)
        order = sorted(copies, key=lambda content: digest(str(seed), content))
        # "val" is served first and never left empty, so that a tiny class can still be validated
        for split in sorted(fractions, key=lambda name: name != "val"):
            open_places = max(round(len(members) * fractions[split]), 1 if split == "val" else 0)
            while open_places > 0 and len(order) > 1:
                for number in copies[order.pop(0)]:
                    assigned[number] = split
                    open_places -= 1
    return assigned
