"""What an audit can find: each kind's weight, meaning and remedy, and the rules that judge one photo by itself."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from PIL import Image

from finetune.data.look import Facts

# fatal: nothing can be trained; skipped: the file is left out; warning: a person should look; note: dealt with.
Severity = Literal["fatal", "skipped", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Kind:
    """title: what it is, as a heading; advice: what happens with it and what to do."""

    severity: Severity
    title: str
    advice: str


@dataclass(frozen=True, slots=True)
class Case:
    """One occurrence. paths: the photos, or nothing where it concerns a class or a folder; detail: what differs."""

    paths: tuple[str, ...]
    detail: str


@dataclass(frozen=True, slots=True)
class Finding:
    """Every occurrence of one kind."""

    kind: str
    cases: tuple[Case, ...]

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind].severity


KINDS: dict[str, Kind] = {
    "untrainable": Kind("fatal", "Nothing can be trained", "Training stops here."),
    "unreadable": Kind("skipped", "Cannot be read", "Left out. Mend the permissions, names or links."),
    "empty": Kind("skipped", "Empty file", "Left out. Copy it again."),
    "not_an_image": Kind(
        "skipped", "Not an image", "Left out. Delete it, or convert it to a format that Pillow reads."
    ),
    "truncated": Kind("skipped", "Cut off", "Left out: the end of the file is missing. Copy it again."),
    "damaged": Kind("skipped", "Damaged", "Left out: it begins like an image and does not decode. Copy it again."),
    "too_many_pixels": Kind("skipped", "Too many pixels", "Left out before decoding. Scale it down."),
    "label_conflict": Kind(
        "skipped",
        "The same photo under several labels",
        "All copies are left out, as nobody knows which label is right. Delete the wrong ones.",
    ),
    "split_leak": Kind(
        "skipped",
        "The same photo in several splits",
        "It stays in test, else in val, and is left out of the other: what is measured on a photo that was trained on "
        "means nothing.",
    ),
    "near_leak": Kind(
        "warning",
        "Near-duplicates in several splits",
        "The folders or the table placed them so, and they stay. Move each set into one, or accuracy flatters.",
    ),
    "group_leak": Kind(
        "warning",
        "A group in several splits",
        "The folders or the table placed it so, and it stays. Move it into one split, or the accuracy flatters.",
    ),
    "near_label_conflict": Kind(
        "warning",
        "Near-duplicates under several labels",
        "Used as they are, in one split. Right where a small detail decides the label, else look for a wrong label.",
    ),
    "look_alike": Kind(
        "warning",
        "Many photos that look alike",
        "More than half of a class, so they cannot stay in one split: they are split one by one. Right where a fixed "
        "camera sees other things in one place; if they are bursts of one thing, name it with data.group_pattern.",
    ),
    "class_names_alike": Kind(
        "warning",
        "Class names that differ only by case or spaces",
        "Used as separate classes. Merge them if they are one.",
    ),
    "missing_in_split": Kind(
        "warning", "Classes that a split lacks", "What is measured says nothing of them. Add photos, or another seed=."
    ),
    "ungrouped": Kind(
        "warning", "Photos of no group", "data.group_pattern finds nothing in their paths; each is taken for itself."
    ),
    "imbalance": Kind(
        "warning",
        "Classes of very different size",
        "Accuracy rewards ignoring the rare ones. Add photos of them, or see imbalance= of finetune train.",
    ),
    "wrong_extension": Kind("warning", "The extension lies", "Read as what it is. Other tools may refuse it."),
    "tiny": Kind("warning", "Tiny", "Used, scaled up. A model sees little in it."),
    "extreme_aspect": Kind(
        "warning", "Extreme shape", "Used, squashed or cut to a square (data.fit). Cut it yourself."
    ),
    "dark": Kind("warning", "Dark", "Used. Nearly all of it is black."),
    "bright": Kind("warning", "Bright", "Used. Nearly all of it is white."),
    "blurry": Kind("warning", "Blurry", "Used. Hardly an edge in it."),
    "low_information": Kind("warning", "Low information", "Used. Nearly one colour."),
    "link_outside": Kind(
        "warning", "Links that lead out of the folder", "Followed. What they lead to may change or go."
    ),
    "link_loop": Kind("warning", "Links that lead back to where they are", "Not followed. Delete them."),
    "unreadable_folder": Kind("warning", "Folders that cannot be opened", "Passed over. Mend the permissions."),
    "outside_classes": Kind("warning", "Files outside the class folders", "Passed over. Move them into a class."),
    "exact_duplicates": Kind(
        "note", "Exact copies", "Used, kept in one split. Each counts, so delete what is too many."
    ),
    "near_duplicates": Kind("note", "Near-duplicates", "Used, kept in one split."),
    "animated": Kind("note", "Animated or of several pages", "The first frame is used."),
    "cmyk": Kind("note", "CMYK", "Converted to RGB, by its colour profile where it has one that can be used."),
    "deep": Kind("note", "More than 8 bits a channel", "Scaled to 8 bits."),
    "palette": Kind("note", "Palette", "Converted to RGB."),
    "alpha": Kind("note", "Transparent", "Laid over data.alpha_over."),
    "rotated": Kind("note", "Turned by EXIF", "Shown upright, here and when served."),
}

TINY_PX = 32
# cleanvision's thresholds, on measures of the same definition.
EXTREME_ASPECT, DARK, BRIGHT, LEAST_ENTROPY_BITS, LEAST_SHARPNESS = 0.35, 0.32, 0.95, 3.0, 0.29

_FORMAT_OF = Image.registered_extensions()
# Phones write several pictures into one JPEG; it is one to everybody else.
_SAME_FORMAT = {"MPO": "JPEG", "DIB": "BMP"}


def judge(path: str, facts: Facts) -> Iterator[tuple[str, str]]:
    """Yield (kind, detail) of a usable photo by itself."""
    suffix = PurePosixPath(path).suffix.lower()
    # an ending that nobody knows, as of `frame.0012`, is no lie
    known = suffix in _FORMAT_OF or mimetypes.guess_type(f"x{suffix}")[0] is not None
    if known and _plain(_FORMAT_OF.get(suffix, "")) != _plain(facts.format):
        yield "wrong_extension", f"it is {facts.format}"
    shorter, longer = sorted((facts.width, facts.height))
    size = f"{facts.width}x{facts.height} px"
    if shorter < TINY_PX:
        yield "tiny", size
    if shorter < EXTREME_ASPECT * longer:
        yield "extreme_aspect", size
    yield from _judge_pixels(facts)
    if facts.animated and facts.format not in _SAME_FORMAT:
        yield "animated", facts.format
    if facts.mode == "CMYK":
        yield "cmyk", "by its profile" if facts.by_profile else "it has no profile that can be used"
    if facts.deep:
        yield "deep", f"mode {facts.mode}"
    if facts.mode in ("P", "PA"):
        yield "palette", facts.format
    if facts.alpha:
        yield "alpha", f"mode {facts.mode}"
    if facts.orientation != 1:
        yield "rotated", f"orientation {facts.orientation}"


def _judge_pixels(facts: Facts) -> Iterator[tuple[str, str]]:
    if facts.dark < DARK:
        yield "dark", f"99 % of it below brightness {facts.dark:.2f}"
    if facts.bright > BRIGHT:
        yield "bright", f"95 % of it above brightness {facts.bright:.2f}"
    if facts.entropy < LEAST_ENTROPY_BITS:
        yield "low_information", f"{facts.entropy:.1f} bits a pixel"
    elif facts.sharpness < LEAST_SHARPNESS:
        yield "blurry", f"sharpness {facts.sharpness:.2f}"


def _plain(name: str) -> str:
    return _SAME_FORMAT.get(name, name)
