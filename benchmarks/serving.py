"""This server beside its peers and beside the machine's limit: same model, same photo, same cores, in turns.

    python benchmarks/serving.py BUNDLE PHOTO [--reduced BUNDLE] [--device cpu|cuda] [--seconds 8] [--rounds 3]

BUNDLE: a model's folder, such as models/textile; --reduced: the same model in int8, say. In each round every server is
started here, on loopback, alone, is asked by 1, 16 and 64 clients, and ends: some are busy while nobody asks. The limit
is what the machine can decode and run with no server at all, in the best of the ways of benchmarks/limits.py. With
--device cuda all of them run on the GPU. LitServe and BentoML run with one worker, as they come, and with one a core;
the better one counts. They need `pip install '.[peers]'`; one that is not there is left out, aloud.

Then what overload does: requests at random moments, at 0.8 times and at twice what the server can answer. Exits with 1
where anything that is aimed at was missed, where a server of ours failed or refused a request of the clients, and where
one answered nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from benchmarks.limits import ALONE, Row, limit_per_s, measured_without_server
from benchmarks.servers import Running, free_port, started
from finetune.bundle import open_bundle
from finetune.parallel import usable_cores
from finetune.runtime import Device

HERE = Path(__file__).parent
CLIENTS = (1, 16, 64)
OURS = "finetune serve"
READY_S = 2.0
# Of the queue under overload: what a service with a promise of a tenth of a second would set.
OVERLOAD_WAIT_S = 0.05
# Beside the seconds that are asked for: starting, and the answers that are still to come.
LOAD_WITHIN_S = 120.0
FORM = "multipart/form-data; boundary=edge; field="


@dataclass
class Served:
    """A server that runs. kind: the content type that it takes a photo as."""

    name: str
    port: int
    kind: str
    running: Running


@dataclass
class Measured:
    """What all rounds say of one server. ready_s: of each round; rows: of each round, by the number of clients."""

    name: str
    ready_s: list[float] = field(default_factory=list)
    rows: dict[int, list[Row]] = field(default_factory=lambda: {clients: [] for clients in CLIENTS})

    @property
    def product(self) -> str:
        return self.name.partition(",")[0]

    def all(self, clients: int, figure: str) -> list[float]:
        return [row[figure] for row in self.rows[clients]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--reduced", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    bundle, photo = given.bundle.resolve(), given.photo.resolve()
    reduced = given.reduced and given.reduced.resolve()
    raw = photo.read_bytes()
    measured: dict[str, Measured] = {}
    bare: list[dict[str, Row]] = []
    for _ in range(given.rounds):
        bare.append(measured_without_server(bundle, raw, given.device, given.seconds))
        for starting in _servers(bundle, reduced, given.device):
            with starting as server:
                known = measured.setdefault(server.name, Measured(server.name))
                known.ready_s.append(server.running.ready_s)
                for clients in CLIENTS:
                    known.rows[clients].append(load(server, photo, given.seconds, "clients", clients))
    print(f"{usable_cores()} cores, {given.device}\n")
    servers = list(measured.values())
    print_table(servers, bare)
    missed = judge(servers, bare)
    with _finetune(OURS, bundle, given.device, f"limits.wait_s={OVERLOAD_WAIT_S}") as server:
        missed += overload(server, photo, given.seconds, given.rounds)
    return int(missed > 0)


def print_table(servers: list[Measured], bare: list[dict[str, Row]]) -> None:
    limit = _median([limit_per_s(rows) for rows in bare])
    print("| server | clients | photos/s | of the limit | p50 ms | p99 ms | p99/p50 | failed | refused/s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in bare[0]:
        print(_table_row(name, "", limit, [rows[name] for rows in bare]) + "| | |")
    for clients in CLIENTS:
        for server in servers:
            failed, refused = sum(server.all(clients, "failed")), max(server.all(clients, "refused"))
            row = _table_row(server.name, str(clients), limit, server.rows[clients])
            print(f"{row}| {failed:.0f} | {refused:.1f} |")
    print()


def _table_row(name: str, clients: str, limit: float, rows: list[Row]) -> str:
    rate, p50, p99 = (_median([row[figure] for row in rows]) for figure in ("answered", "p50", "p99"))
    return f"| {name} | {clients} | {rate:.1f} | {rate / limit:.2f} | {p50:.1f} | {p99:.1f} | {p99 / p50:.2f} "


def judge(servers: list[Measured], bare: list[dict[str, Row]]) -> int:
    """Print each figure beside what is aimed at; returns how many were missed."""
    ours, missed = servers[0], 0
    for server in servers:
        most = READY_S if server.product == OURS else None
        missed += _missed(f"{server.name}: seconds until it is ready", server.ready_s, most=most)
        missed += _unanswered(server)
    alone = [p50 / rows[ALONE]["p50"] for p50, rows in zip(ours.all(1, "p50"), bare, strict=True)]
    missed += _missed("one client: p50 over decode and run", alone, most=1.1)
    spread = [p99 / p50 for p99, p50 in zip(ours.all(16, "p99"), ours.all(16, "p50"), strict=True)]
    missed += _missed("16 clients: p99 over p50", spread, most=1.3)
    rates = ours.all(16, "answered")
    shares = [rate / limit_per_s(rows) for rate, rows in zip(rates, bare, strict=True)]
    missed += _missed("16 clients: of what the cores can do", shares, least=0.95)
    for server in servers[1:]:
        if server.product == OURS:
            gains = _ratios(server.all(16, "answered"), rates)
            missed += _missed(f"16 clients: {server.name}, over float32", gains, least=1.6)
    for product in dict.fromkeys(server.product for server in servers if server.product != OURS):
        rows = [server.all(16, "answered") for server in servers if server.product == product]
        best = max(rows, key=statistics.median)
        missed += _missed(f"16 clients: over {product}", _ratios(rates, best), 1.2 if product == "LitServe" else None)
    return missed


def overload(server: Served, photo: Path, seconds: float, rounds: int) -> int:
    """Ask more than the server can answer; returns how much of what is aimed at was missed."""
    ratios, failed = [], 0.0
    for _ in range(rounds):
        # few enough that none is refused: those would ask again at once, and keep the cores from answering
        most = load(server, photo, seconds, "clients", 2 * usable_cores())["answered"]
        if not most:
            print("\nunder overload: nothing was answered: NOT reached")
            return 1
        calm = load(server, photo, seconds, "rate", 0.8 * most)
        flood = load(server, photo, seconds, "rate", 2 * most)
        failed += sum(row["failed"] for row in (calm, flood))
        ratios.append(flood["p99"] / calm["p99"])
        print(f"\nanswers {most:.0f}/s; p99, answered and refused a second:")
        for share, row in ((0.8, calm), (2, flood)):
            print(f"  at {share:g} of it {row['p99']:.0f} ms, {row['answered']:.0f}, {row['refused']:.1f}")
    missed = _missed("p99 at twice the load over p99 at 0.8", ratios, most=2)
    if failed:
        print(f"under overload {failed:.0f} requests failed: NOT reached")
    return missed + (failed > 0)


def _unanswered(server: Measured) -> int:
    """Tell of requests without an answer; returns for how many numbers of clients there were any that count."""
    missed = 0
    for clients in CLIENTS:
        failed, refused = sum(server.all(clients, "failed")), max(server.all(clients, "refused"))
        if not all(server.all(clients, "answered")):
            print(f"{server.name}, {clients} clients: nothing was answered in a round: NOT reached")
            missed += 1
        elif server.product == OURS and failed + refused:
            print(f"{server.name}, {clients} clients: {failed:.0f} failed, {refused:.1f} refused a second: NOT reached")
            missed += 1
    return missed


def _missed(what: str, figures: list[float], least: float | None = None, most: float | None = None) -> bool:
    """Print the median of the rounds beside what is aimed at; returns whether that was missed."""
    figure = _median(figures)
    aims = [f"at least {least:g}"] if least is not None else [f"at most {most:g}"] if most is not None else []
    reached = (least is None or figure >= least) and (most is None or figure <= most)
    told = [f" (aimed at: {aim}; {'reached' if reached else 'NOT reached'})" for aim in aims]
    print(f"{what}: {figure:.2f} ({min(figures):.2f} to {max(figures):.2f}){''.join(told)}")
    return not reached


def _ratios(over: list[float], under: list[float]) -> list[float]:
    return [a / b if b else math.nan for a, b in zip(over, under, strict=True)]


def _median(figures: list[float]) -> float:
    """Return their median, and no number where one is none: a round without an answer reaches nothing."""
    return math.nan if any(map(math.isnan, figures)) else statistics.median(figures)


def load(server: Served, photo: Path, seconds: float, way: str, amount: float) -> Row:
    words = [HERE / "load.py", server.port, photo, seconds, way, amount, server.kind]
    try:
        done = subprocess.run(
            [sys.executable, *map(str, words)], stdout=subprocess.PIPE, check=True, timeout=LOAD_WITHIN_S + 2 * seconds
        )
    except subprocess.SubprocessError as error:
        server.running.require_running()
        raise server.running.failed(f"could not be asked by {amount:g} {way}: {error}") from error
    row = {figure: math.nan if value is None else value for figure, value in json.loads(done.stdout).items()}
    print(f"{server.name}, {amount:g} {way}: {row['answered']:.1f}/s, p99 {row['p99']:.0f} ms", file=sys.stderr)
    return row


def _servers(bundle: Path, reduced: Path | None, device: Device) -> Iterator[AbstractContextManager[Served]]:
    yield _finetune(OURS, bundle, device)
    if reduced is not None:
        yield _finetune(f"{OURS}, {open_bundle(reduced).info.precision}", reduced, device)
    peers = HERE / "peers"
    yield _peer("FastAPI + onnxruntime", [peers / "serve_fastapi.py", bundle], "image/jpeg", DEVICE=device)
    if find_spec("litserve") is None:
        print("LitServe is left out: pip install '.[peers]'", file=sys.stderr)
    else:
        for workers, name in _numbers_of_workers("LitServe"):
            litserve = [peers / "serve_litserve.py", bundle]
            yield _peer(name, litserve, FORM + "request", "health", DEVICE=device, WORKERS=workers)
    if find_spec("bentoml") is None:
        print("BentoML is left out: pip install '.[peers]'", file=sys.stderr)
    else:
        for workers, name in _numbers_of_workers("BentoML"):
            bentoml = ["-m", "bentoml", "serve", "benchmarks.peers.serve_bentoml:Classifier", "--port"]
            yield _peer(name, bentoml, FORM + "photos", BUNDLE=str(bundle), DEVICE=device, WORKERS=workers)


def _numbers_of_workers(product: str) -> list[tuple[str, str]]:
    """Return with how many workers a product is measured, each beside the name of its row."""
    many = [(str(cores), f"{product}, {cores} workers") for cores in [usable_cores()] if cores > 1]
    return [("1", product), *many]


def _finetune(name: str, bundle: Path, device: Device, *words: str) -> AbstractContextManager[Served]:
    port = free_port()
    command = ["-m", "finetune", "serve", f"models={bundle}", f"device={device}", "reload_s=0", "logs=json"]
    return _serving(name, port, [*command, *words, f"port={port}"], "image/jpeg", "readyz")


def _peer(
    name: str, words: Sequence[object], kind: str, route: str = "readyz", **environment: str
) -> AbstractContextManager[Served]:
    port = free_port()
    return _serving(name, port, [*words, port], kind, route, **environment)


@contextmanager
def _serving(
    name: str, port: int, words: Sequence[object], kind: str, route: str, **environment: str
) -> Iterator[Served]:
    with started(name, [sys.executable, *words], f"http://127.0.0.1:{port}/{route}", **environment) as running:
        yield Served(name, port, kind, running)


if __name__ == "__main__":
    sys.exit(main())
