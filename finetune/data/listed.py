"""One file of a source and what its place says of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from finetune.data.splits import Split
from finetune.errors import FinetuneError, nearest
from finetune.stores import Note, readable

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


class Listed(NamedTuple):
    """One file, not yet opened.

    path: in its store; split and group: empty where nothing names them; problem: why it cannot be opened, if known.
    """

    path: str
    label: str
    split: str
    group: str
    size: int
    mtime_ns: int
    problem: str = ""


def read_split(value: str, where: str) -> str:
    """Return the split that a cell names, empty if it names none; raises FinetuneError beginning with `where`."""
    name = value.strip().lower()
    if not name:
        return ""
    if name not in SPLIT_NAMES:
        known = ", ".join(SPLIT_NAMES)
        raise FinetuneError(
            f"{where}: unknown split '{value}'{nearest(name, SPLIT_NAMES)} (it takes {known}, or nothing)"
        )
    return SPLIT_NAMES[name]


def is_label(text: str) -> bool:
    """Whether a class can have this name: it stands in a line of labels.txt."""
    return bool(text) and text.isprintable()


def outside_classes(paths: Sequence[str], reason: str) -> Note:
    """Return a note of photos that are passed over, as nothing says what they show."""
    others = f", as {len(paths) - 1} more" if len(paths) > 1 else ""
    return Note("outside_classes", readable(min(paths)), f"{reason}{others}")
