"""What an ONNX file refers to, read from its bytes: a server should not need the onnx package to be careful."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from finetune.errors import FinetuneError

# Of onnx.proto: which fields of a message hold messages that can lead to a tensor.
INSIDE = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
TENSOR_NAME, TENSOR_EXTERNAL_DATA, TENSOR_DATA_LOCATION = 8, 13, 14
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
MAX_DEPTH = 64


def external_tensor(path: Path) -> str | None:
    """Return the name of a tensor whose values lie in another file; None where there is none, as it should be.

    Raises FinetuneError where the file is no protobuf message.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise FinetuneError(f"{path} is empty; export the run again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
            try:
                return _find(raw, 0, len(raw), "Model", 0)
            except (ValueError, IndexError):
                raise FinetuneError(f"{path} is no ONNX file; export the run again") from None


def _find(raw: mmap.mmap, start: int, end: int, message: str, depth: int) -> str | None:
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    name, external = "", False
    for field, wire, first, last in _fields(raw, start, end):
        if message == "Tensor":
            if field == TENSOR_NAME and wire == LENGTH:
                name = raw[first:last].decode(errors="replace")
            external |= field in (TENSOR_EXTERNAL_DATA, TENSOR_DATA_LOCATION) and _says_external(raw, wire, first)
        elif wire == LENGTH and field in INSIDE[message]:
            found = _find(raw, first, last, INSIDE[message][field], depth + 1)
            if found is not None:
                return found
    return (name or "a tensor without a name") if external else None


def _says_external(raw: mmap.mmap, wire: int, first: int) -> bool:
    """An address of values, or the location EXTERNAL; DEFAULT is 0."""
    return wire == LENGTH or _varint(raw, first)[0] != 0


def _fields(raw: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the number, the wire type and the place of each field's value."""
    while position < end:
        key, position = _varint(raw, position)
        field, wire = key >> 3, key & 7
        if wire == VARINT:
            _, after = _varint(raw, position)
        elif wire == LENGTH:
            size, position = _varint(raw, position)
            after = position + size
        elif wire in (FIXED64, FIXED32):
            after = position + (8 if wire == FIXED64 else 4)
        else:
            raise ValueError(f"wire type {wire}")
        if after > end or not field:
            raise ValueError("a field that ends outside of its message")
        yield field, wire, position, after
        position = after


def _varint(raw: mmap.mmap, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = raw[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
    raise ValueError("a number of more than 64 bits")
