"""What /docs says beyond the routes: the limits as they are configured, which route takes whose key, and headers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from finetune.config.serving import LimitsConfig
from finetune.serving.envelope import GIVEN_ID
from finetune.serving.guard import role_of
from finetune.serving.keys import Role

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


def description(limits: LimitsConfig) -> str:
    """Return what stands above the routes, in Markdown."""
    rows = [
        f"| `limits.{name}` | {_shown(getattr(limits, name))} | {field.description} |"
        for name, field in LimitsConfig.model_fields.items()
    ]
    about = "Image classification with models exported by `finetune export`. The limits of this server:"
    return "\n".join([about, "", "| key | here | meaning |", "| --- | --- | --- |", *rows])


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
