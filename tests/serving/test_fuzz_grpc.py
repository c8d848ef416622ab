"""Calls over gRPC of every kind that nobody would make on purpose: no fault, no hang, ready after each batch.

A few hundred here; the full form is

    FUZZ_REQUESTS=10000 pytest tests/serving/test_fuzz_grpc.py
"""

from __future__ import annotations

import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from tests.ports import free_port
from tests.serving.conftest import Server, until
from tests.serving.test_fuzz import ADMIN, ANSWER_WITHIN_S, BATCH, REQUESTS, Fuzzed, fuzzing, start_fuzzed
from tests.serving.test_grpc import INFER

Value = TypeVar("Value")
Metadata = Sequence[tuple[str, str | bytes]]
SIDE_PX = 64
BEARER: Metadata = [("authorization", "Bearer root")]
# What gRPC says itself, of a method or a message that never reaches the program.
OF_GRPC = {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED}


class FuzzedCalls(Fuzzed):
    """A server that is called over gRPC, and looked after over both between batches."""

    def __init__(self, server: Server, photo: bytes, port: int) -> None:
        super().__init__(server, photo)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.port = port
        self.codes: Counter[grpc.StatusCode] = Counter()

    def call(
        self,
        method: str,
        message: bytes,
        metadata: Metadata = BEARER,
        within_s: float = ANSWER_WITHIN_S,
        cancel_after_s: float | None = None,
    ) -> grpc.StatusCode:
        call = self.channel.unary_unary(method).future(message, metadata=metadata, timeout=within_s)
        if cancel_after_s is not None:
            time.sleep(cancel_after_s)
            call.cancel()
        code = call.code()
        self.codes[code] += 1
        said = f"{code} {call.details()!r} to {method!r}"
        assert code not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL), said
        if code not in (grpc.StatusCode.OK, *OF_GRPC) and within_s == ANSWER_WITHIN_S and cancel_after_s is None:
            # else nobody answered: the connection broke, or the time is up
            assert "x-request-id" in dict(call.trailing_metadata()), said
        if self.codes.total() % BATCH == 0:
            self.look_after()
        return code

    def look_after(self) -> None:
        # which loads the model, too
        super().look_after()
        asked = service_pb2.ModelInferRequest(model_name="tiny")
        asked.inputs.add(name="encoded_images", datatype="BYTES", shape=[1]).contents.bytes_contents.append(self.photo)
        asked.outputs.add(name="probabilities").parameters["classification"].int64_param = 1
        infer = self.channel.unary_unary(INFER)
        answer = infer(asked.SerializeToString(), metadata=BEARER, timeout=ANSWER_WITHIN_S)
        assert service_pb2.ModelInferResponse.FromString(answer).raw_output_contents[0].endswith(b":red")


@pytest.fixture(scope="module")
def fuzzed(tiny_models: Path, red_photo: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FuzzedCalls]:
    port = free_port()
    server = start_fuzzed(tiny_models, tmp_path_factory.mktemp("fuzz"), f"grpc_port={port}")
    called = FuzzedCalls(server, red_photo, port)
    yield called
    called.look_after()
    called.channel.close()
    called.client.close()
    server.process.kill()
    server.process.wait()


def mostly(right: Value, other: st.SearchStrategy[Value]) -> st.SearchStrategy[Value]:
    return st.integers(0, 4).flatmap(lambda chance: other if chance == 4 else st.just(right))


# any method

SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
# those of Triton that are not taken are among them
METHODS = [f"/{SERVICE.full_name}/{method.name}" for method in SERVICE.methods]
PATHS = ["", "/", "//", "none", f"/{SERVICE.full_name}", f"/{SERVICE.full_name}/", INFER.lower(), f"{INFER}/", "/%ff"]
METHOD = mostly(INFER, st.sampled_from([*METHODS, *PATHS]) | st.text(max_size=12))
NAME = st.sampled_from(["tiny", "tinny", "", "1", "2", "01", "-1", "..", "../tiny", "9" * 400, "x" * 20_000, "\N{DOG}"])
# read as the message of any other method, these are its first two fields
NAMED = st.builds(service_pb2.ModelReadyRequest, name=NAME | st.text(max_size=8), version=NAME | st.text(max_size=8))
TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=80)
WORDS = st.sampled_from(["x-request-id", "authorization", "x-api-key", "traceparent", "tracestate", "baggage", "host"])
MORE_WORDS = st.sampled_from(["user-agent", "content-type", "te", "accept-encoding", "cookie", "content-length", "_-."])
ODD_VALUES = st.sampled_from(["Bearer", "Bearer x", "bearer  root", "~" * 5000, "00-" + "0" * 32 + "-0-01", "a b"])
METADATA = st.lists(
    st.tuples(WORDS | MORE_WORDS, TEXT | ODD_VALUES)
    | st.tuples(st.sampled_from(["x-bin", "authorization-bin", "x-request-id-bin"]), st.binary(max_size=50)),
    max_size=4,
)
KEYED = METADATA.map(lambda pairs: [*BEARER, *pairs])
# a call whose time is up before it is sent is given up by the client itself
SECONDS = mostly(float(ANSWER_WITHIN_S), st.sampled_from([0.0, 0.0005, 0.002, 0.01]))


def right_message(photo: bytes) -> bytes:
    asked = service_pb2.ModelInferRequest(model_name="tiny", raw_input_contents=[struct.pack("<I", len(photo)) + photo])
    asked.inputs.add(name="encoded_images", datatype="BYTES", shape=[1])
    return bytes(asked.SerializeToString())


@given(st.data())
@fuzzing
def test_any_message_to_any_method(fuzzed: FuzzedCalls, data: st.DataObject) -> None:
    right = right_message(fuzzed.photo)
    cut, junk = st.integers(0, len(right)), st.binary(max_size=8)
    message = data.draw(
        st.binary(max_size=200)
        | NAMED.map(lambda named: named.SerializeToString())
        | st.builds(lambda at, put: right[:at] + put + right[at + len(put) :], cut, junk)
        | st.builds(lambda at, put: right[:at] + put, cut, junk)
        | st.just(bytes(1_100_000))
    )
    metadata = data.draw(mostly(BEARER, KEYED | METADATA))
    fuzzed.call(data.draw(METHOD), message, metadata, data.draw(SECONDS))


# photos in tensors that are nearly right, so that they get as far as the model

LARGEST = 2**63 - 1
SIZE = st.integers(-2, 5) | st.sampled_from([SIDE_PX, 2**31, 2**32, 2**62, LARGEST, -LARGEST - 1])
SHAPE = st.lists(SIZE, max_size=5) | st.sampled_from(
    [[1], [2], [1, 1], [0], [], [-1], [1, 2**62, 8], [0, LARGEST, LARGEST], [LARGEST] * 8, [1] * 9, [2**62] * 1000]
)
DATATYPES = st.sampled_from(["UINT8", "BYTES", "FP32", "FP16", "BOOL", "INT64", "BF16", "uint8", ""])
CHOICE = st.one_of(
    st.builds(service_pb2.InferParameter),
    st.builds(service_pb2.InferParameter, bool_param=st.booleans()),
    st.builds(service_pb2.InferParameter, int64_param=SIZE | st.integers(-LARGEST - 1, LARGEST)),
    st.builds(service_pb2.InferParameter, uint64_param=st.integers(0, 2**64 - 1)),
    st.builds(service_pb2.InferParameter, double_param=st.floats()),
    st.builds(service_pb2.InferParameter, string_param=st.text(max_size=8)),
)
KEY = st.sampled_from(
    ["classification", "binary_data", "binary_data_output", "binary_data_size", "timeout", "priority", "sequence_id"]
)
PARAMETERS = st.dictionaries(KEY | st.just("shared_memory_region") | st.text(max_size=5), CHOICE, max_size=3)
CONTENTS = st.fixed_dictionaries(
    {},
    optional={
        "bool_contents": st.lists(st.booleans(), max_size=3),
        "int_contents": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
        "int64_contents": st.lists(st.integers(-LARGEST - 1, LARGEST), max_size=3),
        "uint_contents": st.lists(st.integers(0, 2**32 - 1), max_size=3),
        "uint64_contents": st.lists(st.integers(0, 2**64 - 1), max_size=3),
        "fp32_contents": st.lists(st.floats(width=32), max_size=3),
        "fp64_contents": st.lists(st.floats(), max_size=3),
        "bytes_contents": st.lists(st.binary(max_size=20), max_size=3),
    },
)
OUTPUTS = st.lists(
    st.builds(
        service_pb2.ModelInferRequest.InferRequestedOutputTensor,
        name=mostly("probabilities", st.text(max_size=8)),
        parameters=PARAMETERS,
    ),
    max_size=3,
)


@given(st.data())
@fuzzing
def test_any_tensor(fuzzed: FuzzedCalls, data: st.DataObject) -> None:
    photo = data.draw(mostly(fuzzed.photo, st.just(fuzzed.photo[:500]) | st.binary(max_size=100)))
    said = max(0, len(photo) + data.draw(mostly(0, st.sampled_from([-1, 1, 2**31]))))
    one_by_one: dict[str, Any]
    file = ("encoded_images", "BYTES", [1], struct.pack("<I", said) + photo, {"bytes_contents": [photo]})
    levels = bytes(SIDE_PX * SIDE_PX * 3)
    decoded = ("images", "UINT8", [1, SIDE_PX, SIDE_PX, 3], levels, {"uint_contents": levels})
    name, datatype, shape, raw, one_by_one = data.draw(st.sampled_from([file, decoded]))
    tensor = service_pb2.ModelInferRequest.InferInputTensor(
        name=data.draw(mostly(name, st.text(max_size=8))),
        datatype=data.draw(mostly(datatype, DATATYPES | st.text(max_size=8))),
        shape=data.draw(mostly(shape, SHAPE)),
        parameters=data.draw(mostly({}, PARAMETERS)),
    )
    raws = [raw]
    if data.draw(st.booleans()):
        contents = data.draw(mostly(one_by_one, CONTENTS))
        tensor.contents.CopyFrom(service_pb2.InferTensorContents(**contents))
        raws = data.draw(mostly([], st.just(raws)))
    asked = service_pb2.ModelInferRequest(
        model_name=data.draw(mostly("tiny", NAME)),
        model_version=data.draw(mostly("", NAME)),
        id=data.draw(st.text(max_size=5)),
        parameters=data.draw(mostly({}, PARAMETERS)),
        inputs=[tensor] * data.draw(mostly(1, st.sampled_from([0, 2, 20]))),
        outputs=data.draw(mostly([], OUTPUTS)),
        raw_input_contents=data.draw(mostly(raws, st.lists(st.sampled_from([raw, raw[:-1], raw + b"x", b""])))),
    )
    fuzzed.call(INFER, asked.SerializeToString(), BEARER, data.draw(SECONDS))


def test_photos_with_bytes_changed(fuzzed: FuzzedCalls) -> None:
    chance = random.Random(0)
    codes: Counter[grpc.StatusCode] = Counter()
    for _ in range(REQUESTS // 4):
        photo = bytearray(fuzzed.photo)
        for _ in range(chance.randint(1, 20)):
            photo[chance.randrange(len(photo))] = chance.randrange(256)
        codes[fuzzed.call(INFER, right_message(bytes(photo)))] += 1
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}


def test_calls_that_are_given_up(fuzzed: FuzzedCalls) -> None:
    chance = random.Random(0)
    asked = service_pb2.ModelInferRequest(model_name="tiny")
    tensor = asked.inputs.add(name="encoded_images", datatype="BYTES", shape=[60])
    tensor.contents.bytes_contents.extend([fuzzed.photo] * 60)
    messages = [right_message(fuzzed.photo), asked.SerializeToString(), b"\n\x04tiny\x12\x04tiny"]
    for _ in range(REQUESTS // 4):
        method = chance.choice([INFER, chance.choice(METHODS)])
        seconds = chance.choice([0, 0.0002, 0.001, 0.003, 0.01, 0.03])
        if chance.random() < 0.5:
            fuzzed.call(method, chance.choice(messages), within_s=seconds)
        else:
            fuzzed.call(method, chance.choice(messages), cancel_after_s=seconds)
    pending = 'finetune_pending_photos{model="tiny",version="1"} 0.0'
    # it may just have been unloaded
    fuzzed.look_after()
    until(lambda: pending in fuzzed.client.get("/metrics", headers=ADMIN).text)


def test_what_is_no_http_2(fuzzed: FuzzedCalls) -> None:
    chance = random.Random(0)
    for number in range(REQUESTS // 10):
        beginning = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if number % 2 else b""
        with socket.create_connection(("127.0.0.1", fuzzed.port), timeout=ANSWER_WITHIN_S) as client:
            client.sendall(beginning + chance.randbytes(chance.randint(1, 400)))
    fuzzed.look_after()
