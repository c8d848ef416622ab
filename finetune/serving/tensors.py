"""Tensors as the Open Inference Protocol v2 sends them, as raw bytes or as JSON data, and as numpy has them.

Datatypes: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
Raw bytes: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.errors import nearest
from finetune.serving.refusal import LONGEST_QUOTE, Refusal, quoted

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
DATATYPES = (*DTYPES, "BYTES")
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_DIMS = 8
# Elements of a BYTES tensor, of which each, however short, takes some hundred bytes.
MAX_ELEMENTS = 10_000
# numpy refuses what it could not address, even where another dimension is 0 and there is nothing to address
MAX_BYTES = 2**63 - 1
_LENGTH = struct.Struct("<I")

_TAKEN: dict[str, tuple[frozenset[type], str]] = {
    "b": (frozenset({bool}), "true and false only"),
    "u": (frozenset({int}), "whole numbers only"),
    "i": (frozenset({int}), "whole numbers only"),
    "f": (frozenset({int, float}), "numbers only"),
    "O": (frozenset({str}), "strings only"),
}
_IN_WORDS = {
    bool: "a boolean",
    int: "a whole number",
    float: "a number with a fraction or exponent",
    str: "a string",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


@dataclass(frozen=True, eq=False)
class Tensor:
    """A named tensor. values: an array of `shape`, possibly read-only; or the elements of BYTES, flat, row-major."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: NDArray[Any] | list[bytes]


def from_raw(name: str, datatype: object, shape: object, raw: bytes | memoryview) -> Tensor:
    """Read a tensor's little-endian bytes, without a copy where their place in memory allows; refuses with 400.

    datatype, shape: as they stood in the request, unjudged. BYTES: each element's length (u32), then the element.
    """
    kind, sizes, count = _declared(name, datatype, shape)
    if kind == "BYTES":
        return Tensor(name, kind, sizes, _split(name, count, memoryview(raw)))
    dtype = DTYPES[kind]
    if len(raw) != count * dtype.itemsize:
        wanted = f"shape {list(sizes)} of {kind} takes {count * dtype.itemsize}"
        raise _refuse(name, f"has {len(raw)} bytes of data, but {wanted}")
    if kind == "BOOL":
        levels = np.frombuffer(raw, np.uint8)
        if levels.max(initial=0) > 1:
            raise _refuse(name, "a BOOL is one byte of 0 or 1")
        return Tensor(name, kind, sizes, levels.view(np.bool_).reshape(sizes))
    array = np.frombuffer(raw, dtype)
    # native code may read whole vectors at a time
    aligned = array if array.flags.aligned else array.copy()
    return Tensor(name, kind, sizes, aligned.reshape(sizes))


def from_data(name: str, datatype: object, shape: object, data: object) -> Tensor:
    """Read a tensor's JSON data, row-major, flat or nested as the shape says; refuses with 400.

    datatype, shape: as they stood in the request, unjudged.
    """
    kind, sizes, count = _declared(name, datatype, shape)
    if kind == "FP16":
        raise _refuse(name, "FP16 is taken as binary data only")
    values = _flatten(name, sizes, count, data)
    dtype = DTYPES.get(kind, np.dtype(object))
    taken, in_words = _TAKEN[dtype.kind]
    if not taken.issuperset(map(type, values)):
        odd = next(value for value in values if type(value) not in taken)
        raise _refuse(name, f"its data hold {_IN_WORDS[type(odd)]}, but {kind} takes {in_words}")
    if kind == "BYTES":
        return Tensor(name, kind, sizes, [value.encode() for value in values])
    if dtype.kind in "ui":
        _require_range(name, kind, values)
    array = _floats(name, kind, values) if dtype.kind == "f" else np.array(values, dtype)
    return Tensor(name, kind, sizes, array.reshape(sizes))


def to_raw(tensor: Tensor) -> bytes:
    """Return a tensor's little-endian bytes, row-major."""
    if isinstance(tensor.values, list):
        return b"".join(chain.from_iterable((_LENGTH.pack(len(element)), element) for element in tensor.values))
    return tensor.values.astype(DTYPES[tensor.datatype], copy=False).tobytes()


def to_data(tensor: Tensor) -> list[Any]:
    """Return a tensor's data as JSON has them, flat; what JSON cannot say is refused."""
    if isinstance(tensor.values, list):
        try:
            return [element.decode() for element in tensor.values]
        except UnicodeDecodeError:
            raise _refuse(tensor.name, "is no UTF-8 text; ask for it as binary data") from None
    if tensor.datatype == "FP16":
        raise _refuse(tensor.name, "FP16 is sent as binary data only; ask for that")
    if tensor.values.dtype.kind == "f" and not np.isfinite(tensor.values).all():
        raise Refusal(500, f"tensor {quoted(tensor.name)}: holds NaN or infinity, which JSON cannot say")
    flat: list[Any] = tensor.values.ravel().tolist()
    return flat


def of_array(name: str, array: NDArray[Any]) -> Tensor:
    """Return a model's output as a tensor; an array of objects, str or bytes, becomes BYTES.

    Raises TypeError for a type that the protocol does not know.
    """
    if array.dtype.kind == "O":
        elements = [value.encode() if isinstance(value, str) else bytes(value) for value in array.ravel()]
        return Tensor(name, "BYTES", array.shape, elements)
    try:
        return Tensor(name, _NAMES[array.dtype.newbyteorder("<")], array.shape, array)
    except KeyError:
        raise TypeError(f"{name}: the protocol has no datatype for {array.dtype}") from None


def _refuse(name: str, reason: str) -> Refusal:
    return Refusal(400, f"tensor {quoted(name)}: {reason}")


def _declared(name: str, datatype: object, shape: object) -> tuple[str, tuple[int, ...], int]:
    """Return datatype, shape and number of elements; nothing is allocated by what a request merely claims."""
    if not isinstance(datatype, str):
        raise _refuse(name, "its datatype must be a string")
    if datatype == "BF16":
        raise _refuse(name, "BF16 is not taken; send FP32")
    if datatype not in DATATYPES:
        guess = nearest(datatype[:LONGEST_QUOTE], DATATYPES)
        raise _refuse(name, f"no datatype {quoted(datatype)}{guess} (taken: {', '.join(DATATYPES)})")
    # true is an int to Python
    if not isinstance(shape, list | tuple) or not all(type(size) is int for size in shape):
        raise _refuse(name, "its shape must be an array of whole numbers")
    if len(shape) > MAX_DIMS:
        raise _refuse(name, f"its shape has {len(shape)} dimensions; at most {MAX_DIMS} are taken")
    if any(size < 0 for size in shape):
        raise _refuse(name, "its shape has a negative dimension; a request gives the size of each")
    itemsize = DTYPES[datatype].itemsize if datatype in DTYPES else _LENGTH.size
    if math.prod(size for size in shape if size) * itemsize > MAX_BYTES:
        raise _refuse(name, "its shape is too large")
    if datatype == "BYTES" and math.prod(shape) > MAX_ELEMENTS:
        raise _refuse(name, f"its shape asks for {math.prod(shape)} elements; at most {MAX_ELEMENTS} are taken")
    return datatype, tuple(shape), math.prod(shape)


def _split(name: str, count: int, raw: memoryview) -> list[bytes]:
    if len(raw) < count * _LENGTH.size:
        raise _refuse(name, f"its shape asks for {count} elements, each with 4 bytes of length, in {len(raw)} bytes")
    elements: list[bytes] = []
    at = 0
    for index in range(count):
        start = at + _LENGTH.size
        if start > len(raw):
            raise _refuse(name, f"its data end before the length of element {index}")
        at = start + int(_LENGTH.unpack_from(raw, start - _LENGTH.size)[0])
        if at > len(raw):
            raise _refuse(name, f"element {index} says it has {at - start} bytes, but {len(raw) - start} are left")
        elements.append(bytes(raw[start:at]))
    if at != len(raw):
        raise _refuse(name, f"{len(raw) - at} bytes are left after its {count} elements")
    return elements


def _flatten(name: str, shape: Sequence[int], count: int, data: object) -> list[Any]:
    if not isinstance(data, list):
        raise _refuse(name, "its data must be an array")
    if not data or not isinstance(data[0], list):
        if len(data) != count:
            raise _refuse(name, f"its data have {len(data)} elements, but shape {list(shape)} takes {count}")
        return data
    level: list[Any] = [data]
    for axis, size in enumerate(shape):
        if not all(isinstance(part, list) and len(part) == size for part in level):
            reason = f"its nested data do not fit shape {list(shape)}: not every array of dimension {axis} has {size}"
            raise _refuse(name, f"{reason} elements")
        level = list(chain.from_iterable(level))
    return level


def _require_range(name: str, kind: str, values: list[int]) -> None:
    limits = np.iinfo(DTYPES[kind])
    for value in (min(values, default=0), max(values, default=0)):
        if not limits.min <= value <= limits.max:
            # thousands of digits are a number too
            number = str(value) if value.bit_length() <= 128 else "a very long number"
            raise _refuse(name, f"{number} is out of range for {kind}, {limits.min} to {limits.max}")


def _floats(name: str, kind: str, values: list[float]) -> NDArray[Any]:
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, np.float64).astype(DTYPES[kind])
    except OverflowError:
        raise _refuse(name, f"a number is out of range for {kind}") from None
    # the reader of JSON takes 1e400 for infinity
    if not np.isfinite(array).all():
        raise _refuse(name, f"a number is out of range for {kind}")
    return array
