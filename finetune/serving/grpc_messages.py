"""What the messages of the Open Inference Protocol over gRPC hold, as the same requests over HTTP would."""

from __future__ import annotations

import asyncio
import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from finetune.serving.grpc_wire import UNREADABLE, require_few_fields
from finetune.serving.protocol import InferRequest, read_request, require_few
from finetune.serving.refusal import Refusal, quoted
from finetune.serving.tensors import MAX_DIMS, MAX_ELEMENTS

# Of numbers that come one by one, made into bytes before others get their turn.
CHUNK = 50_000
# A message of no more is read at once, in 4 ms at worst: 2,000 empty fields.
QUICK_BYTES = 4_000


async def receive(context: Any) -> bytes:
    """Return a call's message; raises Refusal 400 where it has none, CancelledError where the call is over."""
    message = await context.read()
    if isinstance(message, bytes):
        return message
    # gRPC reads so of a call that is over as well, and cancels this only while there is something to wait for
    try:
        await context.send_initial_metadata(())
    except importlib.import_module("grpc.aio").InternalError:
        raise asyncio.CancelledError from None
    raise Refusal(400, "the call has no message")


async def parse(message: bytes, kind: Any) -> Any:
    """Return what a message says; raises Refusal 400 where it cannot be read."""

    def made(raw: bytes) -> Any:
        require_few_fields(raw, kind)
        return kind.FromString(raw)

    try:
        return await in_time(len(message), made, message)
    except importlib.import_module("google.protobuf.message").DecodeError:
        raise Refusal(400, UNREADABLE) from None


async def in_time(size: int, function: Callable[[Any], Any], argument: Any) -> Any:
    """Return what a function makes of so many bytes, in a thread where that would keep all others waiting."""
    return await asyncio.to_thread(function, argument) if size > QUICK_BYTES else function(argument)


def read_infer(message: Any) -> InferRequest:
    """Read a ModelInferRequest as the same request over HTTP: its tensors are the binary data behind the JSON."""
    # while they are still as small as they came
    for key in ("inputs", "outputs", "raw_input_contents"):
        require_few(len(getattr(message, key)), key)
    if message.raw_input_contents and any(entry.HasField("contents") for entry in message.inputs):
        raise Refusal(400, "inputs come in raw_input_contents or in contents of their own, not in both")
    raws = list(message.raw_input_contents) or [_contents(entry) for entry in message.inputs]
    if len(raws) != len(message.inputs):
        raise Refusal(400, f"raw_input_contents has {len(raws)} entries for {len(message.inputs)} inputs")
    inputs = []
    for entry, raw in zip(message.inputs, raws, strict=True):
        parameters = {**_parameters(entry.parameters), "binary_data_size": len(raw)}
        shape = list(entry.shape)
        inputs.append({"name": entry.name, "datatype": entry.datatype, "shape": shape, "parameters": parameters})
    outputs = [{"name": entry.name, "parameters": _parameters(entry.parameters)} for entry in message.outputs]
    document = {
        "id": message.id or None,
        "parameters": _parameters(message.parameters),
        "inputs": inputs,
        "outputs": outputs,
    }
    return read_request(document, memoryview(b"".join(raws)))


def _contents(entry: Any) -> bytes:
    """Return values that came one by one as the bytes they would have been; only those of photos are known."""
    if elements := entry.contents.bytes_contents:
        if len(elements) > MAX_ELEMENTS:
            raise Refusal(400, f"input {quoted(entry.name)} has {len(elements)} elements; {MAX_ELEMENTS} are taken")
        return b"".join(len(element).to_bytes(4, "little") + element for element in elements)
    levels = entry.contents.uint_contents
    if len(entry.shape) > MAX_DIMS or len(levels) != math.prod(entry.shape):
        raise Refusal(400, f"input {quoted(entry.name)}: its shape does not ask for {len(levels)} uint_contents")
    # numpy keeps all other threads waiting for as long as it reads
    parts = [np.array(levels[n : n + CHUNK], np.uint32) for n in range(0, len(levels), CHUNK)]
    if any(part.max() > 255 for part in parts):
        raise Refusal(400, "uint_contents of a UINT8 tensor must be 0 to 255")
    return b"".join(part.astype(np.uint8).tobytes() for part in parts)


def _parameters(parameters: Any) -> dict[str, Any]:
    known = {key: value.WhichOneof("parameter_choice") for key, value in parameters.items()}
    return {key: getattr(parameters[key], choice) for key, choice in known.items() if choice is not None}
