"""On a clock that calls of pretended networks move on, each by its time and by the machine's trouble."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier, get_ident
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from finetune.export import timing
from finetune.export.timing import Speed, time_in_turns
from finetune.export.variants import WORTH
from finetune.providers import Provider
from finetune.runtime import Session


@dataclass
class Machine:
    """Every call takes up to twice its time, and one in a hundred 20 ms more; for a while it is slower altogether."""

    seed: int
    now: float = 0.0
    calls: int = 0
    draw: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.draw = np.random.default_rng(self.seed)

    def session(self, seconds_a_photo: float) -> Session:
        def run(_: None, feeds: dict[str, Any]) -> None:
            self.calls += 1
            busy = 1.5 if 3 < self.now % 10 < 6 else 1.0
            stolen = 0.02 if self.draw.random() < 0.01 else 0.0
            self.now += len(feeds["images"]) * seconds_a_photo * busy * self.draw.uniform(1, 2) + stolen

        return Session(SimpleNamespace(run=run), "cpu", "")


Timed = Callable[[Machine, dict[str, float]], dict[str, Speed]]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Timed:
    def timed(machine: Machine, seconds: dict[str, float]) -> dict[str, Speed]:
        monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: machine.now))
        monkeypatch.setattr(timing, "usable_cores", lambda: 1)
        sessions = {name: machine.session(each) for name, each in seconds.items()}
        return time_in_turns(sessions, np.zeros((3, 2, 2, 3), np.uint8))

    return timed


@pytest.mark.parametrize("seed", range(20))
def test_small_networks_on_a_busy_machine_are_told_apart_only_where_they_differ(timed: Timed, seed: int) -> None:
    speeds = timed(Machine(seed), {"fp32": 0.001, "same": 0.001, "faster": 0.0006})
    assert speeds["fp32"].gain == 1
    assert speeds["same"].usual_gains[0] < WORTH
    assert speeds["faster"].usual_gains[0] > WORTH
    assert speeds["faster"].gain == pytest.approx(1.5, rel=0.15)
    low, high = speeds["same"].usual_gains
    assert low <= speeds["same"].gain <= high


def test_the_time_is_bounded_and_large_networks_get_fewer_rounds(timed: Timed) -> None:
    small, large = Machine(0), Machine(0)
    five = ("fp32", "fp16", "mixed", "bf16", "int8")
    assert len(timed(small, dict.fromkeys(five, 0.001))["fp32"].gains) >= 10
    assert small.now < 1.2 * timing.TOTAL_S
    assert len(timed(large, dict.fromkeys(five, 0.5))["fp32"].gains) == timing.FEWEST_ROUNDS
    assert large.calls == len(five) * (1 + timing.OF_A_CORE) * (timing.FEWEST_ROUNDS + 4)


def test_photos_a_second_are_of_a_photo_alone_and_of_many(timed: Timed) -> None:
    speeds = timed(Machine(0), {"fp32": 0.01})["fp32"].photos_a_second
    assert set(speeds) == {"alone", "busy"}
    assert all(30 < speed < 100 for speed in speeds.values())


@pytest.mark.parametrize(("provider", "wanted"), [("cpu", [1] * 12), ("cuda", [8])])
def test_a_busy_cpu_runs_a_photo_on_each_core_and_a_gpu_a_batch(
    monkeypatch: pytest.MonkeyPatch, provider: Provider, wanted: list[int]
) -> None:
    ran: list[int] = []
    threads: set[int] = set()
    together = Barrier(3)

    def run(_: None, feeds: dict[str, Any]) -> None:
        ran.append(len(feeds["images"]))
        if provider == "cpu":
            together.wait(30)
            threads.add(get_ident())

    monkeypatch.setattr(timing, "usable_cores", lambda: 3)
    session = Session(SimpleNamespace(run=run), provider, "")
    with ThreadPoolExecutor(3) as cores:
        call = timing._busy(session, np.zeros((2, 2, 2, 3), np.uint8), cores)
        call.run()
    assert ran == wanted
    assert call.photos == sum(wanted)
    assert len(threads) == (3 if provider == "cpu" else 0)


def test_nothing_that_runs_is_no_speed(timed: Timed) -> None:
    assert timed(Machine(0), {}) == {}
