"""Does a server's memory grow, and does it ever fail, while photos of all sizes and formats come in for a long time?

    python benchmarks/soak.py MODELS [SECONDS]

MODELS: a model repository, such as `finetune export` writes. SECONDS: 1800 by default. Each photo is asked about alone;
then eight clients send photos of many sizes and formats, alone and in batches, by every interface, as fast as they are
answered. Exits 1 where a request failed or a photo had another answer than alone, where the server has ended, or where
memory grew after a warm-up of a quarter of the time: where its slope less three standard errors is still more than
LIMIT_MB_PER_HOUR.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks.interfaces import OTHERS, PHOTOS, Client, Known
from benchmarks.servers import Running, free_port, started

CLIENTS, DEFAULT_S, SAMPLE_S = 8, 1800.0, 1.0
# A week of it comes to less than one photo of 100 megapixels takes while it is decoded, for which there has to be room.
LIMIT_MB_PER_HOUR = 2.0
WARM_UP = 0.25
# Memory a second later is much the same; the means of so long stretches know little of each other, as an error needs.
STRETCHES = 12
SIDES_PX = (32, 100, 224, 500, 1000, 1600)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("seconds", type=float, nargs="?", default=DEFAULT_S)
    given = parser.parse_args()
    port, grpc_port = free_port(), free_port()
    words = [f"models={given.models.resolve()}", f"port={port}", f"grpc_port={grpc_port}", "limits.wait_s=30"]
    command = [sys.executable, "-m", "finetune", "serve", *words]
    photos = draw_photos()

    def connect() -> Client:
        return Client(f"http://127.0.0.1:{port}", f"127.0.0.1:{grpc_port}", photos)

    with started("finetune serve", command, f"http://127.0.0.1:{port}/readyz") as server:
        with connect() as client:
            known = {model: client.known(model) for model in client.models()}
        for model, answers in known.items():
            print(f"{model}: {len(photos)} photos were asked about alone, {told_apart(answers)} pairs told apart")
        return soak(server, connect, known, given.seconds)


def told_apart(answers: list[Known]) -> str:
    """Return of how many pairs of photos a swap would show."""
    pairs = [(one, other) for number, one in enumerate(answers) for other in answers[:number]]
    return f"{sum(not one.same_row(other.row) for one, other in pairs)} of {len(pairs)}"


def soak(server: Running, connect: Callable[[], Client], known: dict[str, list[Known]], seconds: float) -> int:
    ended, counts = threading.Event(), Counter[str]()
    pool = ThreadPoolExecutor(CLIENTS)
    # Ctrl-C may come at any moment, and Python waits for threads that nobody ends
    try:
        clients = [pool.submit(ask, connect, known, number, ended, counts) for number in range(CLIENTS)]
        print(f"{CLIENTS} clients ask for {seconds:g} s", flush=True)
        samples = sampled(server, clients, seconds)
    finally:
        ended.set()
    for client in clients:
        # raises what kept one from asking at all
        client.result()
    return report(counts, np.array(samples), seconds)


def sampled(server: Running, clients: list[Future[None]], seconds: float) -> list[tuple[float, float]]:
    """Return hours and MB of the server from after the warm-up on; raises where it, or a client, has ended."""
    process, samples = psutil.Process(server.process.pid), []
    began = time.monotonic()
    while (now := time.monotonic() - began) < seconds:
        server.require_running()
        for client in clients:
            if client.done():
                client.result()
        if now > WARM_UP * seconds:
            samples.append((now / 3600, process.memory_info().rss / 1e6))
        time.sleep(SAMPLE_S)
    server.require_running()
    return samples


def report(counts: Counter[str], samples: np.ndarray, seconds: float) -> int:
    failed = sum(count for kind, count in counts.items() if kind.startswith("failed"))
    slope, error, grew = judge(samples)
    print(f"{counts['answered']} requests of {counts['photos']} photos answered in {seconds:g} s, {failed} failed")
    for kind, count in counts.items():
        if kind.startswith("failed"):
            print(f"  {count} x {kind}")
    print(f"memory {samples[0][1]:.0f} MB after warm-up, {samples[-1][1]:.0f} MB at the end")
    least = LIMIT_MB_PER_HOUR + 3 * error
    print(
        f"slope {slope:+.1f} MB an hour, standard error {error:.1f}, told above {least:.1f}: {'GREW' if grew else 'ok'}"
    )
    return int(grew or failed > 0 or not counts["answered"])


def judge(samples: np.ndarray) -> tuple[float, float, bool]:
    """Return the slope in MB an hour, its standard error, and whether memory grew; samples: rows of hours and MB."""
    stretches = np.array_split(samples, min(STRETCHES, len(samples)))
    slope, error = slope_of(*np.array([stretch.mean(0) for stretch in stretches]).T)
    return slope, error, slope - 3 * error > LIMIT_MB_PER_HOUR


def slope_of(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return the slope of the least-squares line, and its standard error where points know nothing of each other."""
    away = x - x.mean()
    slope = float((away * y).sum() / (away**2).sum())
    residuals = y - y.mean() - slope * away
    return slope, float(np.sqrt((residuals**2).sum() / (len(x) - 2) / (away**2).sum()))


def ask(
    connect: Callable[[], Client],
    known: dict[str, list[Known]],
    seed: int,
    ended: threading.Event,
    counts: Counter[str],
) -> None:
    chance, own = random.Random(seed), Counter[str]()
    with connect() as client:
        while not ended.is_set():
            kind, model = chance.choice(PHOTOS + OTHERS), chance.choice(sorted(known))
            size = 1 if kind == "raw" else chance.choice((1, 1, 2, 5, 12))
            numbers = chance.choices(range(len(client.photos)), k=size) if kind in PHOTOS else []
            try:
                if numbers:
                    right = client.right(kind, model, numbers, known[model])
                else:
                    right = client.right_without_photos(kind, model)
            except Exception as error:
                own[f"failed: {kind}: {error!r}"] += 1
                continue
            own["answered" if right else f"failed: {kind}"] += 1
            own["photos"] += len(numbers) if right else 0
    counts.update(own)


def draw_photos() -> list[bytes]:
    """Return photos of every size and format, each of other pixels around another colour, so that answers differ."""
    chance = np.random.default_rng(0)
    photos = []
    for side in SIDES_PX:
        for form in FORMATS:
            if form == "BMP" and side > 500:
                continue
            colour = chance.integers(0, 156, 3)
            coarse = Image.fromarray((colour + chance.integers(0, 100, (8, 8, 3))).astype(np.uint8))
            buffer = io.BytesIO()
            coarse.resize((side, side * 3 // 4)).save(buffer, form)
            photos.append(buffer.getvalue())
    return photos


if __name__ == "__main__":
    raise SystemExit(main())
