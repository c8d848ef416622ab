"""The Open Inference Protocol over gRPC, asked by NVIDIA's own client in a process beside a real server."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf import json_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from finetune.bundle import open_bundle
from finetune.preprocess import load_pixels
from finetune.serving.grpc_messages import QUICK_BYTES
from finetune.serving.grpc_methods import GrpcMethods
from finetune.serving.grpc_server import GrpcServer
from finetune.serving.keys import Keys
from finetune.serving.metrics import Metrics
from finetune.serving.predictor import open_predictor
from finetune.serving.refusal import Refusal
from tests.ports import free_port
from tests.serving.conftest import Server, Start, assembled, make_certificate, serve_config, start, until

KEY, CHIEF = "a-clerk-who-asks", "a-chief-who-rules"
CALLS = 12
INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
def server(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("grpc")
    (folder / "keys").write_text(
        f"clerk predict {hashlib.sha256(KEY.encode()).hexdigest()}\n"
        f"chief admin {hashlib.sha256(CHIEF.encode()).hexdigest()}\n"
    )
    # so long that calls whose messages do not come are there together, however slow the machine is
    limits = ["limits.photos=3", "limits.body_mb=1", f"limits.held_mb={CALLS}", "limits.body_s=3600"]
    words = [f"grpc_port={free_port()}", f"keys={folder / 'keys'}", "logs=text"]
    running = start(tiny_models, folder / "log", *words, *limits)
    yield running
    running.process.terminate()
    assert running.process.wait(60) == 0
    assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def address(server: Server) -> str:
    found = re.search(r"serving gRPC at ([\d.]+:\d+)", server.log.read_text())
    assert found
    return found[1]


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address) as client:
        yield client


@pytest.fixture(scope="module")
def raw(tiny_models: Path) -> bytes:
    return (tiny_models.parent / "photos" / "red" / "0.jpg").read_bytes()


BEARER = {"authorization": f"Bearer {KEY}"}


def files(*photos: bytes) -> triton.InferInput:
    tensor = triton.InferInput("encoded_images", [len(photos)], "BYTES")
    tensor.set_data_from_numpy(np.array(photos, dtype=object))
    return tensor


def decoded(images: NDArray[np.uint8]) -> triton.InferInput:
    tensor = triton.InferInput("images", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    return tensor


def _varint(number: int) -> bytes:
    low, high = number & 127, number >> 7
    return bytes([low | 128]) + _varint(high) if high else bytes([low])


def refused(status: str, call: object, *arguments: object, **keywords: object) -> str:
    with pytest.raises(InferenceServerException) as error:
        call(*arguments, **keywords)  # type: ignore[operator]
    assert str(error.value.status()) == f"StatusCode.{status}"
    return str(error.value.message())


def test_it_says_what_it_is(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny", headers=BEARER)
    assert client.get_server_metadata(headers=BEARER).name == "finetune-service"
    metadata = client.get_model_metadata("tiny", headers=BEARER)
    assert [entry.name for entry in metadata.inputs] == ["images", "encoded_images"]
    assert list(metadata.outputs[0].shape) == [-1, 3]
    (model,) = client.get_model_repository_index(headers=BEARER).models
    assert (model.name, model.version, model.state) == ("tiny", "1", "READY")


def test_a_model_is_configured_as_http_says(client: triton.InferenceServerClient, server: Server) -> None:
    told = client.get_model_config("tiny", "1", headers=BEARER).config
    answer = httpx.get(f"{server.address}/v2/models/tiny/versions/1/config", headers=BEARER).json()
    # both as Triton's own messages
    assert told == json_format.ParseDict(answer, model_config_pb2.ModelConfig())
    assert told.input[0].name == "images"
    assert "did you mean 'tiny'" in refused("NOT_FOUND", client.get_model_config, "tinny", headers=BEARER)


def test_it_answers_as_http_does(client: triton.InferenceServerClient, server: Server, raw: bytes) -> None:
    answer = httpx.post(f"{server.address}/predict", content=raw, headers=BEARER).json()
    (prediction,) = answer["predictions"]
    result = client.infer("tiny", [files(raw, raw)], headers=BEARER, request_id="seven")
    rows = result.as_numpy("probabilities")
    assert rows.shape == (2, 3)
    assert rows.max(axis=1) == pytest.approx([prediction["probability"]] * 2, abs=1e-6)
    assert result.get_response().id == "seven"
    wanted = [triton.InferRequestedOutput("probabilities", class_count=1)]
    best = client.infer("tiny", [files(raw)], outputs=wanted, headers=BEARER).as_numpy("probabilities")
    assert best[0][0].decode().split(":")[2] == "red"


def test_decoded_photos_are_answered_too(client: triton.InferenceServerClient, tiny_models: Path, raw: bytes) -> None:
    predictor = open_predictor(open_bundle(tiny_models / "tiny"), "cpu", 1)
    images = np.stack([load_pixels(raw, predictor.preprocessing)])
    rows = client.infer("tiny", [decoded(images)], model_version="1", headers=BEARER).as_numpy("probabilities")
    assert rows == pytest.approx(predictor.run(images), abs=1e-6)


def test_the_asynchronous_client_is_answered(address: str, raw: bytes) -> None:
    async def ask() -> list[float]:
        async with triton_aio.InferenceServerClient(address) as client:
            # fewer than one client gets
            asked = [client.infer("tiny", [files(raw)], headers=BEARER) for _ in range(CALLS // 2)]
            return [float(result.as_numpy("probabilities").max()) for result in await asyncio.gather(*asked)]

    answers = asyncio.run(ask())
    assert max(answers) == pytest.approx(min(answers))


def test_what_is_wrong_is_said_as_the_protocol_does(client: triton.InferenceServerClient, raw: bytes) -> None:
    infer = client.infer
    assert "did you mean 'tiny'" in refused("NOT_FOUND", infer, "tinny", [files(raw)], headers=BEARER)
    assert "not an image" in refused("INVALID_ARGUMENT", infer, "tiny", [files(b"words")], headers=BEARER)
    assert "at most 3" in refused("RESOURCE_EXHAUSTED", infer, "tiny", [files(*[raw] * 4)], headers=BEARER)
    refused("RESOURCE_EXHAUSTED", infer, "tiny", [files(bytes(2_000_000))], headers=BEARER)
    small = decoded(np.zeros((1, 8, 8, 3), np.uint8))
    assert "must be UINT8 [N, 64, 64, 3]" in refused("INVALID_ARGUMENT", infer, "tiny", [small], headers=BEARER)
    assert client.is_server_ready()


def test_keys_hold_for_it_too(client: triton.InferenceServerClient, address: str, raw: bytes) -> None:
    assert "a key is needed" in refused("UNAUTHENTICATED", client.infer, "tiny", [files(raw)])
    assert "admin" in refused("PERMISSION_DENIED", client.unload_model, "tiny", headers=BEARER)
    chief = {"authorization": f"Bearer {CHIEF}"}
    client.unload_model("tiny", headers=chief)
    assert [row.state for row in client.get_model_repository_index(headers=BEARER).models] == ["UNAVAILABLE"]
    with grpc.insecure_channel(address) as channel:
        index = service_pb2_grpc.GRPCInferenceServiceStub(channel).RepositoryIndex
        assert not index(service_pb2.RepositoryIndexRequest(ready=True), metadata=[*BEARER.items()]).models
    refused("UNAVAILABLE", client.infer, "tiny", [files(raw)], headers=BEARER)
    client.load_model("tiny", headers=chief)
    assert client.is_model_ready("tiny", headers=BEARER)
    statistics = client.get_inference_statistics("tiny", headers=BEARER).model_stats[0]
    assert statistics.inference_count == 0, "it counts since it was loaded"
    client.infer("tiny", [files(raw)], headers=BEARER)
    statistics = client.get_inference_statistics("tiny", headers=BEARER).model_stats[0]
    assert (statistics.inference_count, statistics.inference_stats.success.count) == (1, 1)


def test_no_message_is_read_of_one_without_a_key(client: triton.InferenceServerClient, address: str) -> None:
    # one that was read would be too large
    assert "a key is needed" in refused("UNAUTHENTICATED", client.infer, "tiny", [files(bytes(2_000_000))])
    with grpc.insecure_channel(address) as channel:
        live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        assert live(bytes(2_000_000)) == b"\x08\x01"


def test_no_more_calls_than_there_is_memory_for(client: triton.InferenceServerClient, address: str) -> None:
    def status() -> object:
        try:
            return client.is_model_ready("tiny", headers=BEARER)
        except InferenceServerException as error:
            return error.status()

    enough = threading.Event()

    def nothing() -> Iterator[bytes]:
        enough.wait(60)
        yield from ()

    with grpc.insecure_channel(address) as channel:
        ask = channel.stream_unary(INFER)
        calls: list[grpc.Future] = []

        def no_room() -> bool:
            # a question takes a place too while it runs, so that one of as many calls as there are places may find none
            calls.append(ask.future(nothing(), metadata=[*BEARER.items()]))
            return status() == "StatusCode.RESOURCE_EXHAUSTED"

        until(no_room)
        # one client leaves a quarter of them to others
        assert len(calls) >= CALLS * 3 // 4
        assert client.is_server_live(), "what reads no message is no such call"
        for call in calls:
            call.cancel()
        enough.set()
    until(lambda: status() is True)


def test_levels_that_come_one_by_one(address: str, tiny_models: Path, raw: bytes) -> None:
    predictor = open_predictor(open_bundle(tiny_models / "tiny"), "cpu", 1)
    images = np.maximum(np.stack([load_pixels(raw, predictor.preprocessing)] * 3), 128)
    asked = service_pb2.ModelInferRequest(model_name="tiny")
    entry = asked.inputs.add(name="images", datatype="UINT8", shape=images.shape)
    with grpc.insecure_channel(address) as channel:
        infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer

        def refusal() -> str:
            with pytest.raises(grpc.RpcError) as error:
                infer(asked, metadata=[*BEARER.items()])
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            return str(error.value.details())

        entry.contents.uint_contents.extend(images.ravel().tolist())
        assert asked.ByteSize() > QUICK_BYTES, "it is read beside the loop"
        rows = np.frombuffer(infer(asked, metadata=[*BEARER.items()]).raw_output_contents[0], np.float32)
        assert rows.reshape(3, 3) == pytest.approx(predictor.run(images), abs=1e-6)
        entry.contents.uint_contents[7] = 256
        assert "0 to 255" in refusal()
        entry.contents.uint_contents.append(0)
        assert refusal() == f"input 'images': its shape does not ask for {images.size + 1} uint_contents"
        del entry.shape[:]
        entry.shape.extend([2**62] * 100)
        assert "its shape does not ask for" in refusal()


def test_more_than_is_taken_is_refused_while_it_is_small(address: str) -> None:
    many = service_pb2.ModelInferRequest(model_name="tiny")
    entry = many.inputs.add(name="encoded_images", datatype="BYTES", shape=[10_001])
    entry.contents.bytes_contents.extend([b""] * 10_001)
    outputs = service_pb2.ModelInferRequest(model_name="tiny")
    for _ in range(17):
        outputs.outputs.add(name="probabilities")
    told = (
        "input 'encoded_images' has 10001 elements; 10000 are taken",
        "the request has 17 outputs; at most 16 are taken",
    )
    with grpc.insecure_channel(address) as channel:
        infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        for asked, said in zip((many, outputs), told, strict=True):
            with pytest.raises(grpc.RpcError) as error:
                infer(asked, metadata=[*BEARER.items()])
            assert error.value.details() == said


def test_what_grows_to_many_times_its_size_is_refused_before_it_does(tiny_models: Path, start_server: Start) -> None:
    port, size = free_port(), 18_000_000
    server = start_server(tiny_models, f"grpc_port={port}")

    def nested(number: int, inner: bytes) -> bytes:
        return bytes([number << 3 | 2]) + _varint(len(inner)) + inner

    empty = size // 2
    growing = {
        "inputs": b"\x2a\0" * empty,
        "outputs": b"\x32\0" * empty,
        "raw contents": b"\x3a\0" * empty,
        "parameters": b"\x22\0" * empty,
        "an input's contents": nested(5, nested(5, b"\x42\0" * empty)),
        "an input's shape": nested(5, nested(3, b"\1" * size)),
        "an input's integers": nested(5, nested(5, nested(3, b"\1" * size))),
    }
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for what, message in growing.items():
            before = server.rss_mb
            # the most memory that it takes from here on
            Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
            with pytest.raises(grpc.RpcError) as error:
                channel.unary_unary(INFER)(message)
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert error.value.details().startswith("the message has more than 20000 fields"), what
            assert server.most_mb - before < 5 * size / 1e6, what


def test_what_is_no_message_is_refused(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        for message, said in (([], "the call has no message"), ([b"\xff"], "the message cannot be read")):
            with pytest.raises(grpc.RpcError) as error:
                channel.stream_unary(INFER)(iter(message), metadata=[*BEARER.items()])
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert error.value.details() == said


def test_a_message_that_does_not_come_is_waited_for_no_longer(tiny_models: Path, start_server: Start) -> None:
    port, never = free_port(), threading.Event()
    start_server(tiny_models, f"grpc_port={port}", "limits.body_s=0.5")

    def nothing() -> Iterator[bytes]:
        never.wait(60)
        yield from ()

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.RpcError) as error:
            channel.stream_unary(INFER)(nothing())
        never.set()
    assert error.value.details() == "the message did not come within 0.5 s"


def test_every_answer_carries_the_id_of_its_line_in_the_log(server: Server, address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        ready = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelReady

        def identity(name: str, **given: str) -> str:
            metadata = [*BEARER.items(), *((key.replace("_", "-"), value) for key, value in given.items())]
            call = ready.future(service_pb2.ModelReadyRequest(name=name), metadata=metadata)
            return dict(call.trailing_metadata())["x-request-id"]

        assert identity("tiny", x_request_id="seven") == "seven"
        assert identity("unknown", x_request_id="eight") == "eight"
        made = identity("tiny", x_request_id="a word that would break a line")
    assert re.fullmatch("[0-9a-f]{32}", made)
    until(lambda: made in server.log.read_text())
    (line,) = [line for line in server.log.read_text().splitlines() if made in line]
    assert "client=127.0.0.1" in line
    assert "key=clerk" in line


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers_of(path: bytes, *metadata: tuple[bytes, bytes]) -> bytes:
    pairs = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"by hand")]
    pairs += [(b"content-type", b"application/grpc"), (b"te", b"trailers"), *metadata]
    return b"".join(b"\0%c%b%c%b" % (len(name), name, len(value), value) for name, value in pairs)


@contextlib.contextmanager
def by_hand(address: str, settings: bytes = b"") -> Iterator[socket.socket]:
    """Connect in HTTP/2 of our own."""
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, settings))
        yield client


def read_until(client: socket.socket, words: bytes) -> bytes:
    """Return what a server sends up to some words, or its end."""
    received = b""
    while words not in received and (part := client.recv(65536)):
        received += part
    return received


def call_by_hand(address: str, path: bytes, *metadata: tuple[bytes, bytes]) -> bytes:
    """Call without a message; gRPC's clients send no path and no metadata that are no text."""
    with by_hand(address) as client:
        client.sendall(frame(1, 4, 1, headers_of(path, *metadata)) + frame(0, 1, 1))
        return read_until(client, b"grpc-status")


def test_metadata_that_are_no_text_are_not_logged(server: Server, address: str) -> None:
    for metadata in ((b"authorization", b"Bearer \xff"), (b"x-request-id", b"\xff")):
        assert b"grpc-status\x0216" in call_by_hand(address, INFER.encode(), metadata)
    assert "Invalid encoding" not in server.told()


def test_a_method_that_is_no_text_ends_neither_the_server_nor_what_runs(
    tiny_models: Path, start_server: Start, raw: bytes
) -> None:
    address = f"127.0.0.1:{free_port()}"
    server = start_server(tiny_models, f"grpc_port={address.partition(':')[2]}", "limits.body_s=60")
    asked = service_pb2.ModelInferRequest(model_name="tiny")
    asked.inputs.add(name="encoded_images", datatype="BYTES", shape=[1]).contents.bytes_contents.append(raw)
    going_on = threading.Event()

    def late() -> Iterator[bytes]:
        going_on.wait(60)
        yield asked.SerializeToString()

    with grpc.insecure_channel(address) as channel:
        running = channel.stream_unary(INFER).future(late())
        ready = channel.unary_unary("/inference.GRPCInferenceService/ServerReady")
        assert ready(b"") == b"\x08\x01"
        for times in (1, 2):
            call_by_hand(address, b"/\xff")
            until(lambda times=times: server.log.read_text().count("another takes its place") == times)
            assert ready(b"", wait_for_ready=True, timeout=60) == b"\x08\x01"
        going_on.set()
        assert service_pb2.ModelInferResponse.FromString(running.result(60)).model_name == "tiny"
    server.process.terminate()
    assert server.process.wait(60) == 0


def test_who_waits_for_a_model_is_told_whether_it_is_ready(client: triton.InferenceServerClient) -> None:
    assert client.is_model_ready("tiny", "1", headers=BEARER)
    for name, version in (("nope", ""), ("tiny", "7")):
        assert not client.is_model_ready(name, version, headers=BEARER)


def test_a_model_is_loaded_from_the_repository_only(client: triton.InferenceServerClient, address: str) -> None:
    chief = {"authorization": f"Bearer {CHIEF}"}
    said = "a model's configuration and files are what lies in the repository; send none"
    assert refused("INVALID_ARGUMENT", client.load_model, "tiny", headers=chief, config="{}") == said
    asked = service_pb2.RepositoryModelLoadRequest(model_name="tiny")
    asked.parameters["file:1/model.onnx"].bytes_param = b"other"
    with grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as error:
            stub.RepositoryModelLoad(asked, metadata=tuple(chief.items()))
    assert error.value.details() == said


def test_tensors_come_in_one_way_only(address: str, raw: bytes) -> None:
    asked = service_pb2.ModelInferRequest(model_name="tiny", raw_input_contents=[b"other"])
    asked.inputs.add(name="encoded_images", datatype="BYTES", shape=[1]).contents.bytes_contents.append(raw)
    with grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError, match="not in both"):
            stub.ModelInfer(asked, metadata=tuple(BEARER.items()))


def test_a_server_that_cannot_listen_again_is_not_ready(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # the same messages twice would be one time too many for a process
    monkeypatch.setattr(grpc, "protos", lambda _: service_pb2)
    repository, port = assembled(tiny_models).repository, free_port()
    beside = GrpcServer(serve_config(tiny_models, grpc_port=port), repository, Metrics(), Keys(()))

    async def fail() -> None:
        await repository.start()
        await beside.start()
        with socket.socket() as other, monkeypatch.context() as patched:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            fails, failing = asyncio.Event(), beside._server

            async def wait(_: float) -> bool:
                await fails.wait()
                await failing.stop(None)
                other.bind(("127.0.0.1", port))
                other.listen()
                raise UnicodeDecodeError("utf-8", b"", 0, 1, "as of a method that is no text")

            patched.setattr(failing, "wait_for_termination", wait)
            beside._watching.cancel()
            watching = asyncio.create_task(beside._watch())
            assert repository.ready
            fails.set()
            while repository.ready:
                await asyncio.sleep(0.01)
            with pytest.raises(Refusal, match=f"gRPC does not listen: cannot listen on .*:{port}"):
                repository.require_ready()
            told = len(caplog.records)
            await asyncio.sleep(0.5)
            assert len(caplog.records) == told, "once for each reason"
        while not repository.ready:
            await asyncio.sleep(0.01)
        repository.require_ready()
        watching.cancel()
        await beside.stop()

    asyncio.run(asyncio.wait_for(fail(), 60))
    repository.close()


def test_one_client_has_no_more_calls_than_are_allowed(tiny_models: Path, start_server: Start) -> None:
    address = f"127.0.0.1:{free_port()}"
    start_server(tiny_models, f"grpc_port={address.partition(':')[2]}", "limits.per_client=2", "limits.body_s=60")
    going_on = threading.Event()

    def late() -> Iterator[bytes]:
        going_on.wait(60)
        yield b""

    with grpc.insecure_channel(address) as channel:
        calls = [channel.stream_unary("/inference.GRPCInferenceService/ServerMetadata").future(late()) for _ in "123"]
        until(lambda: any(call.done() for call in calls))
        (refused_one,) = [call for call in calls if call.done()]
        assert refused_one.details() == "this client has 2 calls open already"
        going_on.set()
        assert sum(call.exception(60) is None for call in calls) == 2


def test_a_refusal_is_no_longer_than_clients_take(client: triton.InferenceServerClient) -> None:
    chief, dog = {"authorization": f"Bearer {CHIEF}"}, "\N{DOG}"
    said = refused("NOT_FOUND", client.load_model, dog * 50_000, headers=chief)
    assert said == f"no model '{dog * 100}' in the repository"


def test_a_look_takes_no_turn_of_a_canary(tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = Path(shutil.copytree(tiny_models, tmp_path / "models"))
    shutil.copytree(models / "tiny" / "1", models / "tiny" / "2")
    repository = assembled(models, versions="all").repository
    monkeypatch.setattr(repository, "choose", None)
    methods = GrpcMethods(service_pb2, repository, serve_config(tiny_models).limits)

    async def look() -> None:
        await repository.start()
        asked = service_pb2.ModelMetadataRequest(name="tiny")
        assert (await methods.ModelMetadata(asked, {})).name == "tiny"
        found = (await methods.ModelStatistics(asked, {})).model_stats
        assert [(one.name, one.version) for one in found] == [("tiny", "1"), ("tiny", "2")]
        asked_of = service_pb2.ModelStatisticsRequest(name="tiny", version="1")
        (of_version,) = (await methods.ModelStatistics(asked_of, {})).model_stats
        assert of_version.version == "1"
        config = (await methods.ModelConfig(asked, {})).config
        assert config.version_policy.specific.versions == [1, 2]

    asyncio.run(look())
    repository.close()


def test_both_end_in_one_time_of_grace(tiny_models: Path, start_server: Start, raw: bytes) -> None:
    port, grace_s = free_port(), 8
    server = start_server(tiny_models, f"grpc_port={port}", f"grace_s={grace_s}", "limits.body_s=60")
    sending, never = threading.Event(), threading.Event()
    asked = service_pb2.ModelInferRequest(model_name="tiny")
    asked.inputs.add(name="encoded_images", datatype="BYTES", shape=[1]).contents.bytes_contents.append(raw)

    ended: list[float] = []

    def late(event: threading.Event) -> Iterator[bytes]:
        event.wait(60)
        yield asked.SerializeToString()

    def takes_nobody() -> bool:
        try:
            socket.create_connection(server.place).close()
        except ConnectionRefusedError:
            return True
        return False

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, httpx.Client(base_url=server.address) as http:
        ask = channel.stream_unary(INFER)
        answered, stuck = ask.future(late(sending)), ask.future(late(never))
        # both are there before it ends
        assert channel.unary_unary("/inference.GRPCInferenceService/ServerReady")(b"")
        stuck.add_done_callback(lambda _: ended.append(time.monotonic()))
        with socket.create_connection(server.place, timeout=60) as half:
            half.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
            until(lambda: "finetune_requests_in_flight 2.0" in http.get("/metrics").text)
            server.process.terminate()
            until(takes_nobody)
            sending.set()
            assert service_pb2.ModelInferResponse.FromString(answered.result(60)).model_name == "tiny"
            assert b"HTTP/1.1 503" in half.recv(100)
            ended.append(time.monotonic())
            assert server.process.wait(60) == 0
        never.set()
        assert stuck.exception(60) is not None
        until(lambda: len(ended) == 2)
        assert abs(ended[1] - ended[0]) < grace_s, "not one after the other"
    assert "Traceback" not in server.log.read_text()


def test_what_is_no_tls_leaves_no_line_that_is_no_json(tiny_models: Path, start_server: Start, tmp_path: Path) -> None:
    port = free_port()
    server = start_server(tiny_models, f"grpc_port={port}", "logs=json", *make_certificate(tmp_path))
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        # it hangs up when it has seen what that is
        with contextlib.suppress(ConnectionResetError):
            while client.recv(65536):
                pass
    server.process.terminate()
    assert server.process.wait(60) == 0
    *_, last = [json.loads(line) for line in server.log.read_text().splitlines()[:-1]]
    assert last["level"] == "info"


@pytest.mark.parametrize("drain_s", [0, 0.1, 0.2, 0.3])
def test_a_stop_under_load_answers_each_call_or_never_begins_it(
    tiny_models: Path, start_server: Start, raw: bytes, drain_s: float
) -> None:
    port, ended = free_port(), threading.Event()
    server = start_server(tiny_models, f"grpc_port={port}", f"drain_s={drain_s}", "grace_s=3600")
    seen: Counter[str] = Counter()

    def ask() -> None:
        own = [("grpc.use_local_subchannel_pool", 1)]
        with triton.InferenceServerClient(f"127.0.0.1:{port}", channel_args=own) as client:
            while not ended.is_set():
                try:
                    client.infer("tiny", [files(raw)])
                    seen["answered"] += 1
                except InferenceServerException as error:
                    seen[str(error.status())] += 1

    clients = [threading.Thread(target=ask) for _ in range(8)]
    # one that connects and says nothing keeps nobody
    with socket.create_connection(("127.0.0.1", port)):
        for one in clients:
            one.start()
        until(lambda: seen["answered"] > 50)
        server.process.terminate()
        assert server.process.wait(60) == 0, "it waits for no more than the calls"
    ended.set()
    for one in clients:
        one.join()
    assert set(seen) == {"answered", "StatusCode.UNAVAILABLE"}
    log = server.log.read_text()
    assert "Traceback" not in log
    assert "accept4" not in log, "all lines are the log's own"


def test_a_port_in_use_ends_the_server_with_the_reason(tiny_models: Path, address: str) -> None:
    taken = address.partition(":")[2]
    command = [sys.executable, "-m", "finetune", "serve", f"models={tiny_models}", "port=0", f"grpc_port={taken}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{taken}; choose another grpc_port=" in done.stderr


def refusals(server: Server, status: int) -> float:
    metrics = httpx.get(f"{server.address}/metrics", headers=BEARER).text
    found = re.findall(rf'(?m)^finetune_refusals_total\{{reason="{status}"\}} (\S+)$', metrics)
    return float(found[0]) if found else 0.0


def lines(server: Server, **having: object) -> list[dict[str, object]]:
    """Return the log's lines of calls for an answer that have all this."""
    told = [json.loads(line) for line in server.log.read_text().rpartition("\n")[0].splitlines()]
    return [line for line in told if line["message"] == "gRPC ModelInfer" and having.items() <= line.items()]


def test_silence_holds_no_place_that_another_client_needs(
    tiny_models: Path, start_server: Start, tmp_path: Path, raw: bytes
) -> None:
    crowd, ended, port = ("one", "two"), threading.Event(), free_port()
    hashes = {who: hashlib.sha256(who.encode()).hexdigest() for who in crowd}
    rows = [f"{who} predict {hashed}\n" for who, hashed in hashes.items()]
    (tmp_path / "keys").write_text(f"clerk predict {hashlib.sha256(KEY.encode()).hexdigest()}\n{''.join(rows)}")
    limits = ["limits.body_mb=1", f"limits.held_mb={CALLS}", "limits.body_s=60"]
    server = start_server(tiny_models, f"grpc_port={port}", f"keys={tmp_path / 'keys'}", *limits)

    def nothing() -> Iterator[bytes]:
        ended.wait(60)
        yield from ()

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = channel.stream_unary(INFER)
        # the first gets three quarters of all places, the second the rest
        keys = [("authorization", f"Bearer {who}") for who in crowd for _ in range(CALLS)]
        silent = [ask.future(nothing(), metadata=[key]) for key in keys]
        until(lambda: refusals(server, 429) >= CALLS)
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            for _ in range(CALLS):
                assert client.infer("tiny", [files(raw)], headers=BEARER).as_numpy("probabilities").shape == (1, 3)
        for call in silent:
            call.cancel()
        ended.set()


def test_answers_that_nobody_takes_hold_no_place_for_ever(client: triton.InferenceServerClient, address: str) -> None:
    asked = service_pb2.ModelReadyRequest(name="tiny").SerializeToString()
    bearer = (b"authorization", BEARER["authorization"].encode())
    headers = headers_of(b"/inference.GRPCInferenceService/ModelReady", bearer)
    message = b"\0" + struct.pack(">I", len(asked)) + asked

    def answered() -> bool:
        try:
            return client.is_model_ready("tiny", headers=BEARER)
        except InferenceServerException:
            return False

    # the window in which answers may be sent: none
    with by_hand(address, struct.pack(">HI", 4, 0)) as greedy:
        for stream in range(1, 2 * CALLS, 2):
            greedy.sendall(frame(1, 4, stream, headers) + frame(0, 1, stream, message))
        assert b"grpc-status\x018" in read_until(greedy, b"grpc-status\x018"), "all places of this client are taken"
        until(answered)


def test_calls_that_are_over_before_their_message_came_are_told_as_what_they_are(
    tiny_models: Path, start_server: Start
) -> None:
    port, ended = free_port(), threading.Event()
    server = start_server(tiny_models, f"grpc_port={port}", "grace_s=1", "limits.body_mb=1")

    def nothing() -> Iterator[bytes]:
        ended.wait(60)
        yield from ()

    own = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=own) as channel:
        ask = channel.stream_unary(INFER)
        ready = channel.unary_unary("/inference.GRPCInferenceService/ServerReady")
        with pytest.raises(grpc.RpcError):
            ask(iter([]))
        gone = ask.future(nothing())
        assert ready(b"") == b"\x08\x01", "what came before has begun"
        gone.cancel()
        until(lambda: len(lines(server, client="127.0.0.1", status=499)) == 1)
        with pytest.raises(grpc.RpcError) as error:
            ask(iter([bytes(2_000_000)]))
        assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        # gRPC, which refuses it, does not say why it ends the call
        until(lambda: len(lines(server, client="127.0.0.1", status=499)) == 2)
        assert (refusals(server, 400), len(lines(server, status=400))) == (1, 1), "the one without a message"
        stuck = ask.future(nothing())
        assert ready(b"") == b"\x08\x01"
        server.process.terminate()
        assert server.process.wait(20) == 0
        ended.set()
        assert stuck.exception(10) is not None
    assert len(lines(server, client="127.0.0.1", status=503)) == 1
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("missing", ["grpc", "grpc_tools"])
def test_a_port_for_grpc_without_its_packages_is_refused(missing: str, tiny_models: Path) -> None:
    words = ["serve", f"models={tiny_models}", "port=0", "grpc_port=5000", "logs=text"]
    script = f"import sys; sys.modules[{missing!r}] = None; from finetune.cli import main; main({words})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "finetune serve: grpc_port=5000 takes two more packages: pip install 'finetune-service[grpc]'"
    )
