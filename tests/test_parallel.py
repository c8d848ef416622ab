from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune import parallel
from finetune.parallel import ordered_map, usable_cores


def test_results_come_in_the_order_of_the_items() -> None:
    assert list(ordered_map(lambda number: number * number, range(200))) == [number * number for number in range(200)]


@pytest.mark.skipif(usable_cores() < 2, reason="one core has one thread")
def test_a_result_that_is_ready_early_waits_for_its_turn() -> None:
    second_is_done = threading.Event()

    def slow_first(number: int) -> int:
        if number == 0:
            assert second_is_done.wait(timeout=60)
        if number == 1:
            second_is_done.set()
        return number

    assert list(ordered_map(slow_first, range(20))) == list(range(20))


def test_no_items_give_no_results() -> None:
    assert list(ordered_map(str, [])) == []


def test_an_endless_input_is_read_only_a_few_items_ahead() -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = ordered_map(lambda number: -number, endless())
    for wanted in range(1, 200):
        assert next(results) == -wanted
        assert taken <= wanted + 4 * usable_cores()
    results.close()  # type: ignore[attr-defined]
    assert taken <= 199 + 4 * usable_cores()


def test_nothing_is_read_before_the_first_result_is_wanted() -> None:
    items = iter([1, 2])
    ordered_map(str, items)
    assert list(items) == [1, 2]


def fail_at_3(number: int) -> int:
    if number == 3:
        raise ValueError("photo 3")
    return number


def test_an_exception_arrives_at_its_place() -> None:
    results = ordered_map(fail_at_3, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="photo 3"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_after_an_exception_an_endless_input_is_left_alone() -> None:
    items = itertools.count()
    with pytest.raises(ValueError, match="photo 3"):
        list(ordered_map(fail_at_3, items))
    assert next(items) <= 3 + 4 * usable_cores() + 1


def test_an_exception_of_the_input_is_passed_on() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(ordered_map(str, broken()))


def test_no_thread_outlives_the_work() -> None:
    before = threading.active_count()
    list(ordered_map(str, range(20)))
    half_way = ordered_map(str, range(20))
    next(half_way)
    half_way.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


AFFINITY = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("150000 100000\n", min(2, AFFINITY)),
        ("100000 100000\n", 1),
        ("100001 100000\n", min(2, AFFINITY)),
        ("1000 100000\n", 1),
        ("25000 50000\n", 1),
        ("6400000 100000\n", min(64, AFFINITY)),
        ("max 100000\n", AFFINITY),
        ("", AFFINITY),
    ],
)
def test_a_container_quota_limits_the_cores(
    quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(parallel, "CGROUP", tmp_path)
    assert usable_cores() == cores


@pytest.mark.parametrize(("quota", "cores"), [("150000\n", min(2, AFFINITY)), ("50000\n", 1), ("-1\n", AFFINITY)])
def test_a_quota_as_older_systems_write_it(
    quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    monkeypatch.setattr(parallel, "CGROUP", tmp_path)
    assert usable_cores() == cores


def test_without_a_quota_file_the_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "CGROUP", tmp_path)
    assert usable_cores() == AFFINITY
