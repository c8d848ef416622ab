from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.duplicates import Together, alike, near_pairs

BITS = 64
# a few patterns, each with some bits flipped: near ones are common, and equal ones too
PATTERNS = st.builds(
    lambda pattern, flips: pattern ^ sum({1 << bit for bit in flips}),
    st.sampled_from([0, 2**63 + 5, 0x0F0F0F0F0F0F0F0F]),
    st.lists(st.integers(0, BITS - 1), max_size=5),
)
HASHES = st.lists(st.one_of(st.none(), PATTERNS, st.integers(0, 2**BITS - 1)), max_size=60)


def sets_of(count: int, pairs: object) -> list[list[int]]:
    together = Together(count)
    together.join(pairs)  # type: ignore[arg-type]
    return sorted(together.sets())


def compared_each_with_each(hashes: list[int | None], bits: int) -> list[list[int]]:
    near = [
        (a, b)
        for (a, one), (b, other) in combinations(enumerate(hashes), 2)
        if one is not None and other is not None and (one ^ other).bit_count() <= bits
    ]
    return sets_of(len(hashes), near)


@given(HASHES, st.integers(0, 12))
def test_the_sets_are_those_of_comparing_each_with_each(hashes: list[int | None], bits: int) -> None:
    assert sets_of(len(hashes), near_pairs(hashes, bits)) == compared_each_with_each(hashes, bits)


@pytest.mark.parametrize("share", [0.02, 0.06, 0.2])
def test_many_that_are_near_each_other_come_to_the_same_sets(share: float) -> None:
    flipped = np.random.default_rng(0).random((1200, BITS)) < share
    hashes = [int(value) for value in np.packbits(flipped, axis=1).view(">u8").ravel()]
    assert sets_of(1200, near_pairs(hashes, 4)) == compared_each_with_each(list(hashes), 4)


def test_pairs_that_are_near_are_few_even_where_all_are() -> None:
    flipped = np.random.default_rng(0).random((3000, BITS)) < 0.02
    hashes = [int(value) for value in np.packbits(flipped, axis=1).view(">u8").ravel()]
    assert sum(1 for _ in near_pairs(hashes, 4)) < 50 * 3000  # of 4.5 million


def test_what_is_alike_is_chained_and_what_is_empty_is_alone() -> None:
    assert list(alike(["a", "", "b", "a", "", "a"])) == [(0, 3), (3, 5)]


def test_sets_are_in_order_and_hold_two_or_more() -> None:
    assert sets_of(8, [(5, 1), (1, 3), (7, 2)]) == [[1, 3, 5], [2, 7]]
    assert sets_of(3, []) == []
    assert sets_of(50_000, pairwise(range(50_000))) == [list(range(50_000))]
