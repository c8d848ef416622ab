from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from finetune import parallel
from finetune.serving.own_cores import OwnCores
from finetune.serving.turns import Turns

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads choose no cores here")


def cores() -> set[int]:
    return os.sched_getaffinity(0)


@pytest.fixture
def everywhere() -> set[int]:
    return cores()


def test_threads_stay_on_a_core_each_until_they_may_roam(everywhere: set[int]) -> None:
    owned = OwnCores(len(everywhere))
    together = threading.Barrier(len(everywhere))

    def work() -> tuple[set[int], set[int]]:
        together.wait(60)
        owned.settle()
        owned.settle()
        settled = cores()
        owned.roam()
        return settled, cores()

    with ThreadPoolExecutor(len(everywhere)) as pool:
        found = [done.result() for done in [pool.submit(work) for _ in everywhere]]
    assert sorted(core for settled, _ in found for core in settled) == sorted(everywhere)
    assert all(after == everywhere for _, after in found)
    assert cores() == everywhere


def test_a_quota_of_less_than_the_cores_keeps_no_thread_on_one(
    everywhere: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(f"{100_000 * len(everywhere) - 1} 100000\n")
    monkeypatch.setattr(parallel, "CGROUP", tmp_path)
    assert parallel.usable_cores() == len(everywhere)
    owned = OwnCores(parallel.usable_cores())
    with ThreadPoolExecutor(1) as pool:
        pool.submit(owned.settle).result()
        assert pool.submit(cores).result() == everywhere


def test_a_system_that_forbids_it_is_told_of_once_and_costs_no_request(
    everywhere: set[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    owned = OwnCores(len(everywhere))
    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    with ThreadPoolExecutor(1) as pool:
        for place in (owned.settle, owned.roam, owned.settle):
            pool.submit(place).result()
    (record,) = caplog.records
    assert "Operation not permitted" in record.message


def test_work_stays_on_its_core_only_while_other_work_waits(everywhere: set[int]) -> None:
    async def test() -> None:
        turns = Turns(len(everywhere))
        together = threading.Barrier(len(everywhere))

        def work() -> set[int]:
            together.wait(60)
            return cores()

        crowd = await asyncio.gather(*(turns.run((n,), work) for n in range(4 * len(everywhere))))
        assert {frozenset(found) for found in crowd} >= {frozenset({core}) for core in everywhere}
        assert await turns.run((0,), cores) == everywhere

    asyncio.run(asyncio.wait_for(test(), 60))
