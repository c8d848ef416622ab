"""The client's side of these is tritonclient itself."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from numpy.typing import NDArray
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import np_to_triton_dtype

from finetune.serving.protocol import (
    HEADER_LENGTH,
    MAX_TENSORS,
    InferRequest,
    RequestedOutput,
    parse_request,
    render_response,
)
from finetune.serving.refusal import Refusal

PROBABILITIES = np.array([[0.1, 0.2, 0.7], [0.5, 0.5, 0.0]], np.float32)
LABELS = {"probabilities": ("blue", "grün", "red:ish")}
PIXELS = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
TEXTS = np.array([[b"\xff\xd8\x00", b""], ["é".encode(), b"x" * 300]], object)
READABLE = np.array(["é", "", "a\x00b"], object)
DTYPES = (bool, "u1", "<u2", "<u4", "<u8", "i1", "<i2", "<i4", "<i8", "<f4", "<f8")


def client_input(name: str, array: NDArray[Any], binary: bool) -> InferInput:
    entry = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    return entry.set_data_from_numpy(array, binary_data=binary)


def sent(inputs: dict[str, NDArray[Any]], binary: bool = True, **options: Any) -> InferRequest:
    """Parse what tritonclient makes of these arrays."""
    entries = [client_input(name, array, binary) for name, array in inputs.items()]
    body, length = InferenceServerClient.generate_request_body(entries, **options)
    return parse_request(body, None if length is None else str(length))


def received(request: InferRequest, outputs: dict[str, NDArray[Any]]) -> InferResult:
    """Return what tritonclient makes of our answer."""
    body, headers = render_response(request, "flowers", "3", outputs, LABELS)
    length = headers.get(HEADER_LENGTH)
    assert headers["Content-Type"] == ("application/json" if length is None else "application/octet-stream")
    return InferenceServerClient.parse_response_body(body, header_length=None if length is None else int(length))


def asked(*outputs: dict[str, Any], **more: Any) -> InferRequest:
    document = {"inputs": [{"name": "x", "shape": [1], "datatype": "UINT8", "data": [1]}], **more}
    return parse_request(json.dumps({**document, **({"outputs": outputs} if outputs else {})}).encode(), None)


def refused(document: object, header_length: str | None = None, raw: bytes = b"") -> str:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(Refusal) as caught:
        parse_request(text + raw, str(len(text)) if raw else header_length)
    assert caught.value.status == 400
    return caught.value.message


def values_of(request: InferRequest, name: str) -> Any:
    return request.inputs[name].values


@pytest.mark.parametrize("binary", [True, False])
def test_inputs_of_a_client_arrive(binary: bool) -> None:
    floats = np.linspace(-1, 1, 7, dtype=np.float32)
    texts = TEXTS if binary else READABLE
    request = sent({"images": PIXELS, "floats": floats, "texts": texts, "none": np.zeros((0, 3), np.int64)}, binary)
    assert list(request.inputs) == ["images", "floats", "texts", "none"]
    assert [tensor.datatype for tensor in request.inputs.values()] == ["UINT8", "FP32", "BYTES", "INT64"]
    assert np.array_equal(values_of(request, "images"), PIXELS)
    assert np.array_equal(values_of(request, "floats"), floats)
    assert values_of(request, "texts") == [text if binary else text.encode() for text in texts.ravel()]
    assert request.inputs["texts"].shape == texts.shape
    assert values_of(request, "none").shape == (0, 3)


def test_binary_and_json_inputs_may_stand_in_one_request() -> None:
    entries = [client_input("a", PIXELS, False), client_input("b", TEXTS, True), client_input("c", PIXELS + 1, True)]
    body, length = InferenceServerClient.generate_request_body(entries)
    request = parse_request(body, str(length))
    assert np.array_equal(values_of(request, "a"), PIXELS)
    assert values_of(request, "b") == TEXTS.ravel().tolist()
    assert np.array_equal(values_of(request, "c"), PIXELS + 1)


@given(st.data())
@settings(max_examples=40)
def test_any_numbers_arrive_and_return(data: st.DataObject) -> None:
    binary = data.draw(st.booleans())
    dtype = np.dtype(data.draw(st.sampled_from((*DTYPES, "<f2") if binary else DTYPES)))
    finite = {"allow_nan": binary, "allow_infinity": binary} if dtype.kind == "f" else None
    shape = stn.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=3)
    array = data.draw(stn.arrays(dtype, shape, elements=finite))
    request = sent({"x": array}, binary, outputs=[InferRequestedOutput("y", binary_data=binary)])
    assert values_of(request, "x").tobytes() == array.tobytes()
    again = received(request, {"y": array}).as_numpy("y")
    assert (again.dtype, again.shape) == (array.dtype, array.shape)
    assert again.tobytes() == array.tobytes()


@pytest.mark.parametrize("binary", [True, False])
def test_outputs_reach_a_client(binary: bool) -> None:
    texts = TEXTS if binary else READABLE
    outputs = {"probabilities": PROBABILITIES, "texts": texts, "levels": PIXELS, "none": np.zeros((0, 2), np.float32)}
    requested = [InferRequestedOutput(name, binary_data=binary) for name in outputs]
    result = received(sent({"images": PIXELS}, outputs=requested, request_id="7"), outputs)
    for name in ("probabilities", "levels", "none"):
        assert result.as_numpy(name).dtype == outputs[name].dtype
        assert np.array_equal(result.as_numpy(name), outputs[name])
    assert result.as_numpy("texts").tolist() == texts.tolist()
    answer = result.get_response()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("flowers", "3", "7")


def test_a_client_that_names_no_output_gets_all_as_binary_data() -> None:
    request = sent({"images": PIXELS})
    assert (request.outputs, request.binary_default, request.id) == (None, True, None)
    result = received(request, {"probabilities": PROBABILITIES, "levels": PIXELS})
    assert np.array_equal(result.as_numpy("probabilities"), PROBABILITIES)
    assert np.array_equal(result.as_numpy("levels"), PIXELS)
    assert "id" not in result.get_response()
    assert all("binary_data_size" in output["parameters"] for output in result.get_response()["outputs"])


def test_outputs_come_as_asked_and_in_that_order() -> None:
    requested = [InferRequestedOutput("b", binary_data=False), InferRequestedOutput("a", binary_data=True)]
    result = received(sent({"x": PIXELS}, outputs=requested), {"a": PROBABILITIES, "b": PIXELS, "c": PIXELS})
    assert [output["name"] for output in result.get_response()["outputs"]] == ["b", "a"]
    assert result.get_output("b")["data"] == PIXELS.ravel().tolist()
    assert "data" not in result.get_output("a")
    assert np.array_equal(result.as_numpy("a"), PROBABILITIES)


@pytest.mark.parametrize("binary", [True, False])
def test_classes_come_as_triton_writes_them(binary: bool) -> None:
    requested = [InferRequestedOutput("probabilities", binary_data=binary, class_count=2)]
    result = received(sent({"images": PIXELS}, outputs=requested), {"probabilities": PROBABILITIES})
    assert result.get_output("probabilities")["datatype"] == "BYTES"
    found = result.as_numpy("probabilities")
    assert found.shape == (2, 2)
    texts = [text.decode() if isinstance(text, bytes) else text for text in found.ravel()]
    assert texts == ["0.700000:2:red:ish", "0.200000:1:grün", "0.500000:0:blue", "0.500000:1:grün"]


def classes(array: NDArray[Any], count: int = 99, name: str = "probabilities") -> Any:
    request = asked({"name": name, "parameters": {"classification": count}})
    body, _ = render_response(request, "flowers", "1", {name: array}, LABELS)
    (output,) = json.loads(body)["outputs"]
    assert np.prod(output["shape"]) == len(output["data"])
    return np.array(output["data"], object).reshape(output["shape"]).tolist()


def test_classes_of_any_numbers() -> None:
    assert classes(PROBABILITIES[0], 1) == ["0.700000:2:red:ish"]
    assert len(classes(PROBABILITIES)[0]) == 3
    assert classes(np.array([[0, 255, 7]], np.uint8), 2) == [["255:1:grün", "7:2:red:ish"]]
    assert classes(np.array([[-5, 3]], np.int64), 2) == [["3:1:grün", "-5:0:blue"]]
    assert classes(np.array([0.5, 1], np.float16)) == ["1.000000:1:grün", "0.500000:0:blue"]
    assert classes(np.array([np.nan, -np.inf, 1], np.float32)) == ["1.000000:2:red:ish", "-inf:1:grün", "nan:0:blue"]
    assert classes(np.array([1, 2, 3, 4], np.float32), 2) == ["4.000000:3", "3.000000:2:red:ish"]
    assert classes(PROBABILITIES, 1, name="logits") == [["0.700000:2"], ["0.500000:0"]]
    assert classes(np.arange(200, dtype=np.float32) // 100, 150, name="logits") == [
        *(f"1.000000:{index}" for index in range(100, 200)),
        *(f"0.000000:{index}" for index in range(50)),
    ]
    assert classes(np.zeros((0, 3), np.float32)) == []
    assert classes(np.zeros((2, 0), np.float32)) == [[], []]


def test_labels_that_are_no_text_are_sent_as_escapes() -> None:
    request = asked({"name": "p", "parameters": {"classification": 1}})
    body, _ = render_response(request, "m", "1", {"p": np.ones((1, 1), np.float32)}, {"p": ["caf\udce9"]})
    assert json.loads(body)["outputs"][0]["data"] == ["1.000000:0:caf\\udce9"]


@pytest.mark.parametrize("array", [np.array(1.0), np.array(["a"], object), np.array([True])])
def test_there_are_no_classes_of_what_is_no_row_of_numbers(array: NDArray[Any]) -> None:
    with pytest.raises(Refusal, match="classification takes numbers") as caught:
        classes(array)
    assert caught.value.status == 400


def test_an_unknown_output_is_refused_with_the_nearest() -> None:
    request = asked({"name": "probabilites"})
    with pytest.raises(Refusal) as caught:
        request.wanted(["probabilities", "logits"])
    assert caught.value.status == 400
    assert caught.value.message == (
        "no output 'probabilites'; did you mean 'probabilities'? (there are: probabilities, logits)"
    )
    with pytest.raises(Refusal):
        render_response(request, "flowers", "1", {"probabilities": PROBABILITIES})


def test_binary_data_is_asked_for_once_or_output_by_output() -> None:
    by_default = {"parameters": {"binary_data_output": True}}
    assert asked(**by_default).wanted(["a", "b"]) == (RequestedOutput("a", True), RequestedOutput("b", True))
    assert asked().wanted(["a"]) == (RequestedOutput("a", False),)
    mixed = asked({"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}, **by_default)
    assert mixed.outputs == (RequestedOutput("a", True), RequestedOutput("b", False))


def test_optional_fields_may_be_null_or_empty() -> None:
    request = asked(id=None, parameters=None, outputs=None)
    assert (request.id, request.outputs) == (None, None)
    assert asked(outputs=[]).outputs is None
    assert asked({"name": "a", "parameters": None}).outputs == (RequestedOutput("a", False),)


def test_other_parameters_mean_nothing() -> None:
    request = sent({"x": PIXELS}, priority=3, timeout=1_500_000, parameters={"mine": "é", "more": [1]})
    assert (request.timeout_s, request.binary_default) == (1.5, True)
    assert asked().timeout_s is None


X = {"name": "x", "shape": [1], "datatype": "UINT8"}
WITH_DATA = {**X, "data": [1]}


def binary(size: object, **changes: object) -> dict[str, Any]:
    return {**X, "parameters": {"binary_data_size": size}, **changes}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({}, "the request has no inputs"),
        ({"inputs": []}, "the request has no inputs"),
        ({"inputs": None}, "the request has no inputs"),
        ([], "the request must be a JSON object"),
        (1, "the request must be a JSON object"),
        ({"inputs": {"x": 1}}, "the request: inputs must be an array"),
        ({"inputs": [1]}, "inputs[0] must be a JSON object"),
        ({"inputs": [WITH_DATA, {}]}, "inputs[1]: its name is missing, or no string"),
        ({"inputs": [{**WITH_DATA, "name": 1}]}, "inputs[0]: its name is missing, or no string"),
        ({"inputs": [WITH_DATA, WITH_DATA]}, "input 'x' stands in the request twice"),
        ({"inputs": [{"name": "x", "shape": [1], "data": [1]}]}, "input 'x' has no datatype"),
        ({"inputs": [{"name": "x", "datatype": "UINT8", "data": [1]}]}, "input 'x' has no shape"),
        ({"inputs": [X]}, "input 'x' has neither data nor the parameter binary_data_size"),
        ({"inputs": [{**X, "data": None}]}, "input 'x' has neither data nor the parameter binary_data_size"),
        ({"inputs": [binary(1, data=[1])]}, "input 'x' has both data and the parameter binary_data_size"),
        ({"inputs": [binary(True)]}, "input 'x': binary_data_size must be a whole number of bytes"),
        ({"inputs": [binary(-1)]}, "input 'x': binary_data_size must be a whole number of bytes"),
        ({"inputs": [binary("1")]}, "input 'x': binary_data_size must be a whole number of bytes"),
        ({"inputs": [binary(1)]}, "input 'x': binary_data_size is more than the 0 bytes that are left"),
        ({"inputs": [binary(10**4000)]}, "input 'x': binary_data_size is more than the 0 bytes that are left"),
        ({"inputs": [{**WITH_DATA, "shape": [True]}]}, "tensor 'x': its shape must be an array of whole numbers"),
        ({"inputs": [{**WITH_DATA, "parameters": [1]}]}, "input 'x': parameters must be a JSON object"),
        ({"inputs": [{**X, "name": str(n)} for n in range(17)]}, f"the request has 17 inputs; at most {MAX_TENSORS}"),
        ({"inputs": [WITH_DATA], "id": 7}, "the request: id must be a string"),
        ({"inputs": [WITH_DATA], "parameters": "x"}, "the request: parameters must be a JSON object"),
        ({"inputs": [WITH_DATA], "outputs": "x"}, "the request: outputs must be an array"),
        ({"inputs": [WITH_DATA], "outputs": ["x"]}, "outputs[0] must be a JSON object"),
        ({"inputs": [WITH_DATA], "outputs": [{"name": "a"}] * 2}, "output 'a' stands in the request twice"),
        ({"inputs": [WITH_DATA], "outputs": [{"name": "a"}] * 17}, "the request has 17 outputs; at most 16 are taken"),
    ],
)
def test_malformed_requests_are_refused(document: object, said: str) -> None:
    assert refused(document).startswith(said)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("binary_data_output", 1, "the request: binary_data_output must be true or false"),
        ("timeout", 0, "the request: timeout must be a whole number of microseconds"),
        ("timeout", -5, "the request: timeout must be a whole number of microseconds"),
        ("timeout", 1.5, "the request: timeout must be a whole number of microseconds"),
        ("timeout", True, "the request: timeout must be a whole number of microseconds"),
        ("timeout", 10**400, "the request: timeout must be a whole number of microseconds"),
        ("sequence_id", 5, "the request: 'sequence_id': sequences are not taken"),
        ("sequence_start", True, "the request: 'sequence_start': sequences are not taken"),
        ("shared_memory_region", "r", "the request: shared memory is not taken"),
    ],
)
def test_parameters_that_would_change_the_answer_are_refused(name: str, value: object, said: str) -> None:
    assert refused({"inputs": [WITH_DATA], "parameters": {name: value}}).startswith(said)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"binary_data": "true"}, "output 'a': binary_data must be true or false"),
        ({"classification": 0}, "output 'a': classification must be a whole number of classes from 1 on"),
        ({"classification": -1}, "output 'a': classification must be a whole number of classes from 1 on"),
        ({"classification": True}, "output 'a': classification must be a whole number of classes from 1 on"),
        ({"classification": 1.0}, "output 'a': classification must be a whole number of classes from 1 on"),
        ({"shared_memory_region": "r"}, "output 'a': shared memory is not taken"),
    ],
)
def test_malformed_parameters_of_outputs_are_refused(parameters: dict[str, Any], said: str) -> None:
    assert refused({"inputs": [WITH_DATA], "outputs": [{"name": "a", "parameters": parameters}]}).startswith(said)


def test_a_client_that_wants_sequences_or_shared_memory_is_told() -> None:
    with pytest.raises(Refusal, match="sequences are not taken"):
        sent({"x": PIXELS}, sequence_id=3, sequence_start=True)
    entry = InferInput("x", [1], "UINT8")
    entry.set_shared_memory("region", 1)
    body, _ = InferenceServerClient.generate_request_body([entry])
    with pytest.raises(Refusal, match="input 'x': shared memory is not taken"):
        parse_request(body, None)


def test_bytes_must_be_those_that_the_inputs_claim() -> None:
    assert refused({"inputs": [binary(2)]}, raw=b"12") == (
        "tensor 'x': has 2 bytes of data, but shape [1] of UINT8 takes 1"
    )
    assert refused({"inputs": [binary(1)]}, raw=b"12") == "1 bytes are left after the binary data of all inputs"
    assert refused({"inputs": [WITH_DATA]}, raw=b"12") == "2 bytes are left after the binary data of all inputs"
    second = binary(1, name="y")
    assert refused({"inputs": [binary(1), second]}, raw=b"1").startswith(
        "input 'y': binary_data_size is more than the 0 bytes that are left after the JSON and the inputs before"
    )


@pytest.mark.parametrize("length", ["", "-1", "+1", " 1", "1_0", "1.0", "0x1", "٣", "1, 1", "9" * 19, "9" * 5000])
def test_a_header_length_that_is_no_number_is_refused(length: str) -> None:
    assert refused({"inputs": [WITH_DATA]}, length).startswith(f"{HEADER_LENGTH} must be a whole number of bytes, not")


def test_a_header_length_must_be_that_of_the_json() -> None:
    body = json.dumps({"inputs": [WITH_DATA]}).encode()
    assert parse_request(body, str(len(body))).inputs
    longer = len(body) + 1
    assert refused(body, str(longer)) == f"{HEADER_LENGTH} is {longer}, but the body has {len(body)} bytes"
    assert refused(body, "0").startswith(f"{HEADER_LENGTH} is 0")
    assert refused(body, str(len(body) - 1)).startswith("the request cannot be read as JSON: ")
    whole, length = InferenceServerClient.generate_request_body([client_input("x", PIXELS, True)])
    assert refused(whole, None).endswith(f"; is the header {HEADER_LENGTH} missing?")
    assert refused(whole, str(length + 1)).startswith("the request cannot be read as JSON: ")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"{",
        b'{"inputs": NaN}',
        b'{"inputs": -Infinity}',
        b'{"id": "\\ud800"}',
        b'{"inputs": ' + b"[" * 300 + b"]" * 300 + b"}",
        b"[" * 100_000,
        b'{"a":' * 5_000,
        b"9" * 10_000,
        b"{} {}",
    ],
)
def test_what_is_no_json_is_refused(text: bytes) -> None:
    assert refused(text).startswith("the request cannot be read as JSON: ")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
LENGTHS = st.none() | st.integers(-5, 400).map(str) | st.text(max_size=5)


def parse_or_refuse(body: bytes, header_length: str | None) -> None:
    outcome: InferRequest | Refusal
    try:
        outcome = parse_request(body, header_length)
    except Refusal as refusal:
        outcome = refusal
    if isinstance(outcome, Refusal):
        assert outcome.status == 400
        assert len(outcome.message) < 600
    else:
        assert outcome.inputs


@given(body=st.binary(max_size=200), length=LENGTHS)
@settings(max_examples=150)
def test_any_bytes_are_parsed_or_refused(body: bytes, length: str | None) -> None:
    parse_or_refuse(body, length)


def whole_request(seed: int) -> tuple[bytes, int]:
    generator = random.Random(seed)
    arrays = (PIXELS, np.array([1.5, -2], np.float32), np.array([True]), np.zeros((0, 2), np.int64))
    entries = [client_input(f"x{n}", array, binary=generator.random() > 0.3) for n, array in enumerate(arrays)]
    entries.append(client_input("texts", TEXTS, binary=True))
    requested = [InferRequestedOutput("a", class_count=2), InferRequestedOutput("b", binary_data=False)]
    options = {"request_id": "7", "timeout": 5, "priority": 1, "outputs": requested if seed % 2 else None}
    body, length = InferenceServerClient.generate_request_body(entries, **options)
    return body, int(length)


@given(seed=st.integers(0, 7), data=st.data())
@settings(max_examples=150)
def test_mutated_requests_are_parsed_or_refused(seed: int, data: st.DataObject) -> None:
    body, length = whole_request(seed)
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(changed)))
        changed[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    shift = data.draw(st.sampled_from((0, 0, 0, -1, 1, len(changed) - len(body))))
    parse_or_refuse(bytes(changed), data.draw(st.sampled_from((str(length + shift), None))))


@given(data=st.data(), seed=st.integers(0, 7))
@settings(max_examples=150)
def test_any_value_in_any_place_is_parsed_or_refused(data: st.DataObject, seed: int) -> None:
    body, length = whole_request(seed)
    document = json.loads(body[:length])
    place: Any = document
    for _ in range(4):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.integers(0, 2)) == 0:
            break
        place = place[key]
    place[key] = data.draw(JSON)
    text = json.dumps(document).encode()
    parse_or_refuse(text + body[length:], str(len(text)))


def test_the_codec_needs_no_server() -> None:
    """Clients and tools may read and write the protocol without what serves it."""
    modules = "finetune.serving.protocol, finetune.serving.compression"
    code = f"import sys, {modules}; print(*({{'fastapi', 'starlette', 'asyncio', 'onnxruntime'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_a_body_of_nothing_but_arrays_is_refused_before_they_are_made() -> None:
    with pytest.raises(Refusal, match="too many arrays: send tensors flat") as caught:
        parse_request(b'{"inputs": [' + b"[]," * 600_000 + b"[]]}", None)
    assert caught.value.status == 413


def test_a_body_of_nothing_but_strings_is_refused_before_they_are_made() -> None:
    keys = b",".join(b'"%d": 1' % number for number in range(20_000))
    with pytest.raises(Refusal, match="too many strings: send tensors as binary data") as caught:
        parse_request(b'{"inputs": {' + keys + b"}}", None)
    assert caught.value.status == 413


def test_more_elements_than_any_request_has_photos_are_refused_before_they_are_made() -> None:
    tensor = {"name": "x", "datatype": "BYTES", "shape": [10_001], "parameters": {"binary_data_size": 40_004}}
    told = refused({"inputs": [tensor]}, raw=bytes(40_004))
    assert told.endswith("its shape asks for 10001 elements; at most 10000 are taken")


def test_json_of_any_depth_says_what_to_send_instead() -> None:
    deep = b'{"inputs": ' + b"[" * 1000 + b"]" * 1000 + b"}"
    assert refused(deep) == (
        "the request cannot be read as JSON: it is nested too deep; send the data of tensors flat, or as binary data"
    )
