"""Does a server's memory grow, and does it ever fail, while photos of all sizes and formats come in for a long time?

    python benchmarks/soak.py MODELS [SECONDS]

MODELS: a model repository, such as `finetune export` writes. SECONDS: 1800 by default. Eight clients send photos of
many sizes and formats, alone and in batches, by every interface, as fast as they are answered. Exits 1 where a request
failed, or where memory, after a warm-up of a quarter of the time, grew by more than LIMIT_MB_PER_HOUR beyond three
standard errors of its slope.
"""

from __future__ import annotations

import base64
import io
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import tritonclient.http as triton
from PIL import Image

CLIENTS, DEFAULT_S, SAMPLE_S = 8, 1800.0, 1.0
# What an hour of arenas that fill up, of one interpreter and one allocator, may cost; a leak of 1 KB a request shows.
LIMIT_MB_PER_HOUR = 30.0
WARM_UP = 0.25
SIDES_PX = (32, 100, 224, 500, 1000, 1600)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")


def main(models: str, seconds: float = DEFAULT_S) -> int:
    photos = draw_photos()
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("w+") as log:
        command = [sys.executable, "-m", "finetune", "serve", f"models={models}", "port=0", "limits.wait_s=30"]
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            address = wait_until_ready(server, Path(folder, "log"))
            return soak(server.pid, address, photos, seconds)
        finally:
            server.terminate()
            server.wait()


def soak(pid: int, address: str, photos: list[bytes], seconds: float) -> int:
    ended, counts = threading.Event(), Counter[str]()
    pool = ThreadPoolExecutor(CLIENTS)
    clients = [pool.submit(ask, address, photos, number, ended, counts) for number in range(CLIENTS)]
    samples = []
    began = time.monotonic()
    while (now := time.monotonic() - began) < seconds:
        if now > WARM_UP * seconds:
            samples.append((now / 3600, psutil.Process(pid).memory_info().rss / 1e6))
        time.sleep(SAMPLE_S)
    ended.set()
    for client in clients:
        # raises what kept one from asking at all
        client.result()
    failed = sum(count for kind, count in counts.items() if kind.startswith("failed"))
    slope, error = slope_of(*np.array(samples).T)
    grew = slope - 3 * error > LIMIT_MB_PER_HOUR
    print(f"{counts['answered']} requests of {counts['photos']} photos answered in {seconds:g} s, {failed} failed")
    for kind, count in counts.items():
        if kind.startswith("failed"):
            print(f"  {count} x {kind}")
    print(f"memory {samples[0][1]:.0f} MB after warm-up, {samples[-1][1]:.0f} MB at the end")
    judged = f"limit {LIMIT_MB_PER_HOUR:g}: {'GREW' if grew else 'ok'}"
    print(f"slope {slope:+.1f} MB an hour, standard error {error:.1f}, {judged}")
    return int(grew or failed > 0 or not counts["answered"])


def slope_of(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return the slope of the least-squares line, and its standard error as if the samples had no memory.

    They have one, so that the true error is larger: what is judged is a whole number of errors beyond a limit.
    """
    away = x - x.mean()
    slope = float((away * y).sum() / (away**2).sum())
    residuals = y - y.mean() - slope * away
    return slope, float(np.sqrt((residuals**2).sum() / (len(x) - 2) / (away**2).sum()))


def ask(address: str, photos: list[bytes], number: int, ended: threading.Event, counts: Counter[str]) -> None:
    chance, own = random.Random(number), Counter[str]()
    with (
        httpx.Client(base_url=address, timeout=60) as client,
        triton.InferenceServerClient(
            address.removeprefix("http://"), connection_timeout=60, network_timeout=60
        ) as infer,
    ):
        models = sorted({entry["name"] for entry in client.get("/models").json()["models"]})
        while not ended.is_set():
            kind, model = chance.choice(("raw", "form", "json", "infer", "bad", "metrics")), chance.choice(models)
            batch = chance.choices(photos, k=1 if kind in ("raw", "bad") else chance.choice((1, 1, 2, 5, 12)))
            try:
                if kind == "infer":
                    array = np.array(batch, dtype=object)
                    tensor = triton.InferInput("encoded_images", array.shape, "BYTES").set_data_from_numpy(array)
                    right = infer.infer(model, [tensor]).as_numpy("probabilities").shape[0] == len(batch)
                else:
                    right = asked_over_http(client, kind, model, batch)
                own["answered" if right else f"failed: {kind}"] += 1
                own["photos"] += len(batch)
            except Exception as error:
                own[f"failed: {kind}: {error!r}"] += 1
    counts.update(own)


def asked_over_http(client: httpx.Client, kind: str, model: str, batch: list[bytes]) -> bool:
    """Send photos by one of the interfaces; returns whether the answer is what it should be."""
    if kind == "metrics":
        return client.get("/metrics").status_code == 200
    address = f"/predict?model={model}"
    if kind == "bad":
        return client.post(address, content=batch[0][:200]).status_code == 422
    if kind == "raw":
        response = client.post(address, content=batch[0])
    elif kind == "form":
        response = client.post(address, files=[("photo", ("photo", raw)) for raw in batch])
    else:
        response = client.post(address, json={"photos": [base64.b64encode(raw).decode() for raw in batch]})
    return response.status_code == 200 and len(response.json()["predictions"]) == len(batch)


def draw_photos() -> list[bytes]:
    chance = np.random.default_rng(0)
    photos = []
    for side in SIDES_PX:
        coarse = Image.fromarray(chance.integers(0, 256, (8, 8, 3), np.uint8))
        for form in FORMATS:
            if form == "BMP" and side > 500:
                continue
            buffer = io.BytesIO()
            coarse.resize((side, side * 3 // 4)).save(buffer, form)
            photos.append(buffer.getvalue())
    return photos


def wait_until_ready(server: subprocess.Popen[bytes], log: Path) -> str:
    while server.poll() is None:
        found = re.search(r"http://[\d.]+:\d+", log.read_text())
        try:
            if found and httpx.get(f"{found[0]}/readyz").status_code == 200:
                return found[0]
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit(log.read_text())


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    raise SystemExit(main(sys.argv[1], *map(float, sys.argv[2:])))
