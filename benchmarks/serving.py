"""This server beside its peers and beside the machine's limit: same model, same photo, same cores, in turns.

    python benchmarks/serving.py BUNDLE PHOTO [--reduced BUNDLE] [--device cpu|cuda] [--seconds 8] [--rounds 3]

BUNDLE: a model's folder, such as models/textile; --reduced: the same model in int8, say. In each round every server is
started here, on loopback, alone, is asked by 1, 16 and 64 clients, and ends: some are busy while nobody asks. The limit
is what the machine can decode and run with no server at all: one thread a core, each decoding and running photo after
photo, or all cores on one photo, whichever does more. With --device cuda all of them run on the GPU, and photos that
the cores decode and it runs in batches take the place of the second. The peers need `pip install '.[peers]'`; one that
is not there is left out, aloud.

Then what overload does: requests at random moments, at 0.8 times and at twice what the server can answer. Exits with 1
where anything that is aimed at was missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import repeat, takewhile
from pathlib import Path
from socket import socket
from urllib.error import URLError
from urllib.request import urlopen

from finetune.bundle import open_bundle
from finetune.parallel import usable_cores
from finetune.preprocess import load_pixels
from finetune.runtime import Device
from finetune.serving.predictor import Predictor, open_predictor

HERE = Path(__file__).parent
CLIENTS = (1, 16, 64)
# Of the queue under overload: what a service with a promise of a tenth of a second would set.
OVERLOAD_WAIT_S = 0.05
FORM = "multipart/form-data; boundary=edge; field="


@dataclass
class Served:
    """One server and what it did. kind: the content type that it takes a photo as; ready_s: from its start on."""

    name: str
    port: int
    kind: str = "image/jpeg"
    ready_s: float = 0.0
    measured: dict[int, list[dict[str, float]]] = field(default_factory=dict)

    def median(self, clients: int, figure: str) -> float:
        return statistics.median(row[figure] for row in self.measured[clients])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--reduced", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    raw = given.photo.read_bytes()
    measured: dict[str, Served] = {}
    limits, alone = [], []
    for _ in range(given.rounds):
        limits.append(limit(given.bundle, raw, given.device, given.seconds))
        alone.append(one_photo_ms(given.bundle, raw, given.device))
        for starting in _servers(given.bundle, given.reduced, given.device):
            with starting as server:
                known = measured.setdefault(server.name, server)
                for clients in CLIENTS:
                    row = load(server, given.photo, given.seconds, "clients", clients)
                    known.measured.setdefault(clients, []).append(row)
    print(f"{usable_cores()} cores, {given.device}; ", end="")
    missed = report(list(measured.values()), statistics.median(limits), statistics.median(alone))
    with _finetune("overloaded", given.bundle, given.device, f"limits.wait_s={OVERLOAD_WAIT_S}") as server:
        missed += overload(server, given.photo, given.seconds, given.rounds)
    return int(missed > 0)


def report(servers: list[Served], limit_per_s: float, alone_ms: float) -> int:
    """Print what was measured; returns how much of what is aimed at was missed."""
    print(f"no server: {limit_per_s:.1f} photos/s; decode and run of one: {alone_ms:.1f} ms\n")
    print("| server | clients | photos/s | of the limit | p50 ms | p99 ms | p99/p50 | failed |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for clients in CLIENTS:
        for server in servers:
            rate, p50, p99 = (server.median(clients, figure) for figure in ("answered", "p50", "p99"))
            failed = sum(row["failed"] + row["refused"] for row in server.measured[clients])
            shares = f"{rate / limit_per_s:.2f} | {p50:.1f} | {p99:.1f} | {p99 / p50:.2f}"
            print(f"| {server.name} | {clients} | {rate:.1f} | {shares} | {failed:.0f} |")
    ours = servers[0]
    print("\n" + ", ".join(f"{server.name} is ready after {server.ready_s:.1f} s" for server in servers))
    missed = _missed("one client: p50 over decode and run", [ours.median(1, "p50") / alone_ms], most=1.1)
    missed += _missed("16 clients: p99 over p50", [ours.median(16, "p99") / ours.median(16, "p50")], most=1.3)
    missed += _missed("16 clients: of what the cores can do", [ours.median(16, "answered") / limit_per_s], least=0.95)
    for server in servers[1:]:
        pairs = zip(ours.measured[16], server.measured[16], strict=True)
        ratios = [a["answered"] / b["answered"] for a, b in pairs]
        if server.name.startswith(ours.name):
            missed += _missed(f"16 clients: {server.name}, over float32", [1 / ratio for ratio in ratios], least=1.6)
        else:
            least = 1.2 if server.name == "LitServe" else None
            missed += _missed(f"16 clients: over {server.name}", ratios, least)
    return missed


def overload(server: Served, photo: Path, seconds: float, rounds: int) -> int:
    ratios = []
    for _ in range(rounds):
        # few enough that none is refused: those would ask again at once, and keep the cores from answering
        most = load(server, photo, seconds, "clients", 2 * usable_cores())["answered"]
        calm = load(server, photo, seconds, "rate", 0.8 * most)
        flood = load(server, photo, seconds, "rate", 2 * most)
        ratios.append(flood["p99"] / calm["p99"])
        print(f"\nanswers {most:.0f}/s; p99, answered and refused a second:")
        for share, row in ((0.8, calm), (2, flood)):
            print(f"  at {share:g} of it {row['p99']:.0f} ms, {row['answered']:.0f}, {row['refused']:.1f}")
    return _missed("p99 at twice the load over p99 at 0.8", ratios, most=2)


def _missed(what: str, ratios: list[float], least: float | None = None, most: float | None = None) -> bool:
    """Print the median of the rounds beside what is aimed at; returns whether that was missed."""
    ratio = statistics.median(ratios)
    aims = [f"at least {least:g}"] if least is not None else [f"at most {most:g}"] if most is not None else []
    reached = (least is None or ratio >= least) and (most is None or ratio <= most)
    told = [f" (aimed at: {aim}; {'reached' if reached else 'NOT reached'})" for aim in aims]
    print(f"{what}: {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}){''.join(told)}")
    return not reached


def limit(bundle: Path, raw: bytes, device: Device, seconds: float) -> float:
    """Return the photos a second that are decoded and run without a server, in the better of two ways."""
    opened = open_bundle(bundle)
    alone = _rate(open_predictor(opened, device, 1), raw, seconds / 2, usable_cores())
    together = open_predictor(opened, device)
    if together.on_gpu:
        return max(alone, _rate_in_batches(together, raw, seconds / 2))
    return max(alone, _rate(together, raw, seconds / 2, 1))


def _rate_in_batches(predictor: Predictor, raw: bytes, seconds: float) -> float:
    predictor.warm_up()
    stop = time.perf_counter() + seconds
    rows = takewhile(lambda _: time.perf_counter() < stop, predictor.answers(repeat(raw), predictor.batch_size))
    return sum(1 for _ in rows) / seconds


def _rate(predictor: Predictor, raw: bytes, seconds: float, threads: int) -> float:
    predictor.warm_up()
    stop = time.perf_counter() + seconds

    def work(_: int) -> int:
        photos = 0
        while time.perf_counter() < stop:
            _classify(predictor, raw)
            photos += 1
        return photos

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(work, range(threads))) / seconds


def one_photo_ms(bundle: Path, raw: bytes, device: Device) -> float:
    """Return the median time of one photo from file to probabilities, alone on the machine."""
    predictor = open_predictor(open_bundle(bundle), device)
    predictor.warm_up()
    times = []
    for _ in range(50):
        began = time.perf_counter()
        _classify(predictor, raw)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def _classify(predictor: Predictor, raw: bytes) -> None:
    predictor.explain(predictor.run(load_pixels(raw, predictor.preprocessing)[None])[0], 5)


def load(server: Served, photo: Path, seconds: float, way: str, amount: float) -> dict[str, float]:
    command = [sys.executable, HERE / "load.py", str(server.port), photo, str(seconds), way, str(amount), server.kind]
    row: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    print(f"{server.name}, {amount:g} {way}: {row['answered']:.1f}/s, p99 {row['p99']:.0f} ms", file=sys.stderr)
    return row


def _servers(bundle: Path, reduced: Path | None, device: Device) -> Iterator[AbstractContextManager[Served]]:
    yield _finetune("finetune serve", bundle, device)
    if reduced is not None:
        yield _finetune(f"finetune serve, {open_bundle(reduced).info.precision}", reduced, device)
    peers = HERE / "peers"
    yield _started("FastAPI + onnxruntime", [sys.executable, peers / "serve_fastapi.py", bundle], DEVICE=device)
    if find_spec("litserve") is None:
        print("LitServe is left out: pip install '.[peers]'", file=sys.stderr)
    else:
        command = [sys.executable, peers / "serve_litserve.py", bundle]
        yield _started("LitServe", command, FORM + "request", DEVICE=device)
    if find_spec("bentoml") is None:
        print("BentoML is left out: pip install '.[peers]'", file=sys.stderr)
    else:
        words = ["-m", "bentoml", "serve", "benchmarks.peers.serve_bentoml:Classifier", "--port"]
        yield _started("BentoML", [sys.executable, *words], FORM + "photos", BUNDLE=str(bundle), DEVICE=device)


def _finetune(name: str, bundle: Path, device: Device, *words: str) -> AbstractContextManager[Served]:
    command = [sys.executable, "-m", "finetune", "serve", f"models={bundle}", f"device={device}", "reload_s=0"]
    return _started(name, [*command, "logs=json", *words, "port="])


@contextmanager
def _started(name: str, command: list[str | Path], kind: str = "image/jpeg", **environment: str) -> Iterator[Served]:
    """Start a server whose last word is, or goes on with, its port; wait until anything answers there."""
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(word) for word in command]
    words = [*words[:-1], f"{words[-1]}{port}"] if words[-1].endswith("=") else [*words, str(port)]
    root = str(HERE.parent)
    process = subprocess.Popen(
        words,
        env={**os.environ, "PYTHONPATH": root, **environment},
        cwd=root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        began = time.perf_counter()
        _wait(name, port, process)
        yield Served(name, port, kind, time.perf_counter() - began)
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def _wait(name: str, port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(3000):
        if process.poll() is not None:
            raise SystemExit(f"{name} has ended with exit code {process.returncode}")
        try:
            with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1):
                return
        except URLError as error:
            # a server without such a route is up, too
            if getattr(error, "code", 0) == 404:
                return
        except OSError:
            pass
        time.sleep(0.02)
    raise SystemExit(f"{name} does not answer")


if __name__ == "__main__":
    sys.exit(main())
