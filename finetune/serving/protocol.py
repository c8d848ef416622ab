"""Requests and responses of the Open Inference Protocol v2 (KServe v2) over HTTP, as bytes.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md with the extensions
"binary tensor data" and "classification" of https://github.com/triton-inference-server/server/tree/main/docs/protocol
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from pydantic_core import from_json, to_json

from finetune.errors import nearest
from finetune.serving.classification import best_classes
from finetune.serving.refusal import LONGEST_QUOTE, Refusal, quoted
from finetune.serving.tensors import Tensor, from_data, from_raw, of_array, to_data, to_raw

HEADER_LENGTH = "Inference-Header-Content-Length"
# Of arrays and objects in a request, of which each takes many times its size; one photo, nested, is about size².
MAX_NESTS = 500_000
# Of quotes in a request: each two are a string, of which names and parameters have few, and photos in JSON none.
MAX_QUOTES = 20_000
MAX_TENSORS = 16
MAX_TIMEOUT_US = 2**63 - 1
Json = dict[str, Any]


@dataclass(frozen=True)
class RequestedOutput:
    """An output as a client wants it. classification: how many of the best classes, as text; 0 for the values."""

    name: str
    binary: bool
    classification: int = 0


@dataclass(frozen=True, eq=False)
class InferRequest:
    """A request whose tensors are what they claim to be. No model was asked yet whether it takes them.

    outputs: None where the request names none and so wants them all; binary_default: whether these come as binary data;
    timeout_s: how long the client waits.
    """

    id: str | None
    inputs: Mapping[str, Tensor]
    outputs: tuple[RequestedOutput, ...] | None
    binary_default: bool
    timeout_s: float | None

    def wanted(self, known: Iterable[str]) -> tuple[RequestedOutput, ...]:
        """Return the outputs to answer with, of those that a model has; refuses unknown ones with 400."""
        names = list(known)
        if self.outputs is None:
            return tuple(RequestedOutput(name, self.binary_default) for name in names)
        for output in self.outputs:
            if output.name not in names:
                guess = nearest(output.name[:LONGEST_QUOTE], names)
                raise Refusal(400, f"no output {quoted(output.name)}{guess} (there are: {', '.join(names)})")
        return self.outputs


def parse_request(body: bytes, header_length: str | None) -> InferRequest:
    """Read the body of POST v2/models/NAME/infer, decompressed; anything malformed is refused with 400.

    header_length: the header Inference-Header-Content-Length, bytes of JSON before the binary data; None where it is
    absent and all is JSON. Parameters that mean nothing here are ignored, but for those that would change the answer.
    """
    text, raw = _parted(body, header_length)
    if text.count(b"[") + text.count(b"{") > MAX_NESTS:
        raise Refusal(413, "the JSON has too many arrays: send tensors flat, or as binary data")
    if text.count(b'"') > MAX_QUOTES:
        raise Refusal(413, "the JSON has too many strings: send tensors as binary data")
    try:
        document = _object(from_json(text, allow_inf_nan=False, cache_strings="keys"), "the request")
    except ValueError as error:
        if "recursion limit" in str(error):
            reason = "it is nested too deep; send the data of tensors flat, or as binary data"
            raise Refusal(400, f"the request cannot be read as JSON: {reason}") from None
        hint = f"; is the header {HEADER_LENGTH} missing?" if header_length is None else ""
        raise Refusal(400, f"the request cannot be read as JSON: {error}{hint}") from None
    return read_request(document, raw)


def read_request(document: Json, raw: memoryview) -> InferRequest:
    """Read a request from its JSON and the binary data behind it; anything malformed is refused with 400."""
    parameters = _parameters(document, "the request")
    binary_default = _flag(parameters, "binary_data_output", False, "the request")
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise Refusal(400, "the request: id must be a string")
    return InferRequest(
        id=identity,
        inputs=_inputs(document, raw),
        outputs=_outputs(document, binary_default),
        binary_default=binary_default,
        timeout_s=_timeout_s(parameters),
    )


def require_few(tensors: int, key: str) -> None:
    """Refuse a request of too many inputs or outputs, with 400."""
    if tensors > MAX_TENSORS:
        raise Refusal(400, f"the request has {tensors} {key}; at most {MAX_TENSORS} are taken")


def parse_parameters(body: bytes) -> Json:
    """Read the parameters of a request that may have no body; refuses what is malformed with 400."""
    return _parameters(_document(body), "the request")


def parse_ready(body: bytes) -> bool:
    """Read whether a request, which may have no body, is for ready models only; refuses what is malformed with 400."""
    return _flag(_document(body), "ready", False, "the request")


def render_response(
    request: InferRequest,
    model: str,
    version: str,
    outputs: Mapping[str, NDArray[Any]],
    labels: Mapping[str, Sequence[str]] | None = None,
) -> tuple[bytes, dict[str, str]]:
    """Return the body and headers that answer a request.

    outputs: all that the model has, by name; labels: names of the classes, by output, for those that have such.
    """
    entries: list[Json] = []
    parts: list[bytes] = []
    wanted = request.wanted(outputs)
    for output, tensor in zip(wanted, answer_tensors(request, outputs, labels), strict=True):
        entry: Json = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if output.binary:
            parts.append(to_raw(tensor))
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            entry["data"] = to_data(tensor)
        entries.append(entry)
    document: Json = {"model_name": model, "model_version": version, "outputs": entries}
    if request.id is not None:
        document["id"] = request.id
    text = to_json(document)
    if not any(output.binary for output in wanted):
        return text, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(text))}
    return b"".join((text, *parts)), headers


def answer_tensors(
    request: InferRequest, outputs: Mapping[str, NDArray[Any]], labels: Mapping[str, Sequence[str]] | None = None
) -> list[Tensor]:
    """Return what a request wants of a model's outputs, each as values or as its best classes."""
    tensors = []
    for output in request.wanted(outputs):
        tensor = of_array(output.name, outputs[output.name])
        if output.classification:
            tensor = best_classes(tensor, output.classification, (labels or {}).get(output.name, ()))
        tensors.append(tensor)
    return tensors


def _parted(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    """Return the JSON and the binary data after it."""
    if header_length is None:
        return body, memoryview(b"")
    # int() would take a sign, spaces and underscores; no body has a length of 19 digits
    if not (header_length.isascii() and header_length.isdecimal() and len(header_length) < 19):
        raise Refusal(400, f"{HEADER_LENGTH} must be a whole number of bytes, not {quoted(header_length)}")
    length = int(header_length)
    if length == 0:
        raise Refusal(400, f"{HEADER_LENGTH} is 0: a tensor without the JSON that describes it is not taken")
    if length > len(body):
        raise Refusal(400, f"{HEADER_LENGTH} is {length}, but the body has {len(body)} bytes")
    return body[:length], memoryview(body)[length:]


def _document(body: bytes) -> Json:
    """Return the JSON of a request that may have no body."""
    if not body:
        return {}
    try:
        return _object(from_json(body), "the request")
    except ValueError as error:
        raise Refusal(400, f"the request cannot be read as JSON: {error}") from None


def _inputs(document: Json, raw: memoryview) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    at = 0
    for name, entry, parameters in _entries(document, "input"):
        for field in ("datatype", "shape"):
            if field not in entry:
                raise Refusal(400, f"input {quoted(name)} has no {field}")
        size, data = parameters.get("binary_data_size"), entry.get("data")
        if size is None:
            if data is None:
                raise Refusal(400, f"input {quoted(name)} has neither data nor the parameter binary_data_size")
            tensors[name] = from_data(name, entry["datatype"], entry["shape"], data)
            continue
        if data is not None:
            raise Refusal(400, f"input {quoted(name)} has both data and the parameter binary_data_size")
        if type(size) is not int or size < 0:
            raise Refusal(400, f"input {quoted(name)}: binary_data_size must be a whole number of bytes")
        if size > len(raw) - at:
            # a number of thousands of digits has no text in Python
            reason = f"binary_data_size is more than the {len(raw) - at} bytes that are left after the JSON"
            raise Refusal(400, f"input {quoted(name)}: {reason} and the inputs before")
        tensors[name] = from_raw(name, entry["datatype"], entry["shape"], raw[at : at + size])
        at += size
    if not tensors:
        raise Refusal(400, "the request has no inputs")
    if at != len(raw):
        raise Refusal(400, f"{len(raw) - at} bytes are left after the binary data of all inputs")
    return tensors


def _outputs(document: Json, binary_default: bool) -> tuple[RequestedOutput, ...] | None:
    outputs: list[RequestedOutput] = []
    for name, _, parameters in _entries(document, "output"):
        where = f"output {quoted(name)}"
        classification = parameters.get("classification")
        if classification is not None and (type(classification) is not int or classification < 1):
            raise Refusal(400, f"{where}: classification must be a whole number of classes from 1 on")
        binary = _flag(parameters, "binary_data", binary_default, where)
        outputs.append(RequestedOutput(name, binary, classification or 0))
    return tuple(outputs) or None


def _entries(document: Json, kind: str) -> list[tuple[str, Json, Json]]:
    """Return name, entry and parameters of each of the inputs or outputs."""
    key = f"{kind}s"
    listed = document.get(key)
    if listed is None:
        return []
    if not isinstance(listed, list):
        raise Refusal(400, f"the request: {key} must be an array")
    require_few(len(listed), key)
    found: dict[str, tuple[str, Json, Json]] = {}
    for number, value in enumerate(listed):
        entry = _object(value, f"{key}[{number}]")
        name = entry.get("name")
        if not isinstance(name, str):
            raise Refusal(400, f"{key}[{number}]: its name is missing, or no string")
        if name in found:
            raise Refusal(400, f"{kind} {quoted(name)} stands in the request twice")
        found[name] = (name, entry, _parameters(entry, f"{kind} {quoted(name)}"))
    return list(found.values())


def _parameters(entry: Json, where: str) -> Json:
    value = entry.get("parameters")
    parameters = {} if value is None else _object(value, f"{where}: parameters")
    for key in parameters:
        if key.startswith("shared_memory_"):
            raise Refusal(400, f"{where}: shared memory is not taken; send the data with the request")
        if key.startswith("sequence_"):
            raise Refusal(400, f"{where}: {quoted(key)}: sequences are not taken; every request stands for itself")
    return parameters


def _object(value: object, where: str) -> Json:
    if not isinstance(value, dict):
        raise Refusal(400, f"{where} must be a JSON object")
    return value


def _flag(parameters: Json, key: str, default: bool, where: str) -> bool:
    value = parameters.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise Refusal(400, f"{where}: {key} must be true or false")
    return value


def _timeout_s(parameters: Json) -> float | None:
    value = parameters.get("timeout")
    if value is None:
        return None
    if type(value) is not int or not 0 < value <= MAX_TIMEOUT_US:
        raise Refusal(400, "the request: timeout must be a whole number of microseconds from 1 on")
    return value / 1e6
