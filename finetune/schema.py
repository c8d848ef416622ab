"""What a schema is made of, and how values are judged by it: every wrong key is named, with what it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from finetune.errors import FinetuneError, nearest


def ascending(pair: tuple[float, float]) -> tuple[float, float]:
    """Validate a range of positive numbers."""
    if not 0 < pair[0] <= pair[1]:
        raise ValueError("give the least and then the largest, both above 0")
    return pair


def as_text(value: Any) -> Any:
    """Return a number as text: Hydra reads a name such as 2024 as one."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _not_empty(value: Any) -> Any:
    if value == "":
        raise ValueError("give a path")
    return as_text(value)


def _absolute(address: str) -> str:
    """Make a path on this machine absolute, so that it means the same wherever it is read again."""
    *archives, place = address.split("::")
    return "::".join([*archives, place if "://" in place else str(Path(place).expanduser().absolute())])


Fraction = Annotated[float, Field(ge=0, le=1)]
Place = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(Path.expanduser)]
Address = Annotated[str, BeforeValidator(_not_empty), AfterValidator(_absolute)]


class Section(BaseModel):
    """A group of keys; an unknown key is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Config = TypeVar("Config", bound=Section)


class Typed(NamedTuple):
    """What a person typed, of all that a configuration is composed of; line: the whole command line."""

    keys: tuple[str, ...] = ()
    line: str = ""


def parse(schema: type[Config], values: dict[str, Any], typed: Typed | None = None) -> Config:
    """Validate composed values; raises FinetuneError naming every wrong key, its value and what it takes.

    typed: what the values hold of a command line, for a schema that judges it.
    """
    try:
        return schema.model_validate(values, context=typed)
    except ValidationError as error:
        raise FinetuneError("\n".join(_explain(schema, error))) from None


def describe(schema: type[Section], prefix: str = "") -> dict[str, str]:
    """Return every dotted key of a schema with its meaning."""
    keys: dict[str, str] = {}
    for name, field in schema.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, Section):
            keys |= describe(nested, f"{prefix}{name}.")
        else:
            keys[prefix + name] = field.description or ""
    return keys


def path_keys(schema: type[Section], prefix: str = "") -> set[str]:
    """Return every dotted key of a schema that names a file or folder."""
    keys: set[str] = set()
    for name, field in schema.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, Section):
            keys |= path_keys(nested, f"{prefix}{name}.")
        elif nested is Path or {Path, Place, Address} & {*get_args(nested)} or _is_address(field.metadata):
            keys.add(prefix + name)
    return keys


def _is_address(metadata: list[Any]) -> bool:
    return any(isinstance(item, AfterValidator) and item.func is _absolute for item in metadata)


def _explain(schema: type[Section], error: ValidationError) -> list[str]:
    """Return a line for each wrong value; what takes either of several types has a reason for each of them."""
    known = describe(schema)
    reasons: dict[tuple[str, str], list[str]] = {}
    for problem in error.errors():
        path = [str(part) for part in problem["loc"]]
        # pydantic appends the branch of a union to the path; the key is the longest known prefix
        key = next((".".join(path[:n]) for n in range(len(path), 0, -1) if ".".join(path[:n]) in known), ".".join(path))
        if not path:
            # of the whole, as keys that do not go together: what was given would be all of it
            line, reason = problem["msg"].removeprefix("Value error, "), ""
        elif key not in known and isinstance(problem["input"], dict):
            line, reason = f"{key}: {problem['msg'].removeprefix('Value error, ')}", ""
        elif problem["type"] == "extra_forbidden":
            line, reason = f"unknown key '{key}'{nearest(key, known)}", ""
        elif problem["type"] == "missing":
            line, reason = f"{key} is missing: {known.get(key, '')}", ""
        else:
            message = problem["msg"].removeprefix("Value error, ")
            line, reason = f"{key}={problem['input']} is wrong: ", message[:1].lower() + message[1:]
        reasons.setdefault((line, f" ({known.get(key, '')})" if reason else ""), []).append(reason)
    return [
        start + " or ".join([first, *(reason.removeprefix("input should be ") for reason in others)]) + end
        for (start, end), (first, *others) in reasons.items()
    ]
