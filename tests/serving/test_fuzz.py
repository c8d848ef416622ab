"""Requests of every kind that nobody would send on purpose: no fault of the server, no hang, ready after each.

A few hundred here; the full form is

    FUZZ_REQUESTS=10000 pytest tests/serving/test_fuzz.py
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.serving.conftest import Server, start

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "600"))
# CI asks the same each time, the full form something else
SEED = random.randrange(2**32) if "FUZZ_REQUESTS" in os.environ else 0
BATCH = 50
ANSWER_WITHIN_S = 10
ADMIN = {"Authorization": "Bearer root"}
UNLOAD = b"/v2/repository/models/tiny/unload"
fuzzing = settings(
    max_examples=REQUESTS // 2,
    database=None,
    # CI asks the same each time, the full form something else
    derandomize="FUZZ_REQUESTS" not in os.environ,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


class Fuzzed:
    """A server that is asked anything: it is ready after each request, and looked after between batches."""

    def __init__(self, server: Server, photo: bytes) -> None:
        self.server, self.photo = server, photo
        self.client = httpx.Client(base_url=server.address, timeout=ANSWER_WITHIN_S)
        self.statuses: Counter[int] = Counter()
        self.spec: dict[str, Any] = self.client.get("/openapi.json").json()

    def ask(self, method: str, target: bytes, headers: list[tuple[str, bytes]], body: bytes) -> httpx.Response:
        request = self.client.build_request(method, "/", headers=headers, content=body)
        request.extensions["target"] = target
        response = self.client.send(request)
        self.statuses[response.status_code] += 1
        assert response.status_code < 500 or response.status_code in (503, 504), response.text
        # a preflight's refusal is words for a browser's console
        if response.status_code >= 400 and method not in ("HEAD", "OPTIONS"):
            assert list(response.json()) == ["error"]
        unloaded = method == "POST" and target.partition(b"?")[0] == UNLOAD and response.is_success
        self.require_ready(unloaded)
        if self.statuses.total() % BATCH == 0:
            self.look_after()
        return response

    def require_ready(self, unloaded: bool) -> None:
        """Fail the test unless it is ready; without its only model it is not, and gets it back at once."""
        if unloaded:
            assert self.client.get("/readyz").status_code == 503
            self.load()
        assert self.client.get("/readyz").status_code == 200

    def load(self) -> None:
        assert self.client.post("/v2/repository/models/tiny/load", headers=ADMIN).status_code == 200

    def look_after(self) -> None:
        # it may just have been unloaded
        self.load()
        assert self.client.get("/healthz").status_code == 200
        assert self.client.get("/readyz").status_code == 200
        answer = self.client.post("/predict", content=self.photo, headers=ADMIN)
        assert answer.json()["predictions"][0]["label"] == "red"
        self.server.require_no_fault()


def start_fuzzed(models: Path, folder: Path, *words: str) -> Server:
    """Start a server that has one key, and small limits."""
    (folder / "keys").write_text(f"root admin {hashlib.sha256(b'root').hexdigest()}")
    common = (f"keys={folder / 'keys'}", "limits.body_mb=1", "limits.body_s=2", "reload_s=0.2")
    return start(models, folder / "log", *common, *words)


@pytest.fixture(scope="module")
def fuzzed(tiny_models: Path, red_photo: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    server = start_fuzzed(tiny_models, tmp_path_factory.mktemp("fuzz"), "cors=[https://a.example]")
    asked = Fuzzed(server, red_photo)
    yield asked
    asked.look_after()
    asked.client.close()
    server.process.kill()
    server.process.wait()


def ask_each(routes: Sequence[str], ask: Callable[[str, st.DataObject], None]) -> None:
    """Give each route its share of the requests, the first of which has the first and shortest of all that is drawn."""
    share = settings(fuzzing, max_examples=REQUESTS // 2 // len(routes))
    for number, route in enumerate(routes):
        seed(SEED + number)(share(given(st.just(route), st.data())(ask)))()


# any route

PRINTABLE = st.characters(min_codepoint=0x21, max_codepoint=0x7E)
WORDS = st.sampled_from(["tiny", "tinny", "1", "2", "01", "-1", "%00", "%2e%2e", "..", "%ff", "9" * 400, "stats", "*"])
SEGMENT = WORDS | st.text(PRINTABLE, min_size=1, max_size=12)
NAMES = (
    "Content-Type",
    "Content-Encoding",
    "Accept-Encoding",
    "Inference-Header-Content-Length",
    "X-Request-ID",
    "Host",
)
MORE_NAMES = (
    "Authorization",
    "X-API-Key",
    "Origin",
    "Range",
    "If-None-Match",
    "If-Modified-Since",
    "Cookie",
    "Upgrade",
)
AND_MORE = ("Connection", "Access-Control-Request-Method", "Access-Control-Request-Headers", "traceparent", "Accept")
VALUES = st.sampled_from(
    [
        *(
            "application/json",
            "multipart/form-data",
            "multipart/form-data; boundary=b",
            "multipart/form-data; boundary=",
        ),
        *(
            "multipart/form-data; boundary=b; charset=undefined",
            "application/x-www-form-urlencoded",
            "image/jpeg",
            "text",
        ),
        *(
            "gzip",
            "deflate",
            "identity",
            "br",
            "gzip;q=nan",
            "*;q=1e400",
            "gzip, gzip",
            "0",
            "5",
            "-1",
            "1e3",
            "9" * 50,
        ),
        *("https://a.example", "null", "bytes=0-5", "bytes=5-0", "bytes=-1", "bytes=0-0,1-1", "close", "Upgrade"),
        *("websocket", "h2c", "[::1", "a:b:c", "a b", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "Bearer", "Bearer x"),
    ]
)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from((*NAMES, *MORE_NAMES, *AND_MORE)),
        VALUES.map(str.encode)
        | st.text(PRINTABLE | st.characters(min_codepoint=0xA0, max_codepoint=0xFF)).map(
            lambda text: text.encode("latin-1")
        ),
    ),
    max_size=4,
    # httpx takes one Host only
    unique_by=lambda header: header[0],
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["photos", "inputs", "a"]), inner),
    max_leaves=8,
)
FORM = st.lists(
    st.sampled_from(
        [
            *(
                b"--b\r\n",
                b"--b--\r\n",
                b"--b",
                b"\r\n",
                b"\r\n\r\n",
                b"words",
                b"Content-Type: image/jpeg\r\n",
                bytes(50),
            ),
            b'Content-Disposition: form-data; name="a"; filename="\xff"\r\n\r\n',
            b'Content-Disposition: form-data; name="a"\r\n\r\n',
            b"Content-Disposition: form-data\r\n\r\n",
            b"Content-Transfer-Encoding: base64\r\n",
        ]
    ),
    max_size=12,
).map(b"".join)
QUERY = st.lists(st.tuples(st.sampled_from(["top", "model", "version", "x"]), SEGMENT), max_size=3)
BODIES = st.just(b"") | st.binary(max_size=200) | FORM | JSON.map(lambda value: json.dumps(value).encode())
METHODS = st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE"])


def test_any_request_to_any_route(fuzzed: Fuzzed) -> None:
    documented = fuzzed.spec["paths"]
    routes = [*documented, "/", "/docs", "/docs-assets/{name}", "/{name}", "//{name}"]
    answered: set[str] = set()

    def ask(route: str, data: st.DataObject) -> None:
        methods = [name.upper() for name in documented.get(route, {"get": {}})]
        # near to what is right, so that it gets past the names and the key; the first to each is quite right
        sound = data.draw(st.sampled_from([True, False]))
        named = {"name": "tiny", "version": "1"} if sound else {}
        path = re.sub(r"\{(\w+)\}", lambda found: named.get(found[1]) or data.draw(SEGMENT), route)
        method = data.draw(st.sampled_from(methods) if sound or data.draw(st.booleans()) else METHODS)
        query = [] if sound else data.draw(QUERY)
        target = path + ("?" if query else "") + "&".join(f"{name}={value}" for name, value in query)
        right = st.just(fuzzed.photo if route == "/predict" else b"")
        body = data.draw(right if sound else st.just(fuzzed.photo) | BODIES)
        headers = data.draw(HEADERS)
        if sound or data.draw(st.integers(0, 9)):
            headers = [
                ("Authorization", b"Bearer root"),
                *((name, value) for name, value in headers if name != "Authorization"),
            ]
        if fuzzed.ask(method, target.encode(), headers, body).is_success and method in methods:
            answered.add(route)

    ask_each(routes, ask)
    # of bodies that /infer takes there are none here: the next test has them
    reachable = {route for route in (*documented, "/", "/docs") if not route.endswith("/infer")}
    assert answered >= reachable, reachable - answered


# the binary protocol

SIZES = (
    st.integers(-2, 5) | st.sampled_from([64, 2**31, 2**62, 2**63, 10**30]) | st.floats() | st.none() | st.booleans()
)
SHAPES = st.sampled_from([[1], [2], [1, 1], [1, 64, 64, 3], [0], []]) | st.lists(SIZES, max_size=5) | JSON
DATATYPES = st.sampled_from(["UINT8", "BYTES", "FP32", "FP16", "BOOL", "INT64", "BF16", "uint8", ""]) | JSON
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "binary_data_size": st.integers(-1, 200) | SIZES,
        "binary_data": st.booleans() | JSON,
        "binary_data_output": st.booleans() | JSON,
        "classification": st.integers(-1, 5) | JSON,
        "timeout": st.integers(-1, 2**64) | JSON,
        "shared_memory_region": JSON,
        "priority": JSON,
    },
)
INPUT = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["images", "encoded_images", "x"]) | JSON,
        "datatype": DATATYPES,
        "shape": SHAPES,
        "parameters": PARAMETERS | JSON,
        "data": st.lists(st.integers(-1, 256), max_size=4) | JSON,
    },
)
OUTPUT = st.fixed_dictionaries({"name": st.just("probabilities") | JSON}, optional={"parameters": PARAMETERS | JSON})
DOCUMENT = st.fixed_dictionaries(
    {"inputs": st.lists(INPUT, max_size=3) | JSON},
    optional={
        "id": st.text(max_size=5) | JSON,
        "parameters": PARAMETERS | JSON,
        "outputs": st.lists(OUTPUT, max_size=3),
    },
)
RAW = st.binary(max_size=100)
OFF = st.integers(-2, 2) | st.integers()


def test_any_request_to_infer(fuzzed: Fuzzed) -> None:
    routes = [route for route in fuzzed.spec["paths"] if route.endswith("/infer")]
    statuses: Counter[tuple[str, int]] = Counter()

    def ask(route: str, data: st.DataObject) -> None:
        # near to what is right, so that it gets as far as the model; the first to each is quite right
        if data.draw(st.sampled_from([True, False])):
            photo = data.draw(st.just(fuzzed.photo) | st.just(fuzzed.photo[:500]) | RAW)
            raw = struct.pack("<I", max(0, len(photo) + data.draw(st.sampled_from([0, 0, 0, -1, 1, 2**31])))) + photo
            parameters = {"binary_data_size": len(raw) + data.draw(st.sampled_from([0, 0, 0, -1, 1]))}
            tensor = {"name": "encoded_images", "datatype": "BYTES", "shape": [1], "parameters": parameters}
            document = {**data.draw(st.just({}) | DOCUMENT), "inputs": [tensor]}
            off = data.draw(st.just(0) | OFF)
        else:
            document, raw, off = data.draw(DOCUMENT), data.draw(RAW), data.draw(OFF)
        text = json.dumps(document).encode()
        headers = [("Authorization", b"Bearer root")]
        if raw or data.draw(st.booleans()):
            headers.append(("Inference-Header-Content-Length", str(len(text) + off).encode()))
        headers += [(name, value) for name, value in data.draw(HEADERS) if "coding" in name]
        target = route.format(name="tiny", version="1").encode()
        statuses[route, fuzzed.ask("POST", target, headers, text + raw).status_code] += 1

    ask_each(routes, ask)
    for route in routes:
        assert statuses[route, 200], statuses
        assert statuses[route, 400], statuses


def test_photos_with_bytes_changed(fuzzed: Fuzzed) -> None:
    chance = random.Random(0)
    statuses: Counter[int] = Counter()
    for _ in range(REQUESTS // 4):
        photo = bytearray(fuzzed.photo)
        for _ in range(chance.randint(1, 20)):
            photo[chance.randrange(len(photo))] = chance.randrange(256)
        response = fuzzed.ask("POST", b"/predict?top=1", [("Authorization", b"Bearer root")], bytes(photo))
        statuses[response.status_code] += 1
    assert statuses[200] > REQUESTS // 20
