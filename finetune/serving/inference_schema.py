"""What /docs says of bodies and headers of the Open Inference Protocol; protocol.py is what reads and writes them."""

from __future__ import annotations

from typing import Any

from finetune.bundle import INPUT, OUTPUT
from finetune.serving.inference import ENCODED
from finetune.serving.protocol import HEADER_LENGTH, MAX_TIMEOUT_US

Schema = dict[str, Any]
BINARY: Schema = {"type": "string", "format": "binary"}
SHAPE: Schema = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 1}}


def _object(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": properties}


def _or_null(schema: Schema) -> Schema:
    """Return the schema of what may be left out: null leaves it out, too."""
    return {**schema, "type": [schema["type"], "null"]}


# What JSON alone can carry; with binary data an input has the parameter binary_data_size in place of data.
REQUEST = _object(
    ("inputs",),
    id=_or_null({"type": "string"}),
    parameters=_or_null(
        _object(
            timeout=_or_null(
                {"type": "integer", "minimum": 1, "maximum": MAX_TIMEOUT_US, "description": "microseconds"}
            ),
            binary_data_output=_or_null({"type": "boolean"}),
        )
    ),
    inputs={
        "type": "array",
        "minItems": 1,
        "maxItems": 1,
        "items": {
            "anyOf": [
                _object(
                    ("name", "datatype", "shape", "data"),
                    name={"const": INPUT},
                    datatype={"const": "UINT8"},
                    shape=SHAPE,
                    data={
                        "type": "array",
                        "minItems": 1,
                        "items": {"type": ["integer", "array"], "minimum": 0, "maximum": 255},
                        "description": "flat or nested, in row-major order",
                    },
                ),
                _object(
                    ("name", "datatype", "shape", "data"),
                    name={"const": ENCODED},
                    datatype={"const": "BYTES"},
                    shape=SHAPE,
                    data={"type": "array", "minItems": 1, "items": {"type": "string", "format": "byte"}},
                ),
            ]
        },
    },
    outputs=_or_null(
        {
            "type": "array",
            "maxItems": 1,
            "items": _object(
                ("name",),
                name={"const": OUTPUT},
                parameters=_or_null(
                    _object(
                        binary_data=_or_null({"type": "boolean"}),
                        classification=_or_null({"type": "integer", "minimum": 1}),
                    )
                ),
            ),
        }
    ),
)
ANSWER = _object(
    ("model_name", "model_version", "outputs"),
    model_name={"type": "string"},
    model_version={"type": "string"},
    id={"type": "string"},
    outputs={
        "type": "array",
        "items": _object(
            ("name", "datatype", "shape", "data"),
            name={"const": OUTPUT},
            datatype={"enum": ["FP32", "BYTES"]},
            shape=SHAPE,
            data={"type": "array", "items": {"type": ["number", "string"]}},
        ),
    },
)
LENGTH: Schema = {
    "description": "bytes of JSON, behind which binary data follow",
    "schema": {"type": "integer", "minimum": 1},
}
# of a route: what is asked
ASKED: dict[str, Any] = {
    "parameters": [{"name": HEADER_LENGTH, "in": "header", "required": False, **LENGTH}],
    "requestBody": {
        "required": True,
        "description": f"`{INPUT}` UINT8 [N, H, W, 3], decoded, or `{ENCODED}` BYTES [N], files: in JSON in base64, "
        f"or as they are in binary data, which follow the JSON, with `{HEADER_LENGTH}`",
        "content": {"application/json": {"schema": REQUEST}, "application/octet-stream": {"schema": BINARY}},
    },
}
# and what is answered
ANSWERED: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"application/json": {"schema": ANSWER}, "application/octet-stream": {"schema": BINARY}},
        "headers": {HEADER_LENGTH: LENGTH},
    }
}
INDEX: dict[str, Any] = {
    "requestBody": {
        "required": False,
        "description": "whether to list those alone that are ready",
        "content": {"application/json": {"schema": _object(ready=_or_null({"type": "boolean"}))}},
    }
}
LOAD: dict[str, Any] = {
    "requestBody": {
        "required": False,
        "description": "parameters, of which `config` and those that begin with `file:` are refused",
        "content": {"application/json": {"schema": _object(parameters=_or_null({"type": "object"}))}},
    }
}
