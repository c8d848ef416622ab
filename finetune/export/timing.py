"""How fast graphs are beside each other, on a machine that does other things too."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from finetune.bundle import INPUT
from finetune.parallel import usable_cores
from finetune.preprocess import Pixels
from finetune.runtime import Session

# A photo as it comes, and photos of a busy server: a batch on a GPU, and on a CPU a core for each.
WAYS = ("alone", "busy")
BATCH, OF_A_CORE = 8, 4
# A single call of a small network takes about a millisecond, and tells of the machine as much as of the network.
TURN_S = 0.05
# No round begins after it, but for the fewest.
TOTAL_S = 10.0
FEWEST_ROUNDS, MOST_ROUNDS = 5, 20

# A graph's name and a way to run it.
Run = tuple[str, str]
Numbers = NDArray[np.float64]


class Call(NamedTuple):
    """What is timed, and how many photos it runs."""

    photos: int
    run: Callable[[], object]


@dataclass(frozen=True)
class Speed:
    """photos_a_second: medians by WAYS. gains: in each round, how many times as fast as the first graph."""

    photos_a_second: Mapping[str, float]
    gains: tuple[float, ...]

    @property
    def gain(self) -> float:
        return median(self.gains)

    @property
    def usual_gains(self) -> tuple[float, float]:
        """The quartiles: half of the rounds lie between them."""
        low, _, high = quantiles(self.gains, n=4, method="inclusive")
        return low, high


def time_in_turns(sessions: Mapping[str, Session], photos: Pixels) -> dict[str, Speed]:
    """Time all graphs in turns of TURN_S or more, so that what troubles the machine troubles all alike.

    A gain is of the seconds a photo takes, summed over both ways.
    """
    with ThreadPoolExecutor(usable_cores()) as cores:
        calls: dict[Run, Call] = {}
        for name, session in sessions.items():
            calls[name, "alone"] = Call(1, partial(session.ort.run, None, {INPUT: photos[:1]}))
            calls[name, "busy"] = _busy(session, photos, cores)
        seconds = _seconds_by_round(calls)
    totals = {name: np.sum([seconds[name, way] for way in WAYS], axis=0) for name in sessions}
    return {
        name: Speed(
            photos_a_second={way: 1 / float(np.median(seconds[name, way])) for way in WAYS},
            gains=tuple((totals[next(iter(totals))] / total).tolist()),
        )
        for name, total in totals.items()
    }


def _busy(session: Session, photos: Pixels, cores: ThreadPoolExecutor) -> Call:
    """As the server runs photos that wait for each other."""
    if session.provider != "cpu":
        batch = np.resize(photos, (BATCH, *photos.shape[1:]))
        return Call(BATCH, partial(session.ort.run, None, {INPUT: batch}))

    def one_after_the_other(_: int) -> None:
        for _ in range(OF_A_CORE):
            session.ort.run(None, {INPUT: photos[:1]})

    count = usable_cores()
    return Call(count * OF_A_CORE, lambda: list(cores.map(one_after_the_other, range(count))))


def _seconds_by_round(calls: Mapping[Run, Call]) -> dict[Run, Numbers]:
    """Return what a photo took by each call in each round."""
    counts = {run: math.ceil(TURN_S / _seconds_once(call.run)) for run, call in calls.items()}
    seconds: dict[Run, list[float]] = {run: [] for run in calls}
    began = time.perf_counter()
    for done in range(MOST_ROUNDS):
        if done >= FEWEST_ROUNDS and time.perf_counter() - began > TOTAL_S:
            break
        # there and back, so that none always follows the same one
        for run in list(calls)[:: -1 if done % 2 else 1]:
            call = calls[run]
            seconds[run].append(_seconds(call.run, counts[run]) / (counts[run] * call.photos))
    return {run: np.asarray(each) for run, each in seconds.items()}


def _seconds_once(call: Callable[[], object]) -> float:
    """Return what one call takes when nothing comes between; the first only warms up."""
    call()
    return min(_seconds(call, 1) for _ in range(3))


def _seconds(call: Callable[[], object], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - began
