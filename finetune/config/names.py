"""What a model may be called: a folder and a part of an address, on every platform that serves models."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from finetune.schema import as_text

# Names behind which a client would reach something else than a model, each with what that is.
HIDDEN_NAMES = {"stats": "/v2/models/stats counts what all models did"}


def _not_hidden(name: str) -> str:
    if name in HIDDEN_NAMES:
        raise ValueError(f"{HIDDEN_NAMES[name]}, so that nobody could ask for a model of this name; choose another")
    return name


ModelName = Annotated[
    str,
    BeforeValidator(as_text),
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"),
    AfterValidator(_not_hidden),
]
