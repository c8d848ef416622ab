"""What photos are to each other: copies, near-duplicates, members of one group; and what follows for their splits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

from finetune.data.duplicates import Together, alike, near_pairs
from finetune.data.findings import Case
from finetune.data.look import Facts
from finetune.data.manifest import Photo
from finetune.data.splits import PRECEDENCE

# More near-duplicates than FEW that make up more of a class than this are no copies but how the class looks.
MOST_OF_A_CLASS, FEW = 0.5, 10


@dataclass(frozen=True)
class Relations:
    """photos: as given, those left out with their reason; together: for each a name that it shares with those that must
    stand in its split; found: cases by kind."""

    photos: list[Photo]
    together: list[str]
    found: dict[str, list[Case]]


def relate(photos: Sequence[Photo], facts: Sequence[Facts], near_bits: int | None) -> Relations:
    """Compare all usable photos; near_bits: most bits in which near-duplicates' hashes differ, None for copies only."""
    found: dict[str, list[Case]] = {}
    kept = list(photos)
    _judge_copies(kept, found)
    usable = [number for number, photo in enumerate(kept) if not photo.problem]
    contents = [kept[number].sha256 for number in usable]
    groups = [kept[number].group for number in usable]
    hashes = [facts[number].perceptual for number in usable]
    near = near_pairs(hashes, near_bits) if near_bits is not None else ()
    sets = [[usable[k] for k in members] for members in _sets(len(usable), chain(alike(contents), near))]
    small = _judge_near(kept, sets, found)
    place = {number: k for k, number in enumerate(usable)}
    pairs = chain(
        ((place[a], place[b]) for members in small for a, b in pairwise(members)), alike(contents), alike(groups)
    )
    found["group_leak"] = _leaks(kept, _by_group(kept, usable))
    names = [""] * len(kept)
    for number in usable:
        names[number] = _name([kept[number]])
    for members in _sets(len(usable), pairs):
        name = _name([kept[usable[k]] for k in members])
        for k in members:
            names[usable[k]] = name
    return Relations(kept, names, {kind: cases for kind, cases in found.items() if cases})


def _name(photos: Sequence[Photo]) -> str:
    """A group's own name, so that members may come and go; else the first content."""
    groups = [photo.group for photo in photos if photo.group]
    return f"group {min(groups)}" if groups else min(photo.sha256 for photo in photos)


def _sets(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    together = Together(count)
    together.join(pairs)
    return together.sets()


def _judge_copies(photos: list[Photo], found: dict[str, list[Case]]) -> None:
    """Leave out copies that contradict each other, in label or in the split that folders give them."""
    copies: dict[str, list[int]] = defaultdict(list)
    for number, photo in enumerate(photos):
        if not photo.problem:
            copies[photo.sha256].append(number)
    for kind in ("label_conflict", "split_leak", "exact_duplicates"):
        found[kind] = []
    for numbers in (numbers for numbers in copies.values() if len(numbers) > 1):
        same = [photos[number] for number in numbers]
        paths = tuple(photo.path for photo in same)
        labels = sorted({photo.label for photo in same})
        splits = {photo.split for photo in same} - {""}
        if len(labels) > 1:
            found["label_conflict"].append(Case(paths, " or ".join(labels)))
            for number, photo in zip(numbers, same, strict=True):
                other = next(twin for twin in same if twin.label != photo.label)
                photos[number] = photo._replace(problem=f"the same photo as {other.path}, of another class")
        elif len(splits) > 1:
            stays = next((split for split in PRECEDENCE if split in splits), "")
            keeper = next(photo for photo in same if photo.split == stays)
            found["split_leak"].append(Case(paths, f"stays in {stays}"))
            for number, photo in zip(numbers, same, strict=True):
                if photo.split not in ("", stays):
                    photos[number] = photo._replace(problem=f"the same photo as {keeper.path}, which is for {stays}")
        else:
            found["exact_duplicates"].append(Case(paths, f"{len(paths)} copies"))


def _judge_near(photos: Sequence[Photo], sets: list[list[int]], found: dict[str, list[Case]]) -> list[list[int]]:
    """Return the sets that must stay together; one that is most of a class cannot, or the class would lack splits."""
    sizes = Counter(photo.label for photo in photos if not photo.problem)

    def is_large(members: Sequence[int]) -> bool:
        counts = Counter(photos[number].label for number in members)
        return len(members) > FEW and any(counts[label] > MOST_OF_A_CLASS * sizes[label] for label in counts)

    near = [members for members in sets if len({photos[number].sha256 for number in members}) > 1]
    large = [members for members in near if is_large(members)]
    small = [members for members in near if not is_large(members)]
    found["look_alike"] = [
        Case(tuple(photos[number].path for number in members), f"{len(members)} photos") for members in large
    ]
    found["near_leak"] = _leaks(photos, small)
    labelled = [(members, sorted({photos[number].label for number in members})) for members in small]
    found["near_label_conflict"] = [
        Case(tuple(photos[number].path for number in members), " and ".join(labels))
        for members, labels in labelled
        if len(labels) > 1
    ]
    found["near_duplicates"] = [
        Case(tuple(photos[number].path for number in members), f"{len(members)} photos")
        for members, labels in labelled
        if len(labels) == 1
    ]
    return small


def _leaks(photos: Sequence[Photo], sets: Sequence[Sequence[int]]) -> list[Case]:
    """Sets that the source itself has put into several splits."""
    cases = []
    for members in sets:
        splits = [split for split in reversed(PRECEDENCE) if any(photos[number].split == split for number in members)]
        if len(splits) > 1:
            cases.append(Case(tuple(photos[number].path for number in members), " and ".join(splits)))
    return cases


def _by_group(photos: Sequence[Photo], usable: Sequence[int]) -> list[list[int]]:
    members: dict[str, list[int]] = defaultdict(list)
    for number in usable:
        if photos[number].group:
            members[photos[number].group].append(number)
    return list(members.values())
