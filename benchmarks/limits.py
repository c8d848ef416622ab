"""What a machine decodes and runs with no server at all, which no server can exceed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from finetune.bundle import open_bundle
from finetune.parallel import usable_cores
from finetune.preprocess import load_pixels
from finetune.runtime import Device
from finetune.serving.predictor import Predictor, open_predictor

Row = dict[str, float]
ALONE, SESSION = "no server, one photo at a time", "no server, one photo, decoded before"


def measured_without_server(bundle: Path, raw: bytes, device: Device, seconds: float) -> dict[str, Row]:
    """Return photos a second ("answered"), and p50 and p99 in ms, of each way to do it.

    All cores on one photo, the same without decoding, one thread a core with photos of its own and, on a GPU, batches
    of what the cores decode.
    """
    opened = open_bundle(bundle)
    together, share = open_predictor(opened, device), seconds / 2
    images = load_pixels(raw, together.preprocessing)[None]
    rows = {
        ALONE: _repeated(lambda: _classify(together, raw), share, 1),
        SESSION: _repeated(lambda: together.run(images), share, 1),
    }
    if together.on_gpu:
        rows[f"no server, batches of {together.batch_size}"] = _in_batches(together, raw, share)
    apart = open_predictor(opened, device, 1)
    cores = usable_cores()
    return {**rows, f"no server, {cores} threads": _repeated(lambda: _classify(apart, raw), share, cores)}


def limit_per_s(rows: dict[str, Row]) -> float:
    """Return the photos a second of the best way from file to answer."""
    return max(row["answered"] for name, row in rows.items() if name != SESSION)


def _classify(predictor: Predictor, raw: bytes) -> None:
    predictor.explain(predictor.run(load_pixels(raw, predictor.preprocessing)[None])[0], 5)


def _repeated(work: Callable[[], object], seconds: float, threads: int) -> Row:
    stop = time.perf_counter() + seconds

    def repeat(_: int) -> list[float]:
        times = []
        while (began := time.perf_counter()) < stop:
            work()
            times.append(time.perf_counter() - began)
        return times

    with ThreadPoolExecutor(threads) as pool:
        return _row(list(chain.from_iterable(pool.map(repeat, range(threads)))), seconds)


def _in_batches(predictor: Predictor, raw: bytes, seconds: float) -> Row:
    stop = time.perf_counter() + seconds
    begun: list[float] = []

    def photos() -> Iterator[bytes]:
        while (now := time.perf_counter()) < stop:
            begun.append(now)
            yield raw

    began = time.perf_counter()
    # answers come in the order of the photos
    times = [time.perf_counter() - begun[number] for number, _ in enumerate(predictor.answers(photos()))]
    return _row(times, time.perf_counter() - began)


def _row(times: list[float], seconds: float) -> Row:
    times.sort()
    p50, p99 = statistics.median(times), times[int(0.99 * len(times))]
    return {"answered": len(times) / seconds, "p50": 1000 * p50, "p99": 1000 * p99}
