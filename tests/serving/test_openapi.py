"""What /openapi.json says is what is done: Schemathesis asks each route what is allowed there, and what is not.

Some hundreds of requests here; the full form is

    FUZZ_REQUESTS=10000 pytest tests/serving/test_openapi.py
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis

from tests.serving.conftest import Server, Start

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "300"))
ANSWER_WITHIN_S = 10
ADMIN_BELOW = "/v2/repository/models/"
# CI asks the same each time, the full form something else
CHANCE = ["--generation-database", "none"] if "FUZZ_REQUESTS" in os.environ else ["--generation-deterministic"]
# most requests name what is there; what bytes and numbers mean is not in a schema, so some that it allows are refused,
# and 413, too many photos, refuses what it does not allow; 504 is of a request that gives itself a microsecond
SETTINGS = """
hooks = "photos.py"
cache.enabled = false

[dictionaries]
models.values = ["tiny"]
versions.values = ["1"]
photos.values = ["{photo}"]

[parameters]
"path.name" = {{ dictionary = "models", probability = 0.8 }}
"path.version" = {{ dictionary = "versions", probability = 0.8 }}
"query.model" = {{ dictionary = "models", probability = 0.8 }}
"query.version" = {{ dictionary = "versions", probability = 0.8 }}
"body.photos[*]" = {{ dictionary = "photos", probability = 0.8 }}

[[operations]]
include-path = "/predict"
checks.positive_data_acceptance.expected-statuses = ["2xx", 401, 404, 413, 422]
checks.negative_data_rejection.expected-statuses = [400, 401, 404, 405, 413, 415, 422]

[[operations]]
include-path-regex = "/infer$"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 401, 404, 504]
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", 504]
"""
HOOKS = """
import schemathesis
from hypothesis import strategies as st

schemathesis.openapi.media_type("image/jpeg", st.just({photo}))
"""


def line(name: str, role: str, key: str) -> str:
    return f"{name} {role} {hashlib.sha256(key.encode()).hexdigest()}\n"


def told(log: str) -> Counter[tuple[str, int]]:
    """Return how often each method and path had which status."""
    entries = [json.loads(text) for text in log.splitlines()]
    return Counter((entry["message"], entry["status"]) for entry in entries if "status" in entry)


def counted(server: Server) -> Counter[str]:
    """Return how many requests each route has had by now, but for those of another method."""
    text = httpx.get(f"{server.address}/metrics", headers={"X-API-Key": "chief"}).text
    found = re.findall(r'(?m)^finetune_requests_total\{code="(\d+)",route="(.+)"\} (\S+)$', text)
    counts: Counter[str] = Counter()
    for code, route, count in found:
        counts[route] += 0 if code == "405" else int(float(count))
    return counts


@pytest.mark.parametrize(
    ("key", "asked", "reached"),
    [
        (None, "^/", [("POST /predict", 200), ("GET /v2/models/tiny/versions/1/stats", 200)]),
        ("clerk", "^/", [("POST /predict", 200), ("POST /predict", 401), (f"POST {ADMIN_BELOW}tiny/load", 403)]),
        ("nobody", "^/", [("POST /predict", 401), (f"POST {ADMIN_BELOW}tiny/load", 401)]),
        # no more, as what it unloads is gone
        ("chief", f"^{ADMIN_BELOW}", [(f"POST {ADMIN_BELOW}tiny/{verb}", 200) for verb in ("load", "unload")]),
    ],
    ids=["without keys", "with a key", "with an unknown key", "with an admin's key"],
)
def test_each_route_does_what_is_said_of_it(
    tiny_models: Path,
    red_photo: bytes,
    tmp_path: Path,
    start_server: Start,
    key: str | None,
    asked: str,
    reached: list[tuple[str, int]],
) -> None:
    (tmp_path / "photos.py").write_text(HOOKS.format(photo=red_photo))
    (tmp_path / "settings.toml").write_text(SETTINGS.format(photo=base64.b64encode(red_photo).decode()))
    (tmp_path / "keys").write_text(line("clerk", "predict", "clerk") + line("chief", "admin", "chief"))
    server = start_server(
        tiny_models,
        "limits.body_mb=1",
        "limits.wait_s=3600",
        "limits.deadline_s=3600",
        *([] if key is None else [f"keys={tmp_path / 'keys'}"]),
    )
    documented = httpx.get(f"{server.address}/openapi.json").json()["paths"]
    assert {len(operations) for operations in documented.values()} == {1}, "a route tells which operation it is"
    before = counted(server)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", "settings.toml", "run", *CHANCE]
    command += [f"{server.address}/openapi.json", "--include-path-regex", asked, "--no-color"]
    # each is asked its share in every phase
    command += ["--max-examples", str(max(1, REQUESTS // len(documented))), "--request-timeout", str(ANSWER_WITHIN_S)]
    command += [] if key is None else ["--header", f"Authorization: Bearer {key}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # the look at the counters before is none of these
    had = counted(server) - before - Counter(["/metrics"])
    for path in documented:
        assert not re.search(asked, path) or had[path], (path, had)
    server.require_no_fault()
    statuses = told(server.log.read_text())
    assert not [one for one in reached if one not in statuses], statuses


def test_answers_are_as_they_are_described(server: Server, red_photo: bytes) -> None:
    """Those that the routes for photos give where all is well, as requests by chance do not get as far."""
    described = schemathesis.openapi.from_url(f"{server.address}/openapi.json")
    encoded = struct.pack("<I", len(red_photo)) + red_photo
    tensor = {"name": "encoded_images", "datatype": "BYTES", "shape": [1]}
    wanted: list[dict[str, bool | int]] = [{}, {"classification": 2}, {"binary_data": True}]
    for parameters in wanted:
        document = {
            "id": "7",
            "inputs": [{**tensor, "parameters": {"binary_data_size": len(encoded)}}],
            "outputs": [{"name": "probabilities", "parameters": parameters}],
        }
        text = json.dumps(document).encode()
        headers = {"Inference-Header-Content-Length": str(len(text))}
        answer = httpx.post(f"{server.address}/v2/models/tiny/infer", content=text + encoded, headers=headers)
        assert answer.status_code == 200, answer.text
        described["/v2/models/{name}/infer"]["POST"].validate_response(answer)
    photos = [base64.b64encode(raw).decode() for raw in (red_photo, b"no photo")]
    answer = httpx.post(f"{server.address}/predict", json={"photos": photos})
    assert "error" in answer.json()["predictions"][1]
    described["/predict"]["POST"].validate_response(answer)


def test_every_answer_in_json_is_described_to_its_last_field(server: Server) -> None:
    document = httpx.get(f"{server.address}/openapi.json").json()

    def require_described(schema: dict[str, Any], where: str) -> None:
        if "$ref" in schema:
            schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        for one in schema.get("anyOf", []):
            require_described(one, where)
        if schema.get("type") == "object":
            assert schema.get("properties"), where
        for name, inner in schema.get("properties", {}).items():
            require_described(inner, f"{where} {name}")
        if schema.get("type") == "array":
            require_described(schema["items"], where)

    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            kinds = operation["responses"]["200"].get("content", {})
            if "application/json" in kinds:
                require_described(kinds["application/json"]["schema"], f"{method} {path}")


def test_a_version_is_asked_for_in_the_path_alone(server: Server) -> None:
    """FastAPI would make a parameter of the query of one that not every path of a function has."""
    for path, methods in httpx.get(f"{server.address}/openapi.json").json()["paths"].items():
        for operation in methods.values():
            known = [(one["in"], one["name"], one["schema"]) for one in operation.get("parameters", [])]
            assert [name for place, name, _ in known if place == "path"] == re.findall(r"{(\w+)}", path)
            assert all(schema["type"] == "string" for place, _, schema in known if place == "path")
            assert path == "/predict" or all(place != "query" for place, _, _ in known)
