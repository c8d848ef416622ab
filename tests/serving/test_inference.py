"""NVIDIA's own client, as it is published, against a real server."""

from __future__ import annotations

import base64
import hashlib
import shutil
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as sync
import tritonclient.http.aio as aio
from tritonclient.utils import InferenceServerException

from finetune.preprocess import load_pixels
from tests.conftest import CLASSES
from tests.serving.conftest import Server, start

SIDE_PX = 64
KEYS = (("root", "admin"), ("user", "predict"))


# the client adds headers of its own to what it is given, so each request gets a new one
def root() -> dict[str, str]:
    return {"Authorization": "Bearer root"}


def user() -> dict[str, str]:
    return {"Authorization": "Bearer user"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def models(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(tiny_models, tmp_path_factory.mktemp("repository") / "models"))
    shutil.copytree(folder / "tiny" / "1", folder / "tiny" / "2")
    shutil.copytree(folder / "tiny", folder / "second")
    return folder


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two models of two versions each, with keys."""
    folder = tmp_path_factory.mktemp("inference")
    lines = [f"{name} {role} {hashlib.sha256(name.encode()).hexdigest()}" for name, role in KEYS]
    (folder / "keys").write_text("\n".join(lines))
    words = (f"keys={folder / 'keys'}", "versions=all", "reload_s=0", "limits.photos=8", "limits.body_mb=1")
    running = start(models, folder / "log", *words)
    yield running
    running.require_no_fault()
    running.process.kill()
    running.process.wait()


@pytest.fixture
def client(server: Server) -> Iterator[sync.InferenceServerClient]:
    with sync.InferenceServerClient("{}:{}".format(*server.place)) as opened:
        yield opened


@pytest.fixture
async def async_client(server: Server) -> AsyncIterator[aio.InferenceServerClient]:
    async with aio.InferenceServerClient("{}:{}".format(*server.place)) as opened:
        yield opened


@pytest.fixture(scope="module")
def files(tiny_models: Path) -> list[bytes]:
    return [(tiny_models.parent / "photos" / label / "0.jpg").read_bytes() for label in CLASSES]


@pytest.fixture(scope="module")
def expected(server: Server, files: list[bytes]) -> np.ndarray:
    """Return what POST /predict says of the photos, by the order of the classes."""
    parts = [("photo", (f"{number}.jpg", raw)) for number, raw in enumerate(files)]
    answer = httpx.post(f"{server.address}/predict", params={"model": "tiny"}, files=parts, headers=user()).json()
    by_label = [{score["label"]: score["probability"] for score in row["top"]} for row in answer["predictions"]]
    return np.array([[row[label] for label in CLASSES] for row in by_label], np.float32)


def encoded(files: list[bytes], shape: tuple[int, ...] | None = None) -> sync.InferInput:
    array = np.array(files, dtype=object).reshape(shape or (len(files),))
    return sync.InferInput("encoded_images", array.shape, "BYTES").set_data_from_numpy(array)


def decoded(tiny_models: Path, files: list[bytes], binary: bool = True) -> sync.InferInput:
    from finetune.bundle import open_bundle

    preprocessing = open_bundle(tiny_models / "tiny" / "1").info.model.preprocessing
    pixels = np.stack([load_pixels(raw, preprocessing) for raw in files])
    return sync.InferInput("images", pixels.shape, "UINT8").set_data_from_numpy(pixels, binary_data=binary)


def refused(ask: Any, status: int) -> str:
    with pytest.raises(InferenceServerException) as caught:
        ask()
    assert caught.value.status() == str(status)
    return str(caught.value.message())


def test_what_it_says_of_itself(client: sync.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny", headers=user())
    assert client.is_model_ready("tiny", "2", headers=user())
    assert not client.is_model_ready("tiny", "3", headers=user())
    assert not client.is_model_ready("tinny", headers=user())
    assert "binary_tensor_data" in client.get_server_metadata(headers=user())["extensions"]
    metadata = client.get_model_metadata("tiny", headers=user())
    assert metadata["versions"] == ["1", "2"]
    assert metadata["inputs"][0] == {"name": "images", "datatype": "UINT8", "shape": [-1, SIDE_PX, SIDE_PX, 3]}
    assert metadata["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}]
    config = client.get_model_config("tiny", "1", headers=user())
    assert (config["name"], config["max_batch_size"]) == ("tiny", 8)
    assert config["version_policy"] == {"specific": {"versions": [1, 2]}}
    index = client.get_model_repository_index(headers=user())
    assert [(row["name"], row["version"], row["state"]) for row in index] == [
        (name, version, "READY") for name in ("second", "tiny") for version in ("1", "2")
    ]


def test_statistics_of_all_models_of_one_and_of_a_version(
    client: sync.InferenceServerClient, files: list[bytes]
) -> None:
    def count(**which: str) -> list[int]:
        found = client.get_inference_statistics(headers=user(), **which)["model_stats"]
        return [model["inference_stats"]["success"]["count"] for model in found]

    before = count(model_name="second", model_version="1")
    client.infer("second", [encoded(files)], "1", headers=user())
    assert len(count()) == 4
    assert count(model_name="second")[0] == before[0] + 1
    assert len(count(model_name="second")) == 2, "every version, as the one that answers may be a canary"
    assert count(model_name="second", model_version="1") == [before[0] + 1]


@pytest.mark.parametrize("kind", ["encoded", "encoded in a column", "binary", "json"])
@pytest.mark.parametrize("answer", ["nothing said", "binary", "json"])
def test_answers_are_those_of_predict(
    client: sync.InferenceServerClient,
    tiny_models: Path,
    files: list[bytes],
    expected: np.ndarray,
    kind: str,
    answer: str,
) -> None:
    sent = {
        "encoded": lambda: encoded(files),
        "encoded in a column": lambda: encoded(files, (3, 1)),
        "binary": lambda: decoded(tiny_models, files),
        "json": lambda: decoded(tiny_models, files, binary=False),
    }[kind]()
    outputs = None
    if answer != "nothing said":
        outputs = [sync.InferRequestedOutput("probabilities", binary_data=answer == "binary")]
    result = client.infer("tiny", [sent], outputs=outputs, request_id="one-2", headers=user())
    assert (result.get_response()["id"], result.get_response()["model_version"]) == ("one-2", "2")
    assert ("data" in result.get_output("probabilities")) == (answer == "json")
    np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=1e-6)


@pytest.mark.parametrize("binary", [True, False])
def test_the_best_classes_by_name(client: sync.InferenceServerClient, files: list[bytes], binary: bool) -> None:
    wanted = [sync.InferRequestedOutput("probabilities", binary_data=binary, class_count=2)]
    rows = client.infer("tiny", [encoded(files)], outputs=wanted, headers=user()).as_numpy("probabilities")
    assert rows.shape == (3, 2)
    best = [row[0].decode() if binary else str(row[0]) for row in rows]
    assert [text.split(":")[1:] for text in best] == [[str(number), label] for number, label in enumerate(CLASSES)]


@pytest.mark.parametrize("request_by", ["gzip", "deflate"])
@pytest.mark.parametrize("answer_by", ["gzip", "deflate"])
def test_compressed_both_ways(
    client: sync.InferenceServerClient,
    tiny_models: Path,
    files: list[bytes],
    expected: np.ndarray,
    request_by: str,
    answer_by: str,
) -> None:
    result = client.infer(
        "tiny",
        [decoded(tiny_models, files)],
        headers=user(),
        request_compression_algorithm=request_by,
        response_compression_algorithm=answer_by,
    )
    np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=1e-6)


def test_versions_are_asked_by_number(client: sync.InferenceServerClient, files: list[bytes]) -> None:
    for version in ("1", "2"):
        result = client.infer("tiny", [encoded(files)], version, headers=user())
        assert result.get_response()["model_version"] == version


def test_what_is_wrong_is_said(client: sync.InferenceServerClient, tiny_models: Path, files: list[bytes]) -> None:
    good = encoded(files)
    floats = sync.InferInput("images", [1, SIDE_PX, SIDE_PX, 3], "FP32")
    floats.set_data_from_numpy(np.zeros((1, SIDE_PX, SIDE_PX, 3), np.float32))
    small = sync.InferInput("images", [1, 2, 2, 3], "UINT8").set_data_from_numpy(np.zeros((1, 2, 2, 3), np.uint8))
    texts = sync.InferInput("encoded_images", [1], "BYTES")
    texts.set_data_from_numpy(np.array(["no base64!"], object), binary_data=False)

    def asking(*inputs: sync.InferInput, model: str = "tiny", **options: Any) -> Any:
        return lambda: client.infer(model, list(inputs), **{"headers": user(), **options})

    assert refused(asking(good, model="tinny"), 404).startswith("no model 'tinny'; did you mean 'tiny'?")
    assert refused(asking(good, model_version="7"), 404) == "no version 7 of tiny (served: 1, 2)"
    assert refused(asking(good, headers=None), 401) == "a key is needed: Authorization: Bearer KEY"
    assert refused(asking(good, headers={"X-API-Key": "x"}), 401) == "this key is not known"
    assert refused(asking(floats), 400) == "images must be UINT8 [N, 64, 64, 3], it is FP32 [1, 64, 64, 3]"
    assert refused(asking(small), 400) == "images must be UINT8 [N, 64, 64, 3], it is UINT8 [1, 2, 2, 3]"
    assert refused(asking(encoded(files * 3)), 413) == "too many photos in one request; at most 8 are taken"
    assert refused(asking(encoded([files[0], b"words"])), 400) == ("photo 1: not an image in a format that can be read")
    assert refused(asking(good, decoded(tiny_models, files)), 400).startswith("give one input")
    assert refused(asking(encoded([bytes(2_000_000)])), 413) == "2.0 MB in one request; 1 MB are taken"
    assert refused(asking(encoded([bytes(2_000_000)]), request_compression_algorithm="gzip"), 413) == (
        "the body inflates to more than 1 MB"
    )
    assert refused(asking(good, outputs=[sync.InferRequestedOutput("probability")]), 400) == (
        "no output 'probability'; did you mean 'probabilities'? (there are: probabilities)"
    )
    assert refused(asking(good, sequence_id=5), 400).endswith(
        "sequences are not taken; every request stands for itself"
    )
    assert refused(asking(good, timeout=1), 504).startswith("not answered within")
    assert refused(asking(texts), 400) == "photo 0: no base64"
    with pytest.raises(InferenceServerException, match="UTF-8"):
        sync.InferInput("encoded_images", [1], "BYTES").set_data_from_numpy(np.array(files[:1], object), False)


def test_files_come_as_base64_in_json(client: sync.InferenceServerClient, files: list[bytes]) -> None:
    texts = sync.InferInput("encoded_images", [len(files)], "BYTES")
    texts.set_data_from_numpy(np.array([base64.b64encode(raw).decode() for raw in files], object), binary_data=False)
    as_text, as_bytes = (client.infer("tiny", [given], headers=user()) for given in (texts, encoded(files)))
    np.testing.assert_array_equal(as_text.as_numpy("probabilities"), as_bytes.as_numpy("probabilities"))


def test_a_compressed_body_is_what_its_header_says(server: Server, files: list[bytes]) -> None:
    address = f"{server.address}/predict?model=tiny"
    bare = zlib.compressobj(wbits=-15)
    for body, encoding in ((files[0], "gzip"), (bare.compress(files[0]) + bare.flush(), "deflate")):
        response = httpx.post(address, content=body, headers={**user(), "Content-Encoding": encoding})
        assert response.status_code == 400
    response = httpx.post(address, content=files[0], headers={**user(), "Content-Encoding": "br"})
    assert (response.status_code, response.json()["error"][:22]) == (415, "Content-Encoding 'br' ")


def test_models_are_unloaded_and_loaded_by_an_admin(
    client: sync.InferenceServerClient, server: Server, files: list[bytes]
) -> None:
    assert refused(lambda: client.unload_model("second", headers=user()), 403) == "this takes the key of an admin"
    assert refused(lambda: client.unload_model("second"), 401).startswith("a key is needed")
    client.unload_model("second", headers=root())
    assert not client.is_model_ready("second", headers=root())
    assert refused(lambda: client.infer("second", [encoded(files)], headers=user()), 404)
    states = {(row["name"], row["state"]) for row in client.get_model_repository_index(headers=user())}
    assert ("second", "UNAVAILABLE") in states
    address = f"{server.address}/v2/repository/index"
    ready = httpx.post(address, json={"ready": True}, headers=user()).json()
    assert {(row["name"], row["state"]) for row in ready} == {("tiny", "READY")}
    wrong = httpx.post(address, json={"ready": "yes"}, headers=user())
    assert (wrong.status_code, wrong.json()["error"]) == (400, "the request: ready must be true or false")
    client.load_model("second", headers=root())
    client.infer("second", [encoded(files)], headers=user())
    assert refused(lambda: client.load_model("third", headers=root()), 404) == "no model 'third' in the repository"
    assert refused(lambda: client.unload_model("third", headers=root()), 404).startswith("no model 'third'")
    said = refused(lambda: client.load_model("second", headers=root(), config="{}"), 400)
    assert said == "a model's configuration and files are what lies in the repository; send none"


def test_what_is_not_there_is_said_so(client: sync.InferenceServerClient) -> None:
    for missing in (
        client.get_trace_settings,
        client.get_log_settings,
        client.get_system_shared_memory_status,
        client.get_cuda_shared_memory_status,
    ):
        assert refused(lambda missing=missing: missing(headers=user()), 404) == "no such path; /docs lists them"


@pytest.mark.anyio
async def test_the_asynchronous_client(
    async_client: aio.InferenceServerClient, tiny_models: Path, files: list[bytes], expected: np.ndarray
) -> None:
    client = async_client
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("tiny", headers=user())
    assert (await client.get_server_metadata(headers=user()))["name"] == "finetune-service"
    assert (await client.get_model_metadata("tiny", "1", headers=user()))["name"] == "tiny"
    assert (await client.get_model_config("tiny", headers=user()))["name"] == "tiny"
    assert len(await client.get_model_repository_index(headers=user())) == 4
    assert len((await client.get_inference_statistics(headers=user()))["model_stats"]) == 4
    for sent in (encoded(files), decoded(tiny_models, files), decoded(tiny_models, files, binary=False)):
        for coding in (None, "gzip", "deflate"):
            result = await client.infer(
                "tiny",
                [sent],
                request_id="a",
                headers=user(),
                request_compression_algorithm=coding,
                response_compression_algorithm=coding,
            )
            assert result.get_response()["id"] == "a"
            np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=1e-6)
    wanted = [aio.InferRequestedOutput("probabilities", class_count=1)]
    result = await client.infer("tiny", [encoded(files)], outputs=wanted, headers=user())
    assert [row[0].decode().split(":")[2] for row in result.as_numpy("probabilities")] == list(CLASSES)
    with pytest.raises(InferenceServerException, match="did you mean 'tiny'") as caught:
        await client.infer("tinny", [encoded(files)], headers=user())
    assert caught.value.status() == "404"
    await client.unload_model("second", headers=root())
    await client.load_model("second", headers=root())
    with pytest.raises(InferenceServerException, match="the key of an admin"):
        await client.load_model("second", headers=user())
