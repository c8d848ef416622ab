"""Photos that are the same, look the same or belong together, and so must stand in one split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

HASH_BITS = 64
# Rows of a bucket that are compared with all others of it at once.
ROWS_AT_ONCE = 512

Hashes = NDArray[np.uint64]
Places = NDArray[np.intp]


def near_pairs(hashes: Sequence[int | None], most_bits: int) -> Iterator[tuple[int, int]]:
    """Yield pairs of positions whose 64-bit hashes differ in at most `most_bits` bits; None is near nothing.

    Equal hashes are chained, not paired each with each, and so are sets in which most are near each other. Two hashes
    that differ in k bits agree in at least one of k + 1 bands of bits, so only those that share a band are compared.
    """
    places: dict[int, list[int]] = defaultdict(list)
    for position, value in enumerate(hashes):
        if value is not None:
            places[value].append(position)
    for same in places.values():
        yield from pairwise(same)
    unique = np.array(list(places), dtype=np.uint64)
    firsts = [same[0] for same in places.values()]
    for a, b in _near_values(unique, most_bits) if most_bits else ():
        yield firsts[a], firsts[b]


def _near_values(unique: Hashes, most_bits: int) -> Iterator[tuple[int, int]]:
    edges = np.linspace(0, HASH_BITS, most_bits + 2).astype(int)
    for low, high in pairwise(edges):
        band = (unique >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.diff(band[order], prepend=band[order[:1]] + np.uint64(1)))
        for bucket in np.split(order, starts[1:]):
            if len(bucket) > 1:
                yield from _near_in(unique, bucket, most_bits)


def _near_in(unique: Hashes, bucket: Places, most_bits: int) -> Iterator[tuple[int, int]]:
    values = unique[bucket]
    for start in range(0, len(bucket), ROWS_AT_ONCE):
        rows = values[start : start + ROWS_AT_ONCE]
        near = np.bitwise_count(rows[:, None] ^ values[None, :]) <= most_bits
        row, column = np.nonzero(np.triu(near, k=start + 1))
        if len(row) > len(bucket):
            row, column = _chained(start + row, column, len(bucket))
        else:
            row += start
        yield from zip(bucket[row].tolist(), bucket[column].tolist(), strict=True)


def _chained(row: Places, column: Places, count: int) -> tuple[Places, Places]:
    """Return fewer pairs that hold the same sets together: photos of a fixed camera may all be near each other."""
    graph = csr_array((np.ones(len(row), dtype=np.bool_), (row, column)), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    order = np.argsort(labels, kind="stable")
    linked = labels[order[1:]] == labels[order[:-1]]
    return order[:-1][linked], order[1:][linked]


class Together:
    """Sets that merge: which of N things belong together."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def join(self, pairs: Iterable[tuple[int, int]]) -> None:
        for a, b in pairs:
            self._parent[self._root(a)] = self._root(b)

    def sets(self) -> list[list[int]]:
        """Return every set of two or more, each in ascending order."""
        members: dict[int, list[int]] = defaultdict(list)
        for number in range(len(self._parent)):
            members[self._root(number)].append(number)
        return [numbers for numbers in members.values() if len(numbers) > 1]

    def _root(self, number: int) -> int:
        parent = self._parent
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number


def alike(values: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield pairs of positions that chain equal values together; empty values are equal to nothing."""
    last: dict[str, int] = {}
    for position, value in enumerate(values):
        if value:
            if value in last:
                yield last[value], position
            last[value] = position
