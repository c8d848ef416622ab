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
def everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    # as if this container had no quota
    monkeypatch.setattr(parallel, "CGROUP", tmp_path / "none")
    return cores()


def test_threads_stay_on_a_core_each_until_they_may_roam(everywhere: set[int]) -> None:
    owned = OwnCores()
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
    owned = OwnCores()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(owned.settle).result()
        assert pool.submit(cores).result() == everywhere


def test_a_system_that_forbids_it_is_told_of_once_and_keeps_nobody_where_it_is(
    everywhere: set[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    owned = OwnCores()
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        first.submit(owned.settle).result()
        assert len(first.submit(cores).result()) == 1
        with monkeypatch.context() as patched:
            patched.setattr(os, "sched_setaffinity", forbidden)
            for pool in (second, first, second):
                pool.submit(owned.settle).result()
                pool.submit(owned.roam).result()
        (record,) = caplog.records
        assert "Operation not permitted" in record.message
        first.submit(owned.roam).result()
        for pool in (first, second):
            pool.submit(owned.settle).result()
            assert pool.submit(cores).result() == everywhere


@pytest.mark.parametrize(("idle", "settles"), [(1, False), (0, True)])
def test_work_settles_where_it_comes_while_no_thread_is_idle(everywhere: set[int], idle: int, settles: bool) -> None:
    async def test() -> None:
        turns, gate = Turns(len(everywhere)), threading.Event()

        def work() -> set[int]:
            gate.wait(60)
            return cores()

        running = [asyncio.ensure_future(turns.run((n,), work)) for n in range(len(everywhere) - idle)]
        await asyncio.sleep(0)
        next_one = asyncio.ensure_future(turns.run(("next",), cores))
        await asyncio.sleep(0)
        gate.set()
        assert await asyncio.gather(*running) == [everywhere] * len(running)
        assert len(await next_one) == (1 if settles else len(everywhere))
        assert await turns.run(("last",), cores) == everywhere
        turns.close()

    asyncio.run(asyncio.wait_for(test(), 60))
