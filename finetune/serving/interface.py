"""What /docs says beyond the routes: the limits as they are configured, which route takes whose key, and headers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from finetune.config.serving import LimitsConfig
from finetune.preprocess import MAX_DEEP_PIXELS
from finetune.serving import photos, protocol
from finetune.serving.compression import MAX_MEMBERS
from finetune.serving.connection import MAX_HEADER_BYTES, MAX_PIPELINED
from finetune.serving.envelope import GIVEN_ID
from finetune.serving.guard import role_of
from finetune.serving.keys import Role
from finetune.serving.tensors import MAX_DIMS, MAX_ELEMENTS

SCHEMES = {
    "Bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
    "X-API-Key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key."},
}
RETRY_AFTER = {"description": "Seconds until another try makes sense.", "schema": {"type": "integer", "minimum": 1}}
HEADERS = {
    "X-Request-ID": {
        "description": "What the log calls this request; a client may give its own.",
        "required": True,
        "schema": {"type": "string", "pattern": f"^{GIVEN_ID.pattern}$"},
    },
    "WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}},
    "Retry-After": RETRY_AFTER,
}
# what carries which, beside the id
HEADER_OF = {"401": "WWW-Authenticate", "429": "Retry-After", "503": "Retry-After", "504": "Retry-After"}

# pydantic's own, which it has no name for
JSON_DEPTH = 201
# Limits that no key changes: the most, the status of more, and of what.
FIXED = (
    (f"{MAX_HEADER_BYTES:,}", "431", "bytes of a request's headers, and of what follows a chunked body"),
    (f"{MAX_PIPELINED:,}", "closed", "requests sent on without waiting for an answer"),
    (f"{MAX_MEMBERS:,}", "413", "gzip members of a body"),
    (f"{MAX_DEEP_PIXELS:,}", "422", "pixels of a photo of 16 bits a channel"),
    (f"{photos.MAX_NESTS:,}", "422", "arrays and objects in JSON with photos"),
    (f"{photos.MAX_QUOTES:,}", "413", "quotes in JSON with photos, beside two for each of `limits.photos`"),
    (f"{protocol.MAX_NESTS:,}", "413", "arrays and objects in JSON with tensors"),
    (f"{protocol.MAX_QUOTES:,}", "413", "quotes in JSON with tensors"),
    (f"{JSON_DEPTH:,}", "400", "arrays and objects in JSON, one in the other"),
    (f"{protocol.MAX_TENSORS:,}", "400", "inputs of a request, and outputs"),
    (f"{MAX_DIMS:,}", "400", "dimensions of a tensor"),
    (f"{MAX_ELEMENTS:,}", "400", "elements of a BYTES tensor"),
)


def description(limits: LimitsConfig) -> str:
    """Return what stands above the routes, in Markdown."""
    rows = [
        f"| `limits.{name}` | {_shown(getattr(limits, name))} | {field.description} |"
        for name, field in LimitsConfig.model_fields.items()
    ]
    about = "Image classification with models exported by `finetune export`. The limits of this server:"
    here = [about, "", "| key | here | meaning |", "| --- | --- | --- |", *rows]
    fixed = ["| fixed | above it | of |", "| --- | --- | --- |", *(f"| {' | '.join(row)} |" for row in FIXED)]
    return "\n".join([*here, "", "And those that no key changes:", "", *fixed])


def declare_keys(schema: dict[str, Any], keyless: Collection[Role]) -> None:
    """Add to an OpenAPI schema how a key is sent, and where; keyless: roles that anybody has here."""
    schema.setdefault("components", {})["securitySchemes"] = SCHEMES
    for path, methods in schema["paths"].items():
        role = role_of(path)
        if role is None:
            continue
        ways: list[dict[str, list[str]]] = [{name: []} for name in SCHEMES]
        for operation in methods.values():
            # an empty way: none is needed
            operation["security"] = [*ways, {}] if role in keyless else ways


def declare_headers(schema: dict[str, Any]) -> None:
    """Add to an OpenAPI schema the headers that answers carry, whatever the route."""
    schema.setdefault("components", {})["headers"] = HEADERS
    for methods in schema["paths"].values():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                names = ["X-Request-ID", *([HEADER_OF[status]] if status in HEADER_OF else [])]
                response.setdefault("headers", {}).update({n: {"$ref": f"#/components/headers/{n}"} for n in names})


def _shown(value: float | None) -> str:
    return "null" if value is None else str(value).removesuffix(".0")
