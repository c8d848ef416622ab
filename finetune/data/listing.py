"""Which files a source holds, and what their places say of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from finetune.data.folders import ClassFrom, read_layout, wrapper
from finetune.data.listed import Listed, outside_classes
from finetune.data.shards import list_shards
from finetune.data.table import list_table
from finetune.errors import AddressError, FinetuneError
from finetune.stores import (
    File,
    Folder,
    FolderStore,
    FsspecStore,
    Note,
    Store,
    TableStore,
    TarStore,
    is_text,
    open_store,
    readable,
)

__all__ = ["Listed", "Listing", "Note", "list_source", "require_source"]


@dataclass(frozen=True)
class Listing:
    """Every file of a source in path order. classes: every class there is a place for, even an empty one."""

    store: Store
    photos: tuple[Listed, ...]
    classes: tuple[str, ...]
    notes: tuple[Note, ...]


def require_source(root: str) -> None:
    """Raise FinetuneError where there is no such folder or table; archives and object stores are not asked twice."""
    try:
        store = open_store(root)
        if isinstance(store, FolderStore):
            next(store.walk(), None)
        elif isinstance(store, TableStore):
            store.read_table()
    except AddressError as error:
        raise FinetuneError(f"data.root={error}") from None


def list_source(root: str, class_from: ClassFrom, group_pattern: str | None) -> Listing:
    """List a folder, archive, table or set of shards; opens no photo.

    Raises FinetuneError where there is nothing at the address, or its layout makes no sense.
    """
    try:
        store = open_store(root)
        notes: list[Note] = []
        if isinstance(store, TableStore):
            photos = list_table(store, class_from)
            classes = {photo.label for photo in photos} - {""}
        elif isinstance(store, TarStore):
            photos, classes, notes = list_shards(store, class_from)
        else:
            photos, classes, notes = _list_tree(store, class_from)
    except AddressError as error:
        raise FinetuneError(f"data.root={error}") from None
    if group_pattern:
        photos = _with_groups(photos, re.compile(group_pattern))
        notes = [*notes, *_ungrouped(root, photos, group_pattern)]
    return Listing(
        store,
        tuple(sorted((_with_text(photo) for photo in photos), key=lambda photo: photo.path)),
        tuple(sorted(classes)),
        tuple(sorted(notes, key=lambda note: (note.kind, note.path))),
    )


def _list_tree(store: FolderStore | FsspecStore, class_from: ClassFrom) -> tuple[list[Listed], set[str], list[Note]]:
    files: list[File] = []
    folders: list[str] = []
    notes: list[Note] = []
    for found in store.walk():
        if isinstance(found, File):
            files.append(found)
        elif isinstance(found, Folder):
            folders.append(found.path)
        else:
            notes.append(found)
    if class_from == "none":
        return [_listed(file, "", "") for file in files], set(), notes
    # an archive of a folder holds that folder; a folder on this machine can be named itself
    top = "" if isinstance(store, FolderStore) else wrapper([file.path for file in files])
    layout = read_layout(
        store.address,
        {file.path.removeprefix(top) for file in files},
        {path.removeprefix(top) for path in folders if f"{path}/" != top},
        class_from,
    )
    photos, outside = [], []
    for file in files:
        place = layout.of(file.path.removeprefix(top))
        if place:
            photos.append(_listed(file, place.label, place.split))
        elif f".{file.path.rpartition('.')[2].lower()}" in Image.registered_extensions():
            outside.append(file.path)
    if outside:
        notes.append(outside_classes(outside, "lies in no class folder"))
    return photos, {place.label for place in layout.classes.values()}, notes


def _listed(file: File, label: str, split: str) -> Listed:
    return Listed(file.path, label, split, "", file.size, file.mtime_ns, file.refusal)


def _with_text(photo: Listed) -> Listed:
    """Make a path printable; a file whose name is no text cannot be named in a manifest."""
    if is_text(photo.path):
        return photo
    return photo._replace(path=readable(photo.path), problem="its name is not UTF-8; rename it")


def _with_groups(photos: Iterable[Listed], pattern: re.Pattern[str]) -> list[Listed]:
    """Name the group of each photo that has none: what the pattern's first group finds, or the whole pattern."""
    matches = [(photo, None if photo.group else pattern.search(photo.path)) for photo in photos]
    return [photo._replace(group=match[pattern.groups and 1] or "") if match else photo for photo, match in matches]


def _ungrouped(root: str, photos: Sequence[Listed], pattern: str) -> Iterator[Note]:
    """Say which photos the pattern leaves out; raises FinetuneError where that is all, as a mistyped one does."""
    lacking = sorted(photo.path for photo in photos if not photo.group)
    if not lacking:
        return
    if len(lacking) == len(photos):
        raise FinetuneError(
            f"data.group_pattern={pattern} finds nothing in any of the {len(photos)} paths in {root}, "
            f"such as {readable(lacking[0])}"
        )
    others = f", as {len(lacking) - 1} more" if len(lacking) > 1 else ""
    yield Note("ungrouped", readable(lacking[0]), f"in no group{others}")
