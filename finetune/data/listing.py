"""Which files a source holds, and what their places say of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune.errors import FinetuneError, nearest
from finetune.stores import FolderStore, Store

SPLIT_FOLDERS: dict[str, Literal["train", "val", "test"]] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


@dataclass(frozen=True, slots=True)
class Listed:
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


@dataclass(frozen=True, slots=True)
class Note:
    """Something about the source rather than about one photo. kind: as the audit names it."""

    kind: str
    path: str
    message: str


@dataclass(frozen=True)
class Listing:
    """Every file of a source in path order. classes: every class there is a place for, even an empty one."""

    store: Store
    photos: tuple[Listed, ...]
    classes: tuple[str, ...]
    notes: tuple[Note, ...] = ()


def list_source(root: str, class_from: str, group_pattern: str | None) -> Listing:
    place = Path(root)
    found = _class_folders(place)
    photos = []
    for folder in found:
        for path in sorted(_files_below(place, folder.path)):
            problem = "" if _is_text(path) else "its name is not UTF-8; rename it"
            if not problem and (place / path).exists() and not (place / path).is_file():
                problem = "not a regular file"
            stat = (place / path).lstat()
            match = re.search(group_pattern, path) if group_pattern else None
            group = (match.group(1) if match.re.groups else match.group()) if match else ""
            label = "" if class_from == "none" else folder.label
            shown = path.encode(errors="backslashreplace").decode()
            photos.append(Listed(shown, label, folder.split, group, stat.st_size, stat.st_mtime_ns, problem))
    return Listing(FolderStore(root), tuple(photos), tuple(sorted({folder.label for folder in found})))


@dataclass(frozen=True)
class _ClassFolder:
    """A folder of photos. path: relative to the root; split: empty where the root has no split folders."""

    path: str
    label: str
    split: str


def _class_folders(root: Path) -> list[_ClassFolder]:
    names = _visible_folders(root)
    splits = [name for name in names if name.lower() in SPLIT_FOLDERS]
    others = [name for name in names if name.lower() not in SPLIT_FOLDERS]
    # one class may well be called "test"; several such names are splits
    if not splits or (others and len(splits) == 1):
        return [_ClassFolder(name, name, "") for name in names]
    if others:
        raise FinetuneError(
            f"{root} has split folders ({', '.join(splits)}) and others beside them ({', '.join(others)}): "
            "move the others away, or into the splits as classes"
        )
    if "train" not in (split.lower() for split in splits):
        raise FinetuneError(f"{root} has {' and '.join(splits)} but no train; name the folder of training photos train")
    found = [
        _ClassFolder(f"{split}/{label}", label, SPLIT_FOLDERS[split.lower()])
        for split in splits
        for label in _visible_folders(root / split)
    ]
    trained = {folder.label for folder in found if folder.split == "train"}
    for folder in found:
        if folder.label not in trained:
            hint = nearest(folder.label, trained)
            raise FinetuneError(f"{root / folder.path} is a class that {root / 'train'} lacks{hint}")
    return found


def _visible_folders(root: Path) -> list[str]:
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except FileNotFoundError:
        beside = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
        raise FinetuneError(f"data.root={root}: no such folder{nearest(root.name, beside)}") from None
    except NotADirectoryError:
        raise FinetuneError(f"data.root={root} is a file; give the folder that holds the class folders") from None
    except PermissionError:
        raise FinetuneError(f"data.root={root}: no permission to read this folder") from None
    names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    for name in names:
        if not _is_text(name) or not name.isprintable():
            raise FinetuneError(
                f"the folder {name.encode(errors='backslashreplace').decode()} in {root} has a name "
                "that cannot be written in a line of UTF-8; rename it"
            )
    return names


def _is_text(name: str) -> bool:
    """Whether a file's name can be written into text files; on Linux a name may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _files_below(root: Path, folder: str) -> Iterator[str]:
    for parent, folders, files in os.walk(root / folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(parent).relative_to(root).as_posix()
        yield from (f"{inside}/{name}" for name in files if not name.startswith(".") and name != "Thumbs.db")


def open_source(root: str) -> Store:
    """Return the store in which the paths of a source's photos lie."""
    return FolderStore(root)
