"""On which photos the candidates of a search are compared, and which of them each has not seen.

A few hundred validation photos tell heads a point or two apart only by luck. Heads on kept features cost next to
nothing, so where there are few, all photos that are not for test take turns (cross-validation, Stone 1974).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from finetune.data.manifest import Manifest, Photo
from finetune.files import digest

# So many validation photos put the error of an accuracy of 90 % below one point.
ENOUGH_TO_VALIDATE = 1000
FOLDS = 5


@dataclass(frozen=True)
class Trial:
    """fold: by which fold each photo is held out, from 0; -1: it is learned from in every one."""

    photos: tuple[Photo, ...]
    fold: tuple[int, ...]

    @cached_property
    def folds(self) -> int:
        return max(self.fold) + 1

    @cached_property
    def held_out(self) -> tuple[Photo, ...]:
        """The photos that are answered by a head that has not seen them."""
        return tuple(photo for photo, fold in zip(self.photos, self.fold, strict=True) if fold >= 0)

    @cached_property
    def learned(self) -> tuple[int, ...]:
        """The numbers of the photos that some head learns from."""
        return tuple(number for number, fold in enumerate(self.fold) if self.folds > 1 or fold < 0)

    def sample(self, most: int) -> Trial:
        """Return a trial on so many of the photos that are held out and of the others, each class in proportion."""
        taken: list[int] = []
        for held_out in (True, False):
            these = [number for number, fold in enumerate(self.fold) if (fold >= 0) == held_out]
            these.sort(key=lambda number: (self.photos[number].label, self.photos[number].sha256))
            count = min(most, len(these))
            taken += [these[place * len(these) // count] for place in range(count)]
        return Trial(tuple(self.photos[k] for k in taken), tuple(self.fold[k] for k in taken))


def plan_trial(manifest: Manifest, seed: int) -> Trial:
    """Hold the validation photos out; or, where they are few and were drawn by us, all photos in turns."""
    val = manifest.of("val")
    if len(val) >= ENOUGH_TO_VALIDATE or any(photo.split_from == "source" for photo in val):
        return validation(manifest)
    photos = (*manifest.of("train"), *val)
    dealt = Trial(photos, tuple(_deal(photos, seed)))
    # all that belongs together is in one fold, and no other is there to learn from
    return dealt if dealt.folds > 1 else validation(manifest)


def validation(manifest: Manifest) -> Trial:
    """Return the trial that holds the validation photos out."""
    train, val = manifest.of("train"), manifest.of("val")
    return Trial((*train, *val), (-1,) * len(train) + (0,) * len(val))


def _deal(photos: Sequence[Photo], seed: int) -> list[int]:
    """Deal photos to folds like cards, class after class, so that each fold has its share; those that belong together
    go to one."""
    names = [photo.together or photo.sha256 for photo in photos]
    label: dict[str, str] = {}
    for photo, name in zip(photos, names, strict=True):
        label.setdefault(name, photo.label)
    ordered = sorted(label, key=lambda name: (label[name], digest(str(seed), name)))
    fold = {name: place % FOLDS for place, name in enumerate(ordered)}
    return [fold[name] for name in names]
