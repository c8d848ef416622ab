from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from typing import Any
from unittest.mock import patch

import pytest
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from finetune.serving import grpc_wire
from finetune.serving.grpc_wire import LEVELS, MOST_FIELDS, UNREADABLE, require_few_fields
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


GROUP = 3
FEW = 12


def held_in(message: Any) -> Iterator[int | None]:
    """Yield something for every value that protobuf holds, levels aside: of a field that it does not know, its kind."""
    yield from (unknown.wire_type for unknown in UnknownFieldSet(message))
    for field, value in message.ListFields():
        if field.name == LEVELS:
            continue
        values = value.values() if isinstance(value, MutableMapping) else value
        for one in values if field.is_repeated else [values]:
            yield None
            if field.message_type is not None:
                yield from held_in(one)


def sized(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2, len(value)]) + value


def joined(*parts: bytes | st.SearchStrategy[bytes], most: int) -> st.SearchStrategy[bytes]:
    either = st.one_of(st.just(part) if isinstance(part, bytes) else part for part in parts)
    return st.lists(either, max_size=most).map(b"".join)


# levels, strings, and integers one by one and side by side
CONTENTS = joined(sized(4, b"\1\2"), sized(8, b""), b"\x10\1", sized(2, bytes(20)), most=2)
INPUT = joined(CONTENTS.map(lambda value: sized(5, value)), sized(3, b"\1"), sized(4, sized(1, b"key")), most=2)
UNKNOWN = (b"\x50\1", b"\x51" + bytes(8), b"\x55" + bytes(4), sized(10, b"a"))
MESSAGE = joined(INPUT.map(lambda value: sized(5, value)), sized(3, b"id"), sized(7, b""), *UNKNOWN, most=15)


@given(MESSAGE | st.binary(max_size=100))
def test_what_protobuf_reads_is_let_through_unless_it_has_too_many_fields(message: bytes) -> None:
    held: list[int | None] | None = None
    with suppress(DecodeError):
        held = [*held_in(INFER.FromString(message))]
    said = ""
    with patch.object(grpc_wire, "MOST_FIELDS", FEW):
        try:
            require_few_fields(message, INFER)
        except Refusal as refused:
            said = refused.message
    if not said:
        assert held is None or len(held) <= FEW
    elif said == UNREADABLE:
        # the protocol has no groups
        assert held is None or GROUP in held
    else:
        assert len(message) > FEW, "there is no field of less than a byte"
