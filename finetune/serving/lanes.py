"""How a model's photos go from bytes to probabilities: each on a core of its own, or decoded apart and run together."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from finetune.cores import at_work
from finetune.preprocess import Pixels
from finetune.serving.admission import client
from finetune.serving.batcher import Batcher, Probabilities, Timings
from finetune.serving.predictor import Predictor
from finetune.serving.request_times import current_times
from finetune.serving.turns import Turns

Result = TypeVar("Result")
# From a photo as it was sent to the model's pixels; raises ImageError.
Decode = Callable[[bytes], Pixels]


class LaneTimings(Timings, Protocol):
    """Is told, on the event loop, how long each photo took to decode, waited and ran."""

    def decoded(self, seconds: float) -> None: ...


class Lane(Protocol):
    """Used from one event loop. What is cancelled before its turn is not begun."""

    async def classify(self, raw: bytes) -> Probabilities:
        """Return the probabilities (classes,) of a photo as it was sent; raises ImageError."""
        ...

    async def run(self, pixels: Pixels) -> Probabilities:
        """Return the probabilities (classes,) of a decoded photo (image_size, image_size, 3)."""
        ...


class Timed(NamedTuple):
    """A photo's row, and seconds: from its arrival to its turn, and of its turn."""

    row: Probabilities
    waited_s: float
    decoded_s: float
    ran_s: float


class Apart:
    """For processors: a core decodes a photo and runs it, while others do the same with theirs.

    Nothing is handed from thread to thread in between, and a photo that was decoded last is still in the core's cache.
    """

    def __init__(self, who: str, predictor: Predictor, decode: Decode, cores: Turns, timings: LaneTimings) -> None:
        """who: whose turn it is, of those of a client; cores: threads that several models share."""
        self._who, self._cores, self._timings = who, cores, timings
        self._predictor, self._decode = predictor, decode

    async def classify(self, raw: bytes) -> Probabilities:
        left = threading.Event()
        try:
            timed = await self._cores.run((client.get(), self._who), self._classify, raw, time.perf_counter(), left)
        except asyncio.CancelledError:
            left.set()
            raise
        self._timings.decoded(timed.decoded_s)
        current_times().decoded(timed.decoded_s)
        return self._told(timed)

    async def run(self, pixels: Pixels) -> Probabilities:
        return self._told(await self._cores.run((client.get(), self._who), self._run, pixels, time.perf_counter()))

    def _classify(self, raw: bytes, since: float, left: threading.Event) -> Timed:
        began = time.perf_counter()
        with at_work():
            pixels = self._decode(raw)
            decoded = time.perf_counter()
            if left.is_set():
                raise TimeoutError("nobody waits for this photo any more")
            row = self._predictor.run(pixels[None])[0]
        return Timed(row, began - since, decoded - began, time.perf_counter() - decoded)

    def _run(self, pixels: Pixels, since: float) -> Timed:
        began = time.perf_counter()
        row = self._predictor.run(pixels[None])[0]
        return Timed(row, began - since, 0.0, time.perf_counter() - began)

    def _told(self, timed: Timed) -> Probabilities:
        self._timings.waited(timed.waited_s)
        self._timings.ran(1, timed.ran_s)
        current_times().ran(timed.waited_s, timed.ran_s)
        return timed.row


class Together:
    """For GPUs, and where batches are asked for: photos are decoded on shared threads and meet in a batcher."""

    def __init__(self, who: str, batcher: Batcher, decode: Decode, decoding: Turns, timings: LaneTimings) -> None:
        self._who, self._batcher, self._decode, self._decoding, self._timings = who, batcher, decode, decoding, timings

    async def classify(self, raw: bytes) -> Probabilities:
        pixels, seconds = await self._decoding.run((client.get(), self._who), self._timed, raw)
        self._timings.decoded(seconds)
        current_times().decoded(seconds)
        return await self._batcher.submit(pixels, client.get())

    async def run(self, pixels: Pixels) -> Probabilities:
        return await self._batcher.submit(pixels, client.get())

    def _timed(self, raw: bytes) -> tuple[NDArray[np.uint8], float]:
        began = time.perf_counter()
        with at_work():
            pixels = self._decode(raw)
        return pixels, time.perf_counter() - began
