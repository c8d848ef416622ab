"""What docs/serving.md and the README say of the server is what it does."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi.testclient import TestClient
from pydantic_core import from_json

from finetune.config import ServeConfig
from finetune.schema import describe
from finetune.serving.interface import FIXED, JSON_DEPTH, description
from tests.conftest import CLASSES, ROOT, rewrite_bundle
from tests.serving.conftest import READY_WITHIN_S, Start, assembled, serve_config

SERVING = (ROOT / "docs/serving.md").read_text()
DEPLOYING = [ROOT / "docs/deploy.md", ROOT / "docs/deploy/rules.yaml", ROOT / "docs/deploy/autoscale.yaml"]


def rows(text: str, head: str) -> list[list[str]]:
    """Return the cells of the table whose first line begins with `head`."""
    lines = text[text.index(head) :].splitlines()[2:]
    table = lines[: next(n for n, line in enumerate([*lines, ""]) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def default(key: str) -> str:
    value: Any = yaml.safe_load((ROOT / "conf/serve.yaml").read_text())
    for part in key.split("."):
        value = value[part]
    return "null" if value is None else str(value)


def wait_until_ready(client: TestClient) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_table_of_limits_has_every_key_as_it_is() -> None:
    known = {key: text for key, text in describe(ServeConfig).items() if key.startswith(("batch.", "limits."))}
    table = rows(SERVING, "| key | default | status | meaning |")
    assert [row[0].strip("`") for row in table] == list(known)
    for name, value, status, meaning in table:
        key = name.strip("`")
        assert (value, meaning) == (default(key), known[key])
        assert set(re.findall(r"\b[45]\d\d\b", meaning)) <= {status}


def test_the_limits_of_the_readme_are_those() -> None:
    statuses = {row[0]: row[2] for row in rows(SERVING, "| key | default | status | meaning |") if "limits." in row[0]}
    table = rows((ROOT / "README.md").read_text(), "| limit | default | above it | of |")
    assert [row[0] for row in table] == list(statuses)
    for name, value, status, _ in table:
        assert (value, status) == (default(name.strip("`")), statuses[name] or "closed")


def test_the_fixed_limits_are_told_everywhere_as_they_are() -> None:
    told = description(serve_config(ROOT).limits)
    head = "| fixed | above it | of |"
    assert [tuple(row) for row in rows(told, head)] == list(FIXED)
    assert rows(SERVING, head) == rows(told, head)


def test_json_is_as_deep_as_is_told() -> None:
    assert from_json("[" * JSON_DEPTH + "]" * JSON_DEPTH)
    with pytest.raises(ValueError, match="recursion limit"):
        from_json("[" * (JSON_DEPTH + 1) + "]" * (JSON_DEPTH + 1))


def test_keys_and_defaults_that_the_text_names_exist() -> None:
    known = describe(ServeConfig)
    for document in ("serving.md", "deploy.md", "security.md"):
        text = (ROOT / "docs" / document).read_text()
        for key in re.findall(r"`((?:limits|batch)\.\w+)", text):
            assert key in known, f"{document}: {key}"
        for key, value in re.findall(r"`(drain_s|grace_s|reload_s)` \((\d+)\)", text):
            assert value == default(key), f"{document}: {key}"


def test_every_route_is_told(tiny_models: Path) -> None:
    """In docs/serving.md, but for what the Open Inference Protocol itself describes."""
    # the pages are not in the schema
    paths = {*assembled(tiny_models).app.openapi()["paths"], "/", "/docs"}
    told = set(re.findall(r"`(?:(?:GET|POST) )?(/[\w/{}]*)`", SERVING))
    told.add("/v2/repository/models/{name}/unload")
    assert {path for path in paths if not path.startswith("/v2/")} <= {*told, "/v2"}
    assert {path for path in told if path.startswith("/v2/")} <= paths


def test_every_metric_that_is_told_is_there(tiny_models: Path) -> None:
    photo = (tiny_models.parent / "photos/red/0.jpg").read_bytes()
    with TestClient(assembled(tiny_models, limits={"body_mb": 1}).app) as client:
        wait_until_ready(client)
        client.post("/predict", content=photo)
        client.post("/predict", content=b"x" * 1_100_000)
        samples = client.get("/metrics").text
    there = set(re.findall(r"^(\w+)", samples, re.MULTILINE)) | set(re.findall(r"^# TYPE (\w+)", samples, re.MULTILINE))
    for text in (SERVING, *(path.read_text() for path in DEPLOYING)):
        # not the rule's own name, which has a colon
        named = set(re.findall(r"\b((?:finetune|nv_inference)_\w+)(?!:)", text))
        assert named <= there, named - there


def test_what_photos_wait_for_is_told_as_metrics_say(tiny_models: Path) -> None:
    told = " ".join(row[1] for row in rows(SERVING, "| at `GET /metrics` | says |"))
    helps = dict(re.findall(r"(?m)^# HELP (\w+) (.*)\.$", assembled(tiny_models).metrics.text()[0].decode()))
    assert helps["finetune_pending_photos"].lower() in told
    assert helps["finetune_wait_seconds"].removeprefix("One photo's ") in told


def test_tritonclient_as_it_is_told(
    tiny_models: Path, tmp_path: Path, start_server: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    shutil.copytree(tiny_models / "tiny", models / "flowers")
    rewrite_bundle(models / "flowers/1", name="flowers")
    server = start_server(models)
    (tmp_path / "photos").symlink_to(tiny_models.parent / "photos")
    for text in (SERVING, (ROOT / "docs/deploy.md").read_text()):
        (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        exec(code.replace("localhost:8000", server.address.removeprefix("http://")), {})
    values, best, decoded_by_the_client = capsys.readouterr().out.splitlines()
    assert decoded_by_the_client == values
    assert len(values.strip("[]").split()) == len(CLASSES)
    assert re.match(r"\[\[b'0\.\d+:2:red' b'0\.\d+:\d:\w+'\]\]", best)


def test_the_proof_is_named_as_it_is_called() -> None:
    (script,) = re.findall(r"^(scripts/\S+) models photos/\S+$", SERVING, re.MULTILINE)
    told = subprocess.run([ROOT / script, "--help"], capture_output=True, text=True, check=True).stdout
    assert f"{script} MODELS PHOTO" in told
    for path in re.findall(r"(?:benchmarks|tests)/[\w/.]*\w", told):
        assert (ROOT / path).exists(), path
    wrong = subprocess.run([ROOT / script, "none"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, "usage: scripts/prove-server MODELS PHOTO" in wrong.stderr) == (2, True)


def test_large_photos_of_a_form_never_reach_the_disk(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file was made")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    photo = (tiny_models.parent / "photos/red/0.jpg").read_bytes()
    # a JPEG may have anything behind its end
    large = photo + bytes(5_000_000)
    with TestClient(assembled(tiny_models).app) as client:
        wait_until_ready(client)
        answer: httpx.Response = client.post("/predict", files=[("a", ("a.jpg", large)), ("b", ("b.jpg", large))])
    assert [entry["label"] for entry in answer.json()["predictions"]] == ["red", "red"]
