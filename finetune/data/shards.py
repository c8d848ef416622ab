"""Tar shards: WebDataset samples, or class folders packed into tar files."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from typing import Any

from PIL import Image

from finetune.data.folders import ClassFrom, read_layout, wrapper
from finetune.data.listed import Listed, is_label, outside_classes, read_split
from finetune.stores import SAMPLE_TEXTS, File, Folder, Note, TarStore, split_member

CLASS_NAMES = "classnames.txt"
SHARD_SPLIT = re.compile(r"(train|training|val|valid|validation|test|testing)(?![a-z])", re.IGNORECASE)
SPLITS = {"tra": "train", "val": "val", "tes": "test"}
LABEL_FIELDS = ("label", "class", "cls")

# What a sample says of its photo: label, split and group, as far as it does; problem: why it says no label.
Sample = dict[str, str]


def list_shards(store: TarStore, class_from: ClassFrom) -> tuple[list[Listed], set[str], list[Note]]:
    """Return every photo with the class that its sample or its folder names, the classes, and what has no class."""
    files: list[File] = []
    folders: list[str] = []
    samples: dict[str, Sample] = {}
    names = _class_names(store)
    for found, text in store.walk_with_texts():
        if isinstance(found, Folder):
            folders.append(found.path)
        elif text is not None:
            key, _, suffix = found.path.rpartition(".")
            said, before = _read_sample(found.path, text, names), samples.get(key, {})
            samples[key] = before | said if suffix == "cls" else said | before
        elif isinstance(found, File) and not found.path.endswith(SAMPLE_TEXTS):
            files.append(found)
    if class_from == "none":
        return [_listed(file, "", "", "") for file in files], set(), []
    if any("label" in sample for sample in samples.values()):
        return _by_samples(files, samples)
    return _by_folders(store.address, files, folders, class_from)


def _by_samples(files: list[File], samples: dict[str, Sample]) -> tuple[list[Listed], set[str], list[Note]]:
    photos, without = [], defaultdict(list)
    for file in _photos_of_samples(files):
        sample = samples.get(file.path.rpartition(".")[0]) or samples.get(_key(file.path)) or {}
        if "label" in sample:
            split = sample.get("split") or _split_of_shard(split_member(file.path)[0])
            photos.append(_listed(file, sample["label"], split, sample.get("group", "")))
        else:
            without[sample.get("problem", "no .cls or .json beside it names a class")].append(file.path)
    notes = [outside_classes(paths, reason) for reason, paths in without.items()]
    return photos, {photo.label for photo in photos}, notes


def _by_folders(
    address: str, files: list[File], folders: list[str], class_from: ClassFrom
) -> tuple[list[Listed], set[str], list[Note]]:
    """Read the folders inside as if they lay in one place; where tar files name their splits, folders do not."""
    inside = {file.path: split_member(file.path)[1] for file in files}
    top = wrapper(inside.values())
    inside = {path: place.removeprefix(top) for path, place in inside.items()}
    splits = {path: _split_of_shard(split_member(path)[0]) for path in inside}
    empty = {split_member(path)[1] for path in folders}
    layout = read_layout(
        address, set(inside.values()), {path.removeprefix(top) for path in empty if path != top[:-1]}, class_from
    )
    photos, outside = [], []
    for file in files:
        place = layout.of(inside[file.path])
        if place:
            photos.append(_listed(file, place.label, splits[file.path] or place.split, ""))
        else:
            outside.append(file.path)
    notes = [outside_classes(outside, "lies in no class folder")] if outside else []
    return photos, {place.label for place in layout.classes.values()}, notes


def _listed(file: File, label: str, split: str, group: str) -> Listed:
    return Listed(file.path, label, split, group, file.size, file.mtime_ns, file.refusal)


def _key(path: str) -> str:
    """Return what WebDataset calls a sample's key: the path to the first dot of its name."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _photos_of_samples(files: list[File]) -> Iterator[File]:
    """Yield the images of samples; beside key.jpg, a key.mask.png is something else."""
    formats = Image.registered_extensions()
    images = [file for file in files if f".{file.path.rpartition('.')[2].lower()}" in formats]
    plain = {file.path.rpartition(".")[0] for file in images}
    for image in images:
        key = _key(image.path)
        if key not in plain or key == image.path.rpartition(".")[0]:
            yield image


@cache
def _split_of_shard(shard: str) -> str:
    """Return the split that a tar file's name, or its folder's, begins with."""
    found = (SHARD_SPLIT.match(part) for part in shard.split("/"))
    return next((SPLITS[match[0][:3].lower()] for match in found if match), "")


def _class_names(store: TarStore) -> list[str]:
    raw = store.read_beside(CLASS_NAMES)
    return raw.decode("utf-8-sig").splitlines() if raw else []


def _read_sample(path: str, text: bytes, names: list[str]) -> Sample:
    try:
        decoded = text.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return {"problem": f"its .{path.rpartition('.')[2]} is not text"}
    if path.endswith(".cls"):
        return _read_label(decoded, names)
    try:
        fields = json.loads(decoded)
    except ValueError:
        return {"problem": "its .json cannot be read"}
    if not isinstance(fields, dict):
        return {"problem": "its .json is no object"}
    given = next((fields[name] for name in LABEL_FIELDS if fields.get(name) is not None), None)
    sample: Sample = {} if given is None else _read_label(_as_text(given), names)
    if isinstance(fields.get("split"), str):
        sample["split"] = read_split(fields["split"], path)
    if fields.get("group") is not None:
        sample["group"] = _as_text(fields["group"])
    return sample


def _as_text(value: Any) -> str:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else json.dumps(value)


def _read_label(text: str, names: list[str]) -> Sample:
    if names and text.isdecimal():
        if int(text) >= len(names):
            return {"problem": f"class number {text} is beyond the {len(names)} lines of {CLASS_NAMES}"}
        text = names[int(text)].strip()
    return {"label": text} if is_label(text) else {"problem": "its class is empty or not one line of text"}
