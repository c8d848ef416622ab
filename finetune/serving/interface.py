"""What /docs says beyond the routes: the limits as they are configured, and which route takes whose key."""

from __future__ import annotations

from typing import Any

from finetune.config.serving import LimitsConfig
from finetune.serving.guard import role_of

SCHEMES = {
    "Bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
    "X-API-Key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key."},
}


def description(limits: LimitsConfig) -> str:
    """Return what stands above the routes, in Markdown."""
    rows = [
        f"| `limits.{name}` | {_shown(getattr(limits, name))} | {field.description} |"
        for name, field in LimitsConfig.model_fields.items()
    ]
    about = "Image classification with models exported by `finetune export`. The limits of this server:"
    return "\n".join([about, "", "| key | here | meaning |", "| --- | --- | --- |", *rows])


def declare_keys(schema: dict[str, Any], needed: bool) -> None:
    """Add to an OpenAPI schema how a key is sent, and where; needed: whether predicting takes one here."""
    schema.setdefault("components", {})["securitySchemes"] = SCHEMES
    for path, methods in schema["paths"].items():
        role = role_of(path)
        if role is None:
            continue
        ways: list[dict[str, list[str]]] = [{name: []} for name in SCHEMES]
        for operation in methods.values():
            # an empty way: none is needed
            operation["security"] = ways if needed or role == "admin" else [*ways, {}]


def _shown(value: float | None) -> str:
    return "null" if value is None else str(value).removesuffix(".0")
