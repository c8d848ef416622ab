"""How fast graphs are beside each other, on a machine that does other things too."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles

import numpy as np
from numpy.typing import NDArray

from finetune.bundle import INPUT
from finetune.preprocess import Pixels
from finetune.runtime import Session

# One photo as it comes, and a batch of a busy server.
BATCH_SIZES = (1, 8)
# A single call of a small network takes about a millisecond, and tells of the machine as much as of the network.
TURN_S = 0.05
# No round begins after it, but for the fewest.
TOTAL_S = 10.0
FEWEST_ROUNDS, MOST_ROUNDS = 5, 20

# A graph's name and a batch size.
Run = tuple[str, int]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Speed:
    """photos_a_second: medians by batch size. gains: in each round, how many times as fast as the first graph."""

    photos_a_second: Mapping[int, float]
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

    A gain is of the seconds a photo takes, summed over batch sizes.
    """
    batches = {size: np.resize(photos, (size, *photos.shape[1:])) for size in BATCH_SIZES}
    calls = {
        (name, size): partial(session.ort.run, None, {INPUT: batches[size]})
        for size in BATCH_SIZES
        for name, session in sessions.items()
    }
    seconds = _seconds_by_round(calls)
    # a photo of each batch size
    totals = {name: np.sum([seconds[name, size] / size for size in BATCH_SIZES], axis=0) for name in sessions}
    return {
        name: Speed(
            photos_a_second={size: size / float(np.median(seconds[name, size])) for size in BATCH_SIZES},
            gains=tuple((totals[next(iter(totals))] / total).tolist()),
        )
        for name, total in totals.items()
    }


def _seconds_by_round(calls: Mapping[Run, Callable[[], object]]) -> dict[Run, Numbers]:
    """Return what one of each call took in each round."""
    counts = {run: math.ceil(TURN_S / _seconds_once(call)) for run, call in calls.items()}
    seconds: dict[Run, list[float]] = {run: [] for run in calls}
    began = time.perf_counter()
    for done in range(MOST_ROUNDS):
        if done >= FEWEST_ROUNDS and time.perf_counter() - began > TOTAL_S:
            break
        # there and back, so that none always follows the same one
        for run in list(calls)[:: -1 if done % 2 else 1]:
            seconds[run].append(_seconds(calls[run], counts[run]) / counts[run])
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
