from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from finetune.serving.grpc_wire import MOST_FIELDS, require_few_fields
from finetune.serving.refusal import Refusal

INFER = service_pb2.ModelInferRequest


def photos(elements: int) -> service_pb2.ModelInferRequest:
    asked = INFER(model_name="tiny")
    entry = asked.inputs.add(name="encoded_images", datatype="BYTES", shape=[elements])
    entry.contents.bytes_contents.extend([b"photo"] * elements)
    return asked


def refusal(message: bytes) -> str:
    with pytest.raises(Refusal) as refused:
        require_few_fields(message, INFER)
    assert refused.value.status == 400
    return refused.value.message


def test_what_requests_hold_is_let_through() -> None:
    asked = photos(10_000)
    asked.parameters["timeout"].int64_param = 10
    asked.inputs.add(name="images", shape=[1, 448, 448, 3]).contents.uint_contents.extend([255] * (448 * 448 * 3))
    asked.outputs.add(name="probabilities").parameters["classification"].int64_param = 2
    asked.raw_input_contents.append(bytes(1_000_000))
    require_few_fields(asked.SerializeToString(), INFER)
    require_few_fields(b"", INFER)


def test_fields_and_numbers_are_counted_wherever_they_stand() -> None:
    said = f"the message has more than {MOST_FIELDS} fields and numbers, uint_contents aside"
    assert refusal(photos(MOST_FIELDS).SerializeToString()) == said
    levels = photos(1)
    levels.inputs[0].contents.fp32_contents.extend([0.5] * MOST_FIELDS)
    assert refusal(levels.SerializeToString()) == said
    parameters = photos(1)
    for number in range(MOST_FIELDS):
        parameters.inputs[0].parameters[str(number)].bool_param = True
    assert refusal(parameters.SerializeToString()) == said


@pytest.mark.parametrize(
    "broken", [b"\xff" * 11, b"\x80" * 1_000_000, b"\x0a", b"\x0b\x0c"], ids=["long", "endless", "cut off", "a group"]
)
def test_what_is_no_message_is_refused(broken: bytes) -> None:
    assert refusal(broken) == "the message cannot be read"


@given(st.binary(max_size=200) | st.lists(st.sampled_from([b"\x2a\x02", b"\x22\x00", b"\x08\x01"])).map(b"".join))
def test_any_bytes_are_let_through_or_refused(message: bytes) -> None:
    with contextlib.suppress(Refusal):
        require_few_fields(message, INFER)
