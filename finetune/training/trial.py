"""On which photos the candidates of a search are compared, and which of them each has not seen.

A few hundred validation photos tell heads a point or two apart only by luck. Heads on kept features cost next to
nothing, so where there are few, all photos that are not for test take turns (cross-validation, Stone 1974).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from finetune.data.manifest import Manifest, Photo
from finetune.files import digest

# So many validation photos put the error of an accuracy of 90 % below one point.
ENOUGH_TO_VALIDATE = 1000
FOLDS = 5
MOST_IN_A_FOLD = 0.5
# A sample of fewer photos a class says nothing.
LEAST_A_CLASS = 4


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
        """Return a trial on so many of the photos that are held out, and of the others.

        Each class gives the same number, or all that it has: a few of a rare one would tell nothing about it.
        """
        held_out = [number for number, fold in enumerate(self.fold) if fold >= 0]
        others = [number for number, fold in enumerate(self.fold) if fold < 0]
        taken = sorted(
            these[place] for these in (held_out, others) for place in in_turn([self.photos[k] for k in these])[:most]
        )
        return Trial(tuple(self.photos[k] for k in taken), tuple(self.fold[k] for k in taken))


def plan_trial(manifest: Manifest, seed: int) -> Trial:
    """Hold the validation photos out; or, where they are few and were drawn by us, all photos in turns."""
    val = manifest.of("val")
    if len(val) >= ENOUGH_TO_VALIDATE or any(photo.split_from == "source" for photo in val):
        return validation(manifest)
    photos = (*manifest.of("train"), *val)
    fold = _deal(photos, seed)
    # where most photos belong together, there would be few to learn from in turn
    fits = max(Counter(fold).values()) <= MOST_IN_A_FOLD * len(photos)
    return Trial(photos, tuple(fold)) if fits else validation(manifest)


def validation(manifest: Manifest) -> Trial:
    """Return the trial that holds the validation photos out."""
    train, val = manifest.of("train"), manifest.of("val")
    return Trial((*train, *val), (-1,) * len(train) + (0,) * len(val))


def in_turn(photos: Sequence[Photo]) -> list[int]:
    """Return the places of the photos in an order of which every beginning has as many of each class as can be."""
    turn = _turns(photos)
    return sorted(range(len(photos)), key=lambda place: (turn[place], place))


def in_proportion(photos: Sequence[Photo]) -> list[int]:
    """Return the places of the photos in an order of which every beginning has the proportions of them all.

    A few of each class come before all others.
    """
    turn, counts = _turns(photos), Counter(photo.label for photo in photos)

    def when(place: int) -> tuple[bool, float, int]:
        return turn[place] >= LEAST_A_CLASS, (turn[place] + 0.5) / counts[photos[place].label], place

    return sorted(range(len(photos)), key=when)


def _turns(photos: Sequence[Photo]) -> dict[int, int]:
    """Return, for the place of each photo, how many of its class come before it in an order that is drawn once."""
    before: Counter[str] = Counter()
    turns: dict[int, int] = {}
    for place in sorted(range(len(photos)), key=lambda place: photos[place].sha256):
        turns[place] = before[photos[place].label]
        before[photos[place].label] += 1
    return turns


def _deal(photos: Sequence[Photo], seed: int) -> list[int]:
    """Deal photos to folds, so that each has its share of every class; those that belong together go to one."""
    sets: dict[str, list[Photo]] = defaultdict(list)
    for photo in photos:
        sets[photo.together or photo.sha256].append(photo)
    folds: dict[str, int] = {}
    dealt: Counter[tuple[int, str]] = Counter()
    photos_of: Counter[int] = Counter()
    # the largest first, while all folds are empty
    for name in sorted(sets, key=lambda name: (-len(sets[name]), sets[name][0].label, digest(str(seed), name))):
        label = sets[name][0].label
        fold = min(range(FOLDS), key=lambda fold: (dealt[fold, label], photos_of[fold], fold))
        folds[name] = fold
        dealt.update((fold, photo.label) for photo in sets[name])
        photos_of[fold] += len(sets[name])
    return [folds[photo.together or photo.sha256] for photo in photos]
