"""Does a server's memory grow, and does it ever fail, while photos of all sizes and formats come in for a long time?

    python benchmarks/soak.py MODELS [SECONDS]

MODELS: a model repository, such as `finetune export` writes. SECONDS: 1800 by default. Eight clients send photos of
many sizes and formats, alone and in batches, by every interface, as fast as they are answered. Exits 1 where a request
failed, or where memory grew after a warm-up of a quarter of the time: where its slope less three standard errors is
still more than LIMIT_MB_PER_HOUR.
"""

from __future__ import annotations

import base64
import io
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from PIL import Image

CLIENTS, DEFAULT_S, SAMPLE_S = 8, 1800.0, 1.0
# A week of it comes to less than one photo of 100 megapixels takes while it is decoded, for which there has to be room.
LIMIT_MB_PER_HOUR = 2.0
WARM_UP = 0.25
# Memory a second later is much the same; the means of so long stretches know little of each other, as an error needs.
STRETCHES = 12
SIDES_PX = (32, 100, 224, 500, 1000, 1600)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
KINDS = ("raw", "form", "json", "infer", "grpc", "bad", "metrics")


def main(models: str, seconds: float = DEFAULT_S) -> int:
    photos = draw_photos()
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("w+") as log:
        port = free_port()
        words = [f"models={models}", "port=0", f"grpc_port={port}", "limits.wait_s=30"]
        server = subprocess.Popen([sys.executable, "-m", "finetune", "serve", *words], stdout=log, stderr=log)
        try:
            addresses = wait_until_ready(server, Path(folder, "log")), f"127.0.0.1:{port}"
            return soak(server.pid, addresses, photos, seconds)
        finally:
            server.terminate()
            server.wait()


def soak(pid: int, addresses: tuple[str, str], photos: list[bytes], seconds: float) -> int:
    ended, counts = threading.Event(), Counter[str]()
    pool = ThreadPoolExecutor(CLIENTS)
    clients = [pool.submit(ask, addresses, photos, number, ended, counts) for number in range(CLIENTS)]
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
    slope, error, grew = judge(np.array(samples))
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
    addresses: tuple[str, str], photos: list[bytes], number: int, ended: threading.Event, counts: Counter[str]
) -> None:
    chance, own = random.Random(number), Counter[str]()
    http, grpc = addresses
    with (
        httpx.Client(base_url=http, timeout=60) as client,
        triton.InferenceServerClient(http.removeprefix("http://"), connection_timeout=60, network_timeout=60) as infer,
        triton_grpc.InferenceServerClient(grpc) as call,
    ):
        models = sorted({entry["name"] for entry in client.get("/models").json()["models"]})
        while not ended.is_set():
            kind, model = chance.choice(KINDS), chance.choice(models)
            batch = chance.choices(photos, k=1 if kind in ("raw", "bad") else chance.choice((1, 1, 2, 5, 12)))
            try:
                if kind == "infer":
                    right = inferred(infer.infer(model, [tensor_of(triton, batch)]), batch)
                elif kind == "grpc":
                    right = inferred(call.infer(model, [tensor_of(triton_grpc, batch)], client_timeout=60), batch)
                else:
                    right = asked_over_http(client, kind, model, batch)
                own["answered" if right else f"failed: {kind}"] += 1
                own["photos"] += len(batch)
            except Exception as error:
                own[f"failed: {kind}: {error!r}"] += 1
    counts.update(own)


def tensor_of(protocol: Any, batch: list[bytes]) -> Any:
    """Return photos as one of Triton's two clients sends them."""
    array = np.array(batch, dtype=object)
    return protocol.InferInput("encoded_images", array.shape, "BYTES").set_data_from_numpy(array)


def inferred(result: Any, batch: list[bytes]) -> bool:
    return bool(result.as_numpy("probabilities").shape[0] == len(batch))


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


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


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
