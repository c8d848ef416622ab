"""What folders say of the photos in them: their class, and their split."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from finetune.data.listed import SPLIT_NAMES, is_label
from finetune.errors import FinetuneError, nearest
from finetune.stores import is_text, readable

ClassFrom = Literal["folder", "path", "none"]


class ClassFolder(NamedTuple):
    """label: the class of the photos in a folder; split: empty where there are no split folders."""

    label: str
    split: str


@dataclass(frozen=True)
class Layout:
    """Class folders by path. depth: how many folders of a photo's path make that of its class; None for all."""

    classes: dict[str, ClassFolder]
    depth: int | None

    def of(self, path: str) -> ClassFolder | None:
        """Return the class folder that a photo lies in, if it does in one."""
        return self.classes.get("/".join(path.split("/")[:-1][: self.depth]))


def read_layout(address: str, paths: Collection[str], folders: Iterable[str], class_from: ClassFrom) -> Layout:
    """Take the top folders for classes, or for splits with classes in them; by class_from=path, whole folder paths.

    paths: every file's; folders: those that may be empty too. Raises FinetuneError where a layout makes no sense.
    """
    every = parents(paths) | set(folders)
    tops = sorted(path for path in every if "/" not in path)
    _require_names(address, tops)
    splits = _split_folders(address, tops)
    above = 1 if splits else 0
    if class_from == "path":
        depth, places = None, {path.rpartition("/")[0] for path in paths}
    else:
        depth, places = above + 1, {path for path in every if path.count("/") == above}
    classes = {}
    for path in sorted(place for place in places if place.count("/") >= above and place):
        label = path.split("/", above)[-1]
        _require_names(address, [path])
        classes[path] = ClassFolder(label, SPLIT_NAMES[path.split("/")[0].lower()] if splits else "")
    _require_trained(address, classes)
    return Layout(classes, depth)


def parents(paths: Iterable[str]) -> set[str]:
    """Return every folder on the way to some files."""
    found: set[str] = set()
    for folder in {path.rpartition("/")[0] for path in paths}:
        while folder and folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


def wrapper(paths: Collection[str]) -> str:
    """Return the folder that an archive was made of, with a slash behind it; empty if photos or several folders are on
    top, or photos in the only one."""
    tops = {path.partition("/")[0] for path in paths}
    if len(tops) != 1 or any(path.count("/") < 2 for path in paths):
        return ""
    (top,) = tops
    return "" if top.lower() in SPLIT_NAMES else f"{top}/"


def _split_folders(address: str, tops: list[str]) -> list[str]:
    splits = [name for name in tops if name.lower() in SPLIT_NAMES]
    others = [name for name in tops if name.lower() not in SPLIT_NAMES]
    # one class may well be called "test"; several such names are splits
    if not splits or (others and len(splits) == 1):
        return []
    if others:
        raise FinetuneError(
            f"{address} has split folders ({', '.join(splits)}) and others beside them ({', '.join(others)}): "
            "move the others away, or into the splits as classes"
        )
    if "train" not in (split.lower() for split in splits):
        raise FinetuneError(
            f"{address} has {' and '.join(splits)} but no train; name the folder of training photos train"
        )
    return splits


def _require_names(address: str, paths: Iterable[str]) -> None:
    for path in paths:
        if not is_text(path) or not is_label(path):
            raise FinetuneError(
                f"the folder {readable(path)} in {address} has a name "
                "that cannot be written in a line of UTF-8; rename it"
            )


def _require_trained(address: str, classes: dict[str, ClassFolder]) -> None:
    trained = {place.label: path for path, place in classes.items() if place.split == "train"}
    for path, place in classes.items():
        if place.split and place.label not in trained:
            train = next((trained[label].removesuffix(f"/{label}") for label in trained), "train")
            raise FinetuneError(
                f"{address}/{path} is a class that {address}/{train} lacks{nearest(place.label, trained)}"
            )
